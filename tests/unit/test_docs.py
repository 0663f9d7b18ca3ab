"""What the documentation says is so: its links lead somewhere, its examples run, the sentences that it explains are raised."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from traitlets.config import Config

import distributed_provisioner
from distributed_provisioner.settings import OPTION, OPTIONS, resolve

ROOT = Path(__file__).parents[2]
PACKAGE = Path(distributed_provisioner.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TROUBLES = ROOT / "docs" / "how-to" / "troubleshoot-a-launch.md"
OTHER_VARIABLES = {
    *(
        "KERNEL_LAUNCH_TIMEOUT",
        "KERNEL_ORPHAN_TIMEOUT",
        "KERNEL_REMOTE_HOST",
        "KERNEL_USERNAME",
        "KERNEL_WORKING_DIR",
    ),
    "KERNEL_EXTRA_SPARK_OPTS",  # run.sh's
}
MACHINE_PATH = re.compile(r"/(?:root|work|home/\w+)/")


class Block(NamedTuple):
    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.language}:{self.text[:24]!r}"


def blocks(*languages: str) -> list[Block]:
    """Fenced blocks of all pages in one of the languages."""
    fence = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [
        Block(page, language, text)
        for page in PAGES
        for _, language, text in fence.findall(page.read_text())
        if language in languages
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A reader who follows a link finds the page, and the heading on it."""
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", page.read_text()):
        path, _, heading = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        if heading:
            assert heading in set(anchors(file)), f"{target}: no such heading"


def anchors(page: Path) -> Iterator[str]:
    for heading in re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_path_of_the_authors_machine(page: Path) -> None:
    """A path that only the author has is of no use to anybody else."""
    assert not MACHINE_PATH.findall(page.read_text())


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_kernel_json_examples_are_accepted(block: Block) -> None:
    """An example that is copied from the page works: it is JSON, and its options are options."""
    stanza: dict[str, Any] = json.loads(block.text).get("metadata", {}).get("kernel_provisioner", {})
    if stanza:
        assert stanza["provisioner_name"] == "distributed-provisioner"
        assert resolve(stanza.get("config", {}), {}, {}).remote_hosts


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_examples_compile_and_configure(block: Block) -> None:
    """A configuration example sets options that there are; other examples are Python."""
    code = compile(block.text, str(block.page), "exec")
    if "c.DistributedProvisioner" in block.text:
        config = Config()
        exec(code, {"c": config})
        assert set(config.DistributedProvisioner) <= set(OPTION)
        assert resolve({}, dict(config.DistributedProvisioner), {})


@pytest.mark.parametrize("block", blocks("sh", "bash"), ids=str)
def test_shell_examples_parse(block: Block) -> None:
    """A command line that is copied from the page is at least one."""
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)


def test_options_on_the_pages_exist() -> None:
    """Every GP_ variable, KERNEL_ variable and configurable of the pages is one that the package knows."""
    known = (
        {variable for option in OPTIONS for variable in option.environment} | OTHER_VARIABLES | {"KERNEL_ID"}
    )
    for page in PAGES:
        if page.name == "benchmarks.md":
            continue  # it names the options of other packages, too
        text = page.read_text()
        assert set(re.findall(r"\b(?:GP|KERNEL)_[A-Z_]*[A-Z]\b", text)) <= known | {"KERNEL_SHARE"}, page
        assert set(re.findall(r"c\.DistributedProvisioner\.(\w+)", text)) <= set(OPTION), page


def test_command_line_options_on_the_pages_exist() -> None:
    """`jupyter ssh-spec install` knows every option that the pages give it."""
    from distributed_provisioner.cli.ssh_spec import SshSpecInstaller

    known = set(SshSpecInstaller.aliases) | {
        word for flag in SshSpecInstaller.flags for word in ([flag] if isinstance(flag, str) else flag)
    }
    for block in blocks("sh", "bash"):
        for line in block.text.splitlines():
            if "ssh-spec install" in line:
                ours = re.sub(
                    r'"[^"]*"', "", line.partition("#")[0]
                )  # what is in quotes may be another program's
                assert set(re.findall(r"--([a-z][a-z-]*)", ours)) <= known, line


def test_cluster_commands_on_the_pages_exist() -> None:
    """`jupyter ssh-cluster` knows every command and option that the pages give it."""
    from distributed_provisioner.cli.ssh_cluster import SshClusterApp

    lines = [
        line
        for block in blocks("sh", "bash")
        for line in block.text.splitlines()
        if "jupyter ssh-cluster" in line
    ]
    assert lines
    for line in lines:
        words = line.partition("#")[0].partition("jupyter ssh-cluster")[2].split()
        app = SshClusterApp.subcommands[words[0]][0]
        known = {word for flag in app.flags for word in ([flag] if isinstance(flag, str) else flag)} | set(
            app.aliases
        )
        assert set(re.findall(r"--([a-z][a-z-]*)", line)) <= known, line


def explained_sentences() -> list[str]:
    """The first column of the tables of the troubleshooting page."""
    return re.findall(r"^\| `([^`]+)` \|", TROUBLES.read_text(), re.MULTILINE)


def texts_of_the_package() -> list[str]:
    """Every text in the code, with `…` for each value that is put in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
                )
    return found


@pytest.mark.parametrize("sentence", explained_sentences())
def test_explained_sentences_are_the_ones_that_are_raised(sentence: str) -> None:
    """Somebody who searches the page for the error in front of them finds it."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in sentence.split("…")))
    assert any(pattern.search(text) for text in texts_of_the_package())


def test_there_are_explained_sentences() -> None:
    """The test above looks at something."""
    assert len(explained_sentences()) > 20


def test_notebook_is_clean() -> None:
    """The shipped notebook has no outputs of somebody's run, and its kernel is the one that the command installs."""
    notebook: Any = nbformat.read(ROOT / "examples" / "digits.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert notebook.metadata.kernelspec.name == "ssh_python"


def test_changelog_knows_this_version() -> None:
    """Users see what changed in the version that they have."""
    assert f"## [{distributed_provisioner.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_first_block_of_contributing_is_one_command() -> None:
    """Somebody who wants to help starts with one line."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.search(r"```sh\n(.*?)```", text, re.DOTALL).group(1) == "./run test\n"  # type: ignore[union-attr]


def test_contributing_lists_every_mark_of_the_tests() -> None:
    """If it fails: who wants to run a part of the tests, or is told that a program is missing, does not find out what is needed."""
    marks = re.search(r"\nmarkers = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert marks is not None
    table = (ROOT / "CONTRIBUTING.md").read_text()
    assert [
        name for name in re.findall(r'^  "(\w+):', marks[1], re.MULTILINE) if f"`{name}`" not in table
    ] == []
