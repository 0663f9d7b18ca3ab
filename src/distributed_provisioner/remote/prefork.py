"""Kernels that are forked instead of started. The templates that they are forks of run prefork_template.py, one for each kind of kernel.

A template is started after the first launch of its kind, which is cold, and leaves with the listener. Whatever is wrong with one, a launch
falls back to a cold start, and the launch's reply and the listener's log say why.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from prefork_kind import OF_A_LAUNCH, Kind, Unfit, memory_is_short, situation
from prefork_process import Template, TemplateFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict

    from listener import Listener
    from prefork_kind import Key
    from program import Program

    Environment = Dict[str, str]

MOST, MOST_OF_A_KIND = 4, 2
"""Templates that one user has on a host; of one kind there are several where their imports have read variables that differ."""
IDLE = 1800.0
"""Seconds for which an unused template stays, where the launch does not say otherwise."""
AFTER = 0.2
"""Seconds between a launch and the start of a template, which would slow the kernel's first cell down."""
ATTEMPTS = 1
"""How often another template is tried at once where files have changed while the first one was made."""
REFUSED = 60.0
"""Seconds after which a template is tried again that could not be made."""


class Prefork:
    """The templates of a listener."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.templates: list[Template] = []
        """The one that was used last is the last one."""
        self.refused: dict[Key, tuple[float, str]] = {}
        """kind -> (when, why) its template could not be made"""
        self.told = ""

    async def start(
        self,
        program: Program,
        argv: list[str],
        environment: Environment,
        umask: int | None,
        meanwhile: Callable[[], None],
    ) -> bool:
        """Fork a kernel, if that gives the same as a cold start. Else False: then nothing was started, and `kernel.prefork` says why.

        `meanwhile` is called while it is forked, if it is.

        Raises OSError for the kernel's log.
        """
        kernel = program.kernel
        try:
            program.kind = Kind(program.request, argv, environment, own_umask() if umask is None else umask)
            template = self.template_for(program.kind)
            template.used = time.monotonic()
            template.idle = float(program.request.get("prefork_idle") or IDLE)
            self.templates.sort(key=lambda each: each.used)
            log = program.open_log()
            try:
                order = {"argv": argv, "environment": environment, "directory": kernel.directory}
                pid, start, gate = await template.fork(order, log, meanwhile)
            finally:
                os.close(log)
            self.check_situation(template, program.kind.umask, pid, gate)
        except (Unfit, TemplateFailed) as reason:
            kernel.prefork = {"used": False, "why": str(reason)}
            if not getattr(reason, "expected", False):
                self.tell(f"{kernel.kernel_name} starts cold: {reason}")
            return False
        # Nothing is awaited from here on: whoever is cancelled finds the kernel's pid, and it is let go, or ends.
        kernel.pid = kernel.pgid = kernel.kernel_pid = pid
        kernel.start = start
        kernel.prefork = {"used": True, "why": ""}
        program.template = template
        os.write(gate, b"+")
        os.close(gate)
        return True

    def template_for(self, kind: Kind) -> Template:
        """The one that may fork this kernel. Raises Unfit."""
        if memory_is_short():
            for template in list(self.templates):
                template.end("memory is short")
            raise Unfit("memory is short on this host")
        why = ""
        for template in self.of_kind(kind):
            if not template.ready:
                why = why or "the process that is to fork it is being made"
                continue
            name = kind.differs(template.read, template.kind.environment)
            if name:
                why = f"its imports depend on the environment variable {name}"
                continue
            changed = differences(template.pid, kind.umask)
            if not changed:
                return template
            why = f"{changed} of the process that is to fork it is not that of the listener"
            template.end(why)
        when, refused = self.refused.get(kind.key, (0.0, ""))
        if not why and time.monotonic() - when < REFUSED:
            why = refused
        raise Unfit(why or "there is no process yet that could fork it")

    def check_situation(self, template: Template, umask: int, pid: int, gate: int) -> None:
        """Of a kernel at its gate: it may have been forked when its template's was another. Raises Unfit: then it ends."""
        changed = differences(pid, umask)
        if changed:
            os.close(gate)
            template.end("")
            raise Unfit(f"{changed} of the process that was forked for it is not that of the listener")

    def of_kind(self, kind: Kind) -> list[Template]:
        return [template for template in self.templates if template.kind.key == kind.key]

    # making templates

    def prepare(self, program: Program) -> None:
        """Called after a launch that went well: the next one of its kind is to find a template."""
        kind = program.kind
        if program.template is not None:
            program.template.started(program.kernel.pid)
        elif kind is not None:
            asyncio.get_event_loop().call_later(AFTER, self.make, kind)

    def make(self, kind: Kind) -> None:
        """Start a template, unless there is one or can be none."""
        same = self.of_kind(kind)
        when, _ = self.refused.get(kind.key, (0.0, ""))
        if len(same) >= MOST_OF_A_KIND or (when and time.monotonic() - when < REFUSED) or memory_is_short():
            return
        for template in same:
            name = kind.differs(template.read, template.kind.environment)
            # One that depends on what differs from launch to launch would serve one of them alone.
            if not template.ready or not name or OF_A_LAUNCH.fullmatch(name):
                return
        template = Template(kind, self.ended)
        template.idle = IDLE
        try:
            template.start(kind.umask)
        except OSError as error:
            self.tell(f"a process that forks kernels could not be started: {error.strerror}")
            return
        self.templates.append(template)
        for oldest in self.templates[:-MOST]:
            oldest.end("")

    def ended(self, template: Template, why: str) -> None:
        """Told by each when it is over."""
        if template in self.templates:
            self.templates.remove(template)
        if why:
            self.tell(f"the process {template.pid} that forks kernels is given up: {why}")
        if template.again and template.kind.attempts < ATTEMPTS:
            template.kind.attempts += 1
            asyncio.get_event_loop().call_later(AFTER, self.make, template.kind)
        elif why and not template.ready:
            self.refused[template.kind.key] = time.monotonic(), why
            while len(self.refused) > 4 * MOST:
                del self.refused[next(iter(self.refused))]

    def round(self) -> None:
        """Called once a minute: what is not used leaves."""
        for template in list(self.templates):
            if time.monotonic() - template.used > template.idle:
                template.end("")

    def tell(self, text: str) -> None:
        """A line for the listener's log, unless it is the one before."""
        if text != self.told:
            self.told = text
            print(f"prefork: {text}", file=sys.stderr, flush=True)


def differences(pid: int, umask: int) -> str:
    """What of this process a kernel that is forked from, or is, that one would not have; or ""."""
    here, there = situation("self", umask), situation(pid)
    return ", ".join(name for name, value in here.items() if there.get(name) != value)


def own_umask() -> int:
    value = os.umask(0o077)
    os.umask(value)
    return value
