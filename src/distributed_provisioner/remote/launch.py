"""A launch, from the request to five sockets that answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time

from kernels import Kernel, OpError, merged
from processes import ended_at_logout, in_group, members
from program import Program
from server_listener import CHANNELS, PortsExhausted, remove, start_time, write_connection_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine

    from connections import Connection
    from listener import Listener

KERNEL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class Launch:
    """One `launch`: environment, directory, log, process, report, answering sockets."""

    def __init__(self, listener: Listener, connection: Connection, request: dict[str, Any]) -> None:
        self.listener, self.connection, self.request = listener, connection, request
        kernel_id = request["kernel_id"]
        if not isinstance(kernel_id, str) or not KERNEL_ID.fullmatch(kernel_id):
            raise OpError(
                "bad-request", "a kernel id has letters, digits, '_', '.', '-' and at most 200 of them"
            )
        if not request["argv"]:
            raise OpError("bad-request", "the kernel specification has an empty argv")
        self.before = self.earlier()
        drained, reason = listener.drain.state()
        if drained and self.before is None:  # a kernel that is here may be restarted
            raise OpError("drained", "the host takes no new kernels" + (f": {reason}" if reason else ""))
        kept = self.before.annotations if self.before is not None else {}
        self.annotations = merged(kept, request.get("annotations") or {})
        self.cancelled = False
        self.phases: dict[str, float] = {}
        self.report: asyncio.Future[dict[str, Any]] | None = None

    def earlier(self) -> Kernel | None:
        """The launch of this kernel that this one takes the place of. Raises OpError where there is none older."""
        known = self.listener.kernels.get(self.request["kernel_id"])
        if known is None:
            return None
        if known.owner != self.connection.owner:
            raise OpError("bad-request", f"another server of this user has a kernel {known.kernel_id}")
        if known.generation >= self.request["generation"]:
            raise OpError("superseded", f"kernel {known.kernel_id} is at generation {known.generation}")
        return known

    async def supersede(self) -> None:
        """End what ran under this kernel id before, and take its place."""
        listener, request, before = self.listener, self.request, self.before
        keeps_relay = before is not None and self.wants_relay() and listener.relays.lives(before)
        if before is not None:
            before.reason = before.reason or "superseded"
            await listener.discard(before, keep_log=True, keep_relay=keeps_relay)
            keeps_relay = keeps_relay and listener.relays.lives(before)  # else a `forget` was quicker
            try:
                self.earlier()  # a third launch may have come meanwhile, or a cancellation
                if self.cancelled:
                    raise OpError("cancelled", f"the launch of {request['kernel_id']} was cancelled")
            except OpError:
                await self.clear(before)
                raise
        home = self.choose_home(keeps_relay)
        self.kernel = Kernel(
            home,
            kernel_id=request["kernel_id"],
            generation=request["generation"],
            kernel_name=request.get("kernel_name", ""),
            owner=self.connection.owner,
            client=self.connection.client,
            transport=request["transport"],
            key=request["key"],
            encryption=request.get("encryption"),
            orphan_timeout=float(request.get("orphan_timeout", 0)),
            interrupt_target=request.get("interrupt_target", "group"),
            annotations=self.annotations,
            output_limit=int(request.get("output_limit") or Kernel.OUTPUT_LIMIT),
        )
        if before is not None and keeps_relay:
            listener.relays.hand_on(before, self.kernel)
        self.kernel.watchers.add(self.connection)
        listener.kernels[self.kernel.kernel_id] = self.kernel

    async def clear(self, before: Kernel) -> None:
        """Nothing takes the place of what has ended: remove what was kept of it."""
        await self.listener.relays.end(before)
        current = self.listener.kernels.get(before.kernel_id)
        if current is None or current.home != before.home:
            remove(before.home)
        if self.cancelled and before.private_log:
            remove(before.log)

    def choose_home(self, keeps_relay: bool) -> str:
        """The kernel's directory: after a restart the same, where that keeps endpoints or the relay's socket. Raises OpError."""
        listener, request = self.listener, self.request
        listener.counter += 1
        home = os.path.join(listener.directory, str(listener.counter))
        if self.before is not None and (keeps_relay or (request["transport"] == "ipc" and request.get("ip"))):
            home = self.before.home
        try:
            os.makedirs(home, mode=0o700, exist_ok=keeps_relay)
        except OSError as error:
            raise OpError("resources", f"cannot make {home}: {error.strerror}") from error
        return home

    def wants_relay(self) -> bool:
        """A relay speaks without encryption; for "direct" the server comes to the kernel itself."""
        request = self.request
        return (
            bool(request.get("relay")) and not request.get("encryption") and request["transport"] != "direct"
        )

    async def run(self) -> dict[str, Any]:
        kernel = self.kernel
        timeout = float(self.request.get("launch_timeout", 30))
        self.program = Program(self.request, kernel, self.listener.places)
        try:
            arrived = time.monotonic()
            async with self.listener.admission.turn(self.waits):
                self.phases["turn"] = time.monotonic() - arrived
                await asyncio.wait_for(self.start(), timeout)
            kernel.state = "running"
            kernel.save()
            self.listener.prefork.prepare(self.program)
        except asyncio.TimeoutError:
            tail = kernel.log_tail()
            await self.undo()
            raise OpError("timeout", f"not ready after {timeout:g} s", log_tail=tail) from None
        except PortsExhausted as error:
            await self.undo()
            raise OpError("ports-exhausted", str(error)) from None
        except OSError as error:
            await self.undo()
            raise OpError("resources", f"{error.strerror}: {error.filename or kernel.home}") from None
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.undo()))
            raise
        names = (
            "pid",
            "start",
            "kernel_pid",
            "pgid",
            "transport",
            "ip",
            "ports",
            "directory",
            "log",
            "relay",
            "prefork",
        )
        reply = {name: getattr(kernel, name) for name in names}
        return dict(reply, **kernel.secrets(), notes=self.program.notes, phases=self.phases)

    def waits(self, text: str) -> None:
        self.listener.tell(self.kernel, "note", text=text, waiting=True)

    async def undo(self) -> None:
        self.kernel.reason = self.kernel.reason or "cancelled"
        await self.listener.discard(self.kernel, keep_log=False)

    async def start(self) -> None:
        kernel, program, begun = self.kernel, self.program, time.monotonic()
        environment, umask, note = await self.listener.login.get()
        if note:
            program.notes.append(note)
        if ended_at_logout():
            program.notes.append(
                "this host ends processes at logout (KillUserProcesses): kernels may not outlive a lost connection"
            )
        environment = program.environment(environment)
        program.choose_directory(environment)
        program.choose_endpoints(
            {port for other in self.listener.kernels.values() for port in other.ports.values()}
        )
        server = await self.listen_for_report() if program.uses_launcher() else None
        try:
            argv = program.arguments(environment)
            if not program.uses_launcher():
                path = os.path.join(kernel.home, "connection.json")
                write_connection_file(path, kernel.connection_info())
            ready = time.monotonic()
            self.phases["environment"] = ready - begun
            if not await self.listener.prefork.start(program, argv, environment, umask, self.start_relay):
                program.start(argv, environment, umask)
            spawned = time.monotonic()
            self.phases["spawn"] = spawned - ready
            kernel.save()  # a later listener ends what nobody waits for any more
            kernel.oom_kills = self.listener.reasons.counters(kernel.pid)
            await self.unless_exited(self.answering())
            self.phases["ready"] = time.monotonic() - spawned
        finally:
            if server is not None:
                server.close()
                remove(os.path.join(kernel.home, "r"))

    async def listen_for_report(self) -> asyncio.AbstractServer:
        report: asyncio.Future[dict[str, Any]] = asyncio.get_event_loop().create_future()
        self.report, kernel = report, self.kernel
        info = kernel.connection_info()
        given = dict(info, kernel_id=kernel.kernel_id, directory=kernel.home, ports=kernel.ports)

        async def reported(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(json.dumps(given).encode() + b"\n")
                line = await reader.readline()
                if line and not report.done():
                    report.set_result(json.loads(line))
            except (OSError, ValueError):
                pass  # rubbish, or a launcher that went away: its exit, or the time-out, will tell
            finally:
                writer.close()

        path = os.path.join(kernel.home, "r")
        server = await asyncio.start_unix_server(reported, path, limit=1 << 20)
        os.chmod(path, 0o600)
        return server

    def start_relay(self) -> None:
        """Early, while the kernel is forked. Where that fails, `answering` tries again, and says why."""
        if self.wants_relay() and not self.listener.relays.lives(self.kernel):
            with contextlib.suppress(OSError):
                self.listener.relays.start(self.kernel)

    async def answering(self) -> None:
        """Return when the kernel can be used, through its relay if it has one."""
        kernel, relays = self.kernel, self.listener.relays
        if self.wants_relay() and not relays.lives(kernel):
            relays.start(kernel)  # while the kernel begins to import
        if self.report is not None:
            report = await self.report
            if "data" in report and "epk" in report:
                kernel.envelope, kernel.ip, kernel.ports = json.dumps(report), "", {}
                await relays.end(kernel)
                return
            self.take(report)
        await kernel.wait_until_answering()
        if kernel.relay:
            await relays.connect(kernel)
        if kernel.kernel_pid != kernel.pid:
            kernel.oom_kills.update(self.listener.reasons.counters(kernel.kernel_pid))

    def take(self, report: dict[str, Any]) -> None:
        """What the launcher says: it may have chosen ports, a key or a transport of its own."""
        kernel = self.kernel
        info = report.get("connection_info", report)
        try:
            ports = {channel: int(info[f"{channel}_port"]) for channel in CHANNELS}
            pid, pgid = int(report.get("pid", kernel.pid)), int(report.get("pgid", kernel.pgid))
        except (KeyError, TypeError, ValueError):
            raise OpError(
                "launcher-exited",
                "the launcher's report makes no sense",
                exit_status=None,
                log_tail=kernel.log_tail(),
            ) from None
        kernel.ports, kernel.ip, kernel.key = ports, info.get("ip", kernel.ip), info.get("key", kernel.key)
        kernel.signature_scheme = info.get("signature_scheme", kernel.signature_scheme)
        if info.get("transport") == "tcp" and kernel.transport == "ipc":
            kernel.transport = "tcp"
        if pid in members(kernel.pid, kernel.start, kernel.pgid) or start_time(pid) == 0:
            kernel.kernel_pid, kernel.kernel_start = pid, start_time(pid)
            kernel.pgid = pgid if in_group(pid, pgid) and pid != kernel.pid else kernel.pgid

    async def unless_exited(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, or raise as soon as the launcher has ended."""
        kernel = self.kernel
        kernel.ending = asyncio.get_event_loop().create_future()
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, kernel.ending], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise OpError(
            "launcher-exited",
            f"{os.path.basename(self.request['argv'][0])} {kernel.detail} before the kernel was ready",
            exit_status=kernel.code,
            log_tail=kernel.log_tail(),
        )
