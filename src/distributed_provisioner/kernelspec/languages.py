"""The languages that kernel specifications can be made for: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed_provisioner.errors import KernelSpecError

RUN = "bin/run.sh"
"""Starts the launcher below spark-submit: the same file for each language."""


@dataclass(frozen=True)
class Language:
    """A row. `files` maps a path in the specification to the file of this package that it is a copy of."""

    title: str
    """As `--language` and people write it."""
    language: str
    """As kernel.json has it."""
    kernel_name: str
    display_name: str
    files: Mapping[str, str]
    start: tuple[str, ...] = ()
    """The beginning of argv without Spark: interpreter and launcher, `{directory}` is the specification's own. Empty: always by run.sh."""
    more: tuple[str, ...] = ()
    """The end of argv; `{kernel_class}` is the class of the kernel."""
    debugger: bool = False
    runs_python: bool = False
    """Whether Spark starts a Python for the kernel, which wants to be named."""
    below_spark: Mapping[str, str] | None = None
    """Options of the provisioner that such a kernel needs below spark-submit."""


_LOGO = "logo-64x64.png"
_LISTENER = {"scripts/server_listener.py": "remote/server_listener.py"}

LANGUAGES: tuple[Language, ...] = (
    Language(
        title="Python",
        language="python",
        kernel_name="ssh_python",
        display_name="Python SSH",
        files={
            _LOGO: "kernelspec/resources/logo-64x64.png",
            "scripts/launch_ipykernel.py": "remote/launch_ipykernel.py",
            **_LISTENER,
        },
        start=("python", "{directory}/scripts/launch_ipykernel.py"),
        more=("--kernel-class-name", "{kernel_class}"),
        debugger=True,
        runs_python=True,
    ),
    Language(
        title="R",
        language="R",
        kernel_name="ssh_r",
        display_name="R SSH",
        files={
            _LOGO: "kernelspec/resources/logo-r-64x64.png",
            "scripts/launch_IRkernel.R": "remote/launch_IRkernel.R",
            **_LISTENER,
        },
        start=("Rscript", "{directory}/scripts/launch_IRkernel.R"),
        # R cannot leave the process group of the JVM that starts it: the interrupt of the group would end the JVM.
        below_spark={"interrupt_target": "kernel"},
    ),
    Language(
        title="Scala",
        language="scala",
        kernel_name="ssh_scala",
        display_name="Scala SSH",
        files={_LOGO: "kernelspec/resources/logo-scala-64x64.png"},
    ),
)


def find_language(title: str) -> Language:
    """The row of a language, whatever the case of its title.

    Raises:
        KernelSpecError: there is no such language.
    """
    for row in LANGUAGES:
        if row.title.lower() == title.strip().lower():
            return row
    titles = [row.title for row in LANGUAGES]
    raise KernelSpecError(f"language is '{title}': write one of {', '.join(titles[:-1])} or {titles[-1]}.")
