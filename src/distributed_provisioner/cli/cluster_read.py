"""`jupyter ssh-cluster output` and `logs`: what a kernel published, and what it wrote."""

# ruff: noqa: RUF012 -- traitlets declares flags, aliases and classes so
from __future__ import annotations

import base64
import json
import re
import sys
from typing import Any

from traitlets import Bool, Int
from traitlets.config.loader import ArgumentError

from .cluster_app import HostsCommand
from .tables import memory

_COLORS = re.compile(r"\x1b\[[0-9;]*m")


class ReadingCommand(HostsCommand):
    """Reads of one kernel."""

    follow = Bool(False, help="Go on with what comes, until the kernel ends or Ctrl-C.").tag(config=True)
    flags = {("f", "follow"): ({"ReadingCommand": {"follow": True}}, follow.help), **HostsCommand.flags}

    def take_arguments(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            raise ArgumentError(
                "Name one kernel by the beginning of its id: jupyter ssh-cluster kernels shows them."
            )
        self.prefix = arguments[0]


class SshClusterOutput(ReadingCommand):
    """`jupyter ssh-cluster output`"""

    description = (
        "Prints what a kernel published while no server listened: text as it was, other kinds by name."
    )
    examples = """
    jupyter-ssh-cluster output 4f2a

jupyter-ssh-cluster output 4f2a --follow

jupyter-ssh-cluster output 4f2a --json > messages.jsonl
    """

    def work(self) -> None:
        for message in self.cluster.output(self.the_kernel(self.prefix), follow=self.follow):
            if self.json_output:
                print(json.dumps(message_to_json(message), ensure_ascii=False), flush=True)
            else:
                show(message)


class SshClusterLogs(ReadingCommand):
    """`jupyter ssh-cluster logs`"""

    description = "Prints the log of a kernel: what it, or a program that it started, wrote past Jupyter."
    examples = """
    jupyter-ssh-cluster logs 4f2a --lines 20

jupyter-ssh-cluster logs 4f2a --follow
    """
    lines = Int(0, min=0, help="Only so many of the last lines; 0 means all that there are.").tag(config=True)
    aliases = {"lines": "SshClusterLogs.lines", **HostsCommand.aliases}

    def work(self) -> None:
        pieces = self.cluster.log(self.the_kernel(self.prefix), follow=self.follow)
        self._print(next(pieces, "").splitlines()[-self.lines :])
        rest = ""
        for piece in pieces:
            *lines, rest = (rest + piece).split("\n")
            self._print(lines)
        self._print([rest] if rest else [])

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            print(json.dumps({"line": line}, ensure_ascii=False) if self.json_output else line)
        sys.stdout.flush()


def show(message: dict[str, Any]) -> None:
    """A message for people: streams to where they belong, results as text, errors to standard error."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        out = sys.stderr if content.get("name") == "stderr" else sys.stdout
        print(content.get("text", ""), end="", file=out, flush=True)
    elif kind in ("execute_result", "display_data", "update_display_data"):
        print(shown(content.get("data") or {}), flush=True)
    elif kind == "error":
        text = "\n".join(content.get("traceback") or [f"{content.get('ename')}: {content.get('evalue')}"])
        print(text if sys.stderr.isatty() else _COLORS.sub("", text), file=sys.stderr, flush=True)


def shown(data: dict[str, Any]) -> str:
    """The text among the representations, and the names and sizes of the others."""
    others = [f"{kind}, {memory(len(str(value)))}" for kind, value in data.items() if kind != "text/plain"]
    named = f"[{'; '.join(others)}]" if others else ""
    return " ".join(part for part in (str(data.get("text/plain", "")), named) if part)


def message_to_json(message: dict[str, Any]) -> dict[str, Any]:
    """As Jupyter has it, with buffers in base64."""
    return {**message, "buffers": [base64.b64encode(buffer).decode() for buffer in message["buffers"]]}
