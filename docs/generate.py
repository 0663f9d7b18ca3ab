"""Generates docs/reference/options.md, ssh-spec.md and ssh-cluster.md from the code. Run it after a change of an option.

    python docs/generate.py           writes the files
    python docs/generate.py --check   writes nothing; exit code 1 if a file is stale

tests/unit/cli/test_reference_pages.py runs the check.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

from distributed_provisioner.cli.app import StrictApp
from distributed_provisioner.cli.ssh_cluster import SshClusterApp
from distributed_provisioner.cli.ssh_spec import SshSpecApp, SshSpecInstaller, SshSpecList, SshSpecRemove
from distributed_provisioner.options import OPTIONS, Option

REFERENCE = Path(__file__).resolve().parent / "reference"

OPTIONS_HEAD = """\
# Options

Each option can be set in three places. Where more than one sets it, the first of these counts:

1. `metadata.kernel_provisioner.config` in the `kernel.json` of a kernel, under the option's name;
2. `c.DistributedProvisioner.<option>` in the configuration of the host application;
3. an environment variable of the host application;

and else the default. `unauthorized_users` is the exception: what kernel.json names is added to what the server names.
An environment variable that is set but empty counts only for lists, as an empty list.

| option | environment | default | value |
|---|---|---|---|
"""

SPEC_HEAD = """\
# `jupyter ssh-spec`

Makes, lists and removes the kernel specifications of the distributed provisioner. Each command ends with exit code 0, or says in
one sentence what was wrong and ends with 1. Options and arguments that a command does not know are refused.
"""


CLUSTER_HEAD = """\
# `jupyter ssh-cluster`

Shows the kernels on the hosts of the distributed provisioner, whichever server started them, stops and reads them, and drains hosts.
How to use it: [Operate a cluster](../how-to/operate-a-cluster.md).

The hosts are those of `c.DistributedProvisioner.remote_hosts` (in `jupyter_config`, `jupyter_server_config`, `jupyter_notebook_config`,
`jupyter_lab_config` or `jupyter_ssh_cluster_config`), of `GP_REMOTE_HOSTS`, and of all installed kernel specifications that use the
provisioner; how to log in to them is configured in the same places. KERNEL is a kernel's id, or enough of its beginning.

| exit code | means |
|---|---|
| 0 | all is well |
| 1 | a host could not be asked, or something could not be done; the rest was, and standard error says what was not |
| 2 | the command line or an option is wrong; nothing was asked |
| 3 | there is no such kernel or host |
| 130 | Ctrl-C |

With `--json`, standard output is JSON and nothing else: one object with a list and `failed` (the sentence for each host or kernel that
failed), or, for `output` and `logs`, one object a line.
"""


def pages() -> dict[str, str]:
    """The name of each generated file, and its text."""
    return {"options.md": options_page(), "ssh-spec.md": spec_page(), "ssh-cluster.md": cluster_page()}


def options_page() -> str:
    rows = [
        f"| [`{option.name}`](#{option.name}) | {_variables(option)} | {_default(option)} | {option.kind} |"
        for option in OPTIONS
    ]
    return OPTIONS_HEAD + "\n".join(rows) + "\n\n" + "\n".join(map(_section, OPTIONS))


def spec_page() -> str:
    parts = [SPEC_HEAD]
    commands: tuple[tuple[str, type[StrictApp]], ...] = (
        ("", SshSpecApp),
        ("install", SshSpecInstaller),
        ("list", SshSpecList),
        ("remove", SshSpecRemove),
    )
    for command, app in commands:
        title = f"jupyter ssh-spec {command}".rstrip()
        parts.append(f"## `{title} --help`\n\n```text\n{help_of(app)}\n```\n")
    return "\n".join(parts)


def cluster_page() -> str:
    parts = [CLUSTER_HEAD]
    for command, app in (
        ("", SshClusterApp),
        *((name, each) for name, (each, _) in SshClusterApp.subcommands.items()),
    ):
        title = f"jupyter ssh-cluster {command}".rstrip()
        parts.append(f"## `{title} --help`\n\n```text\n{help_of(app)}\n```\n")
    return "\n".join(parts)


def help_of(app: type[Any]) -> str:
    """What `--help` prints, with a word in place of this machine's environment."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        app().print_help()
    return text.getvalue().replace(f"prefix={sys.prefix}]", "prefix=<sys.prefix>]").strip()


def _section(option: Option) -> str:
    spec = f"Not in kernel.json: {option.not_in_spec}.\n\n" if option.not_in_spec else ""
    return f"## `{option.name}`\n\n{option.help}\n\n{spec}Environment: {_variables(option)}. Default: {_default(option)}.\n"


def _variables(option: Option) -> str:
    return ", else ".join(f"`{variable}`" for variable in option.environment)


def _default(option: Option) -> str:
    if option.default_text:
        return option.default_text
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    return f"`{', '.join(option.default) if isinstance(option.default, tuple) else option.default}`"


def main() -> int:
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv[1:]:
            REFERENCE.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print(
        "\n".join(f"{'stale' if '--check' in sys.argv[1:] else 'written'}: {name}" for name in stale)
        or "all is fresh"
    )
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    raise SystemExit(main())
