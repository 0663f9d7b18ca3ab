"""What a kernel specification is made from, checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from distributed_provisioner.errors import KernelSpecError
from distributed_provisioner.settings import OPTION, parse_host_list, parse_port_range
from distributed_provisioner.values import Place

from .languages import Language, find_language
from .spark import SparkOptions
from .toree import Toree, find_toree

DEFAULT_KERNEL_CLASS = "ipykernel.ipkernel.IPythonKernel"


@dataclass(frozen=True)
class SpecOptions:
    """The options of one specification. None means: not given, so not written; the server's setting holds.

    Raises:
        KernelSpecError: a name, class, language or option of Spark cannot be used, or Scala has no Toree.
        ConfigurationError: an option for the provisioner has a value that cannot be used.
    """

    language: str = "Python"
    kernel_name: str = ""
    """Empty means the language's own; always in lower case, as Jupyter looks names up."""
    display_name: str = ""
    """Empty means the language's own."""
    remote_hosts: tuple[str, ...] | None = None
    authorized_users: frozenset[str] | None = None
    unauthorized_users: frozenset[str] | None = None
    port_range: str | None = None
    launch_timeout: int = 30
    kernel_class: str = DEFAULT_KERNEL_CLASS
    spark: SparkOptions | None = None
    toree_jar: str = ""
    """For Scala; empty means that of the installed package `toree`."""
    row: Language = field(init=False, repr=False, compare=False)
    toree: Toree | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        row = find_language(self.language)
        self._settle("row", row)
        name, display = row.kernel_name, row.display_name
        if self.spark is not None:
            name, display = name + self.spark.name_suffix, display + self.spark.display_suffix
        self._settle("kernel_name", _checked_kernel_name(self.kernel_name or name))
        self._settle("display_name", _checked_display_name(self.display_name or display))
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", self.kernel_class):
            raise KernelSpecError(
                f"ipykernel_subclass_name is '{self.kernel_class}': write a module and a class in it, for example"
                f" {DEFAULT_KERNEL_CLASS}."
            )
        if self.remote_hosts is not None:
            self._settle("remote_hosts", tuple(map(str, parse_host_list(self.remote_hosts))))
        if self.port_range is not None:
            parse_port_range(self.port_range)
            self._settle("port_range", re.sub(r"\s", "", self.port_range))
        OPTION["launch_timeout"].parse(self.launch_timeout, Place("launch_timeout", ""))
        if row.title == "Scala":
            self._settle("toree", find_toree(self.toree_jar))

    def _settle(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _checked_kernel_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise KernelSpecError(
            f"kernel_name is '{name}': write ASCII letters, digits, '-', '.' and '_' only, and a letter, digit or '_' first."
        )
    return name.lower()


def _checked_display_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise KernelSpecError(f"display_name is {name!r}: write text on one line.")
    return name
