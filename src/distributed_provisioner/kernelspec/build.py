"""A kernel specification as data: nothing is read but the options, nothing is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .languages import RUN
from .options import SpecOptions
from .spark import SparkOptions

PROVISIONER_NAME = "distributed-provisioner"


@dataclass(frozen=True)
class SpecFile:
    """A file of a specification: its path there, and the file of this package that it is a copy of (or any file, with an absolute path)."""

    path: str
    source: str
    mode: int = 0o644


@dataclass(frozen=True)
class BuiltSpec:
    """A specification that is ready to be written."""

    kernel_name: str
    display_name: str
    kernel_json: dict[str, Any]
    files: tuple[SpecFile, ...]

    @property
    def kernel_json_text(self) -> str:
        return json.dumps(self.kernel_json, indent=2, ensure_ascii=False) + "\n"


def build(options: SpecOptions, directory: str) -> BuiltSpec:
    """Make the specification that will lie in `directory` (an absolute path, since argv names files in it)."""
    row = options.row
    places = {"{directory}": directory, "{kernel_class}": options.kernel_class}
    kernel_json = {
        "argv": [_substituted(item, places) for item in _argv(options)],
        "env": _environment(options),
        "display_name": options.display_name,
        "language": row.language,
        "interrupt_mode": "signal",
        "metadata": {
            **({"debugger": True} if row.debugger else {}),
            "kernel_provisioner": {"provisioner_name": PROVISIONER_NAME, "config": _config(options)},
        },
    }
    files = [SpecFile(path, source) for path, source in row.files.items()]
    if options.toree is not None:
        files += [SpecFile(path, source) for path, source in options.toree.files.items()]
    if _by_run(options):
        files.append(SpecFile(RUN, f"kernelspec/resources/{RUN}", 0o755))
    return BuiltSpec(options.kernel_name, options.display_name, kernel_json, tuple(files))


def _by_run(options: SpecOptions) -> bool:
    """Whether spark-submit starts the launcher; Scala's needs Spark's classes in any case."""
    return options.spark is not None or not options.row.start


def _argv(options: SpecOptions) -> list[str]:
    """The page has the options in another order with Spark."""
    row, port_range = options.row, ("--port-range", "{port_range}")
    ends = ("--response-address", "{response_address}", "--public-key", "{public_key}")
    if not _by_run(options):
        return [*row.start, "--kernel-id", "{kernel_id}", *port_range, *ends, *row.more]
    mode = options.spark.init_mode if options.spark is not None else "none"
    mode_option = ("--spark-context-initialization-mode", mode)
    return [f"{{directory}}/{RUN}", "--kernel-id", "{kernel_id}", *ends, *port_range, *mode_option, *row.more]


def _environment(options: SpecOptions) -> dict[str, str]:
    if not _by_run(options):
        return {}
    return (options.spark or SparkOptions(master="local[*]")).environment(options.row.runs_python)


def _config(options: SpecOptions) -> dict[str, Any]:
    """Only what was asked for, so that the server's settings hold for the rest; `launch_timeout` always, as the page has it."""
    config: dict[str, Any] = {}
    if options.remote_hosts is not None:
        config["remote_hosts"] = list(options.remote_hosts)
    if options.authorized_users is not None:
        config["authorized_users"] = sorted(options.authorized_users)
    if options.unauthorized_users is not None:
        config["unauthorized_users"] = sorted(options.unauthorized_users)
    if options.port_range is not None:
        config["port_range"] = options.port_range
    if _by_run(options):
        config.update(options.row.below_spark or {})
    config["launch_timeout"] = options.launch_timeout
    return config


def _substituted(item: str, places: dict[str, str]) -> str:
    for placeholder, value in places.items():
        if placeholder in item:
            return item.replace(placeholder, value)
    return item
