"""The languages that kernel specifications can be made for: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed_provisioner.errors import KernelSpecError


@dataclass(frozen=True)
class Language:
    """A row. `files` maps a path in the specification to the file of this package that it is a copy of."""

    title: str
    """As `--language` and people write it."""
    language: str
    """As kernel.json has it."""
    kernel_name: str
    display_name: str
    debugger: bool = False
    argv: tuple[str, ...] = ()
    """`{directory}` is the specification's own directory, `{kernel_class}` the class of the kernel."""
    files: Mapping[str, str] | None = None
    """None means that this language comes with the next release."""


_LOGO = "logo-64x64.png"
_LAUNCHER_OPTIONS = (
    *("--kernel-id", "{kernel_id}"),
    *("--port-range", "{port_range}"),
    *("--response-address", "{response_address}"),
    *("--public-key", "{public_key}"),
)

LANGUAGES: tuple[Language, ...] = (
    Language(
        title="Python",
        language="python",
        kernel_name="ssh_python",
        display_name="Python SSH",
        debugger=True,
        argv=(
            *("python", "{directory}/scripts/launch_ipykernel.py"),
            *_LAUNCHER_OPTIONS,
            *("--kernel-class-name", "{kernel_class}"),
        ),
        files={
            _LOGO: f"kernelspec/resources/{_LOGO}",
            "scripts/launch_ipykernel.py": "remote/launch_ipykernel.py",
            "scripts/server_listener.py": "remote/server_listener.py",
        },
    ),
    Language(title="R", language="R", kernel_name="ssh_r", display_name="R SSH"),
    Language(title="Scala", language="scala", kernel_name="ssh_scala", display_name="Scala SSH"),
)


def find_language(title: str) -> Language:
    """The row of a language, whatever the case of its title.

    Raises:
        KernelSpecError: there is no such language, or not yet.
    """
    for row in LANGUAGES:
        if row.title.lower() == title.strip().lower():
            if row.files is None:
                raise KernelSpecError(
                    f"Kernel specifications for {row.title} come with the next release: use --language Python until then."
                )
            return row
    titles = [row.title for row in LANGUAGES]
    raise KernelSpecError(f"language is '{title}': write one of {', '.join(titles[:-1])} or {titles[-1]}.")
