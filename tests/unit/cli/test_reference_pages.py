"""docs/reference is made from the code."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from distributed_provisioner.cli.ssh_cluster import SshClusterApp
from distributed_provisioner.cli.ssh_spec import SshSpecApp, SshSpecInstaller, SshSpecList, SshSpecRemove

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize("name", ["options.md", "ssh-spec.md", "ssh-cluster.md"])
def test_pages_are_fresh(generator: dict[str, Any], name: str) -> None:
    """The reference would describe options that are not so any more; python docs/generate.py mends it."""
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == generator["pages"]()[name]


def test_no_machine_is_in_the_pages(generator: dict[str, Any]) -> None:
    """The pages would change with whoever generates them."""
    assert str(Path.home()) not in "".join(generator["pages"]().values())
    assert "prefix=<sys.prefix>" in generator["pages"]()["ssh-spec.md"]


CLUSTER_COMMANDS = [app for app, _ in SshClusterApp.subcommands.values()]


@pytest.mark.parametrize(
    "app", [SshSpecApp, SshSpecInstaller, SshSpecList, SshSpecRemove, SshClusterApp, *CLUSTER_COMMANDS]
)
def test_every_option_of_the_commands_has_help(app: Any) -> None:
    """--help would name an option and not say what it does."""
    for cls in app.mro():
        if cls.__module__.startswith("distributed_provisioner"):
            for name, trait in cls.class_own_traits(config=True).items():
                assert trait.help.strip(), f"{cls.__name__}.{name}"
    assert all(text.strip() for _, text in app.flags.values())
