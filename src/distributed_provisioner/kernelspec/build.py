"""A kernel specification as data: nothing is read but the options, nothing is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .options import SpecOptions

PROVISIONER_NAME = "distributed-provisioner"


@dataclass(frozen=True)
class SpecFile:
    """A file of a specification: its path there, and the file of this package that it is a copy of."""

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
        "argv": [_substituted(item, places) for item in row.argv],
        "env": {},
        "display_name": options.display_name,
        "language": row.language,
        "interrupt_mode": "signal",
        "metadata": {
            **({"debugger": True} if row.debugger else {}),
            "kernel_provisioner": {"provisioner_name": PROVISIONER_NAME, "config": _config(options)},
        },
    }
    files = tuple(SpecFile(path, source) for path, source in (row.files or {}).items())
    return BuiltSpec(options.kernel_name, options.display_name, kernel_json, files)


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
    config["launch_timeout"] = options.launch_timeout
    return config


def _substituted(item: str, places: dict[str, str]) -> str:
    for placeholder, value in places.items():
        if placeholder in item:
            return item.replace(placeholder, value)
    return item
