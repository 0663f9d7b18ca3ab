"""`BaseSpecApp`: the options that installing a specification has, whatever starts its kernels."""

# ruff: noqa: RUF012 -- traitlets declares flags, aliases and classes so
from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import traitlets
from jupyter_core.application import base_aliases, base_flags
from traitlets import Bool, TraitError, Unicode

from distributed_provisioner import values
from distributed_provisioner.errors import ConfigurationError
from distributed_provisioner.kernelspec.options import DEFAULT_KERNEL_CLASS
from distributed_provisioner.settings import OPTION

from .app import StrictApp

# The names of these three are what --help prints.


class List(traitlets.List[str]):
    """Takes items separated by commas, too; and `[::1]` is an address, not a Python list."""

    def from_string_list(self, s_list: list[str]) -> list[str]:
        return _split(s_list)

    def validate(self, obj: Any, value: Any) -> Any:
        return super().validate(obj, _split([value]) if isinstance(value, str) else value)


class Set(traitlets.Set):
    """Takes items separated by commas, too."""

    def from_string_list(self, s_list: list[str]) -> set[str]:
        return set(_split(s_list))

    def validate(self, obj: Any, value: Any) -> Any:
        return super().validate(obj, set(_split([value])) if isinstance(value, str) else value)


class Int(traitlets.Int[int, int]):
    """A number of seconds; says what is wrong in words for people."""

    def validate(self, obj: Any, value: Any) -> int:
        try:
            return values.whole(1, 10_000_000)(value, values.Place(self.name or "", ""))
        except ConfigurationError as error:
            raise TraitError(str(error)) from None


class BaseSpecApp(StrictApp):
    """Options of a specification."""

    kernel_name = Unicode("", help="Install the kernel spec into a directory with this name.").tag(
        config=True
    )
    display_name = Unicode("", help="The display name of the kernel - used by user-facing applications.").tag(
        config=True
    )
    # A first line that is empty makes traitlets keep the indentation that the page shows.
    language = Unicode(
        "Python",
        help="""
The language of the kernel referenced in the kernel specification.  Must be one of
    'Python', 'R', or 'Scala'.  Default = 'Python'.""",
    ).tag(config=True)
    spark = Bool(False, help="Install kernelspec with Spark support.").tag(config=True)
    spark_home = Unicode("/opt/spark", help="Specify where the spark files can be found.").tag(config=True)
    spark_init_mode = Unicode(
        "lazy",
        help="""
Spark context initialization mode.  Must be one of ['lazy', 'eager', 'none'].
    Default = lazy.""",
    ).tag(config=True)
    extra_spark_opts = Unicode("", help="Specify additional Spark options.").tag(config=True)
    toree_jar = Unicode(
        "",
        help="For Scala kernels, the assembly of Apache Toree, toree-assembly-VERSION.jar. Without it, that of the installed"
        " package 'toree' is taken.",
    ).tag(config=True)
    authorized_users = Set(set(), help=OPTION["authorized_users"].cli_help).tag(config=True)
    unauthorized_users = Set(
        set(OPTION["unauthorized_users"].default), help=OPTION["unauthorized_users"].cli_help
    ).tag(config=True)
    port_range = Unicode(OPTION["port_range"].default, help=OPTION["port_range"].cli_help).tag(config=True)
    launch_timeout = Int(OPTION["launch_timeout"].default, help=OPTION["launch_timeout"].cli_help).tag(
        config=True
    )
    ipykernel_subclass_name = Unicode(
        DEFAULT_KERNEL_CLASS, help="For Python kernels, the name of the ipykernel subclass."
    ).tag(config=True)
    user = Bool(False, help="Install to the per-user kernel registry").tag(config=True)
    replace = Bool(
        False, help="Replace an existing kernel specification; it stays if the new one fails."
    ).tag(config=True)
    prefix = Unicode(
        "",
        help="Specify a prefix to install to, e.g. an env. The kernelspec will be installed in"
        " PREFIX/share/jupyter/kernels/",
    ).tag(config=True)

    flags = {
        "user": ({"BaseSpecApp": {"user": True}}, user.help),
        "sys-prefix": (
            {"BaseSpecApp": {"prefix": sys.prefix}},
            "Install to Python's sys.prefix. Useful in conda/virtual environments.",
        ),
        "replace": ({"BaseSpecApp": {"replace": True}}, replace.help),
        "spark": ({"BaseSpecApp": {"spark": True}}, spark.help),
        "debug": base_flags["debug"],
    }
    aliases = {
        option.replace("_", "-"): f"BaseSpecApp.{option}"
        for option in (
            "prefix",
            "kernel_name",
            "display_name",
            "language",
            "spark_home",
            "spark_init_mode",
            "extra_spark_opts",
            "toree_jar",
            "authorized_users",
            "unauthorized_users",
            "port_range",
            "launch_timeout",
            "ipykernel_subclass_name",
        )
    } | base_aliases
    spellings = {"--spark_init_mode": "--spark-init-mode"}

    def given(self) -> set[str]:
        """The options that somebody set, on the command line or in a configuration file, be it to their default."""
        return set(self._find_my_config(self.config))


def _split(items: Iterable[str]) -> list[str]:
    return [part.strip() for item in items for part in item.split(",") if part.strip()]
