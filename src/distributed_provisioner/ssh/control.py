"""The control channel to one host's listener: requests, replies, events, each a JSON object on a line of its own.

Nothing of a request is ever logged: it holds keys and environments.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import asyncssh

from ..errors import (
    ConnectionLostError,
    HostDrainedError,
    HostError,
    HostSetupError,
    HostUnreachableError,
    InterpreterNotFoundError,
    LauncherExitedError,
    LaunchError,
    LaunchTimeoutError,
    PortRangeExhaustedError,
    ProtocolError,
    ProvisionerError,
    TooLargeError,
)
from ..traffic import Receiver, Writer
from .bootstrap import PYTHONS, MarkerSearch, TooMuchNoise, new_marker, preface, words
from .errors import lost
from .frames import FrameBuffer, frame
from .wire import ProcessWire, SessionWire, Wire

PROTOCOL = 1
MAX_EARLY = 16
"""Channels of which something is kept before their openers run. A relay says nothing before it was greeted."""
CHANNEL_TIMEOUT = 10.0
"""Seconds in which a relay has to be connected."""
MAX_REQUEST = 8 << 20
"""Bytes of a request; a listener takes no more."""

_log = logging.getLogger(__name__)


class NeedBundle(LaunchError):
    """The host has not (or no longer) the files that a launch needs: ship them and ask again."""


class Control:
    """Starts a bridge and talks to the listener through it. Any number of requests may be under way at once.

    Args:
        host: the entry, for messages.
        on_event: gets each event.
        on_lost: called once when the channel has ended, with the reason; not after `close()`.
    """

    def __init__(
        self,
        host: str,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[ProvisionerError], None],
    ) -> None:
        self.host = host
        self.failure: ProvisionerError | None = None
        self._on_event = on_event
        self._on_lost: Callable[[ProvisionerError], None] | None = on_lost
        self._marker = new_marker()
        self._search = MarkerSearch(self._marker)
        self._frames = FrameBuffer()
        self._channels: dict[int, Receiver] = {}
        self._early: dict[int, list[bytes]] = {}
        """What came on channels of which the reply has not been read yet."""
        self._last_channel = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._turn = asyncio.Lock()
        self._wire: Wire | None = None
        self._setup_error: str | None = None
        self._greeted = False

    async def open_session(self, connection: asyncssh.SSHClientConnection) -> None:
        """Start the bridge over SSH. Raises asyncssh.Error."""
        wire = SessionWire(self._received, self._ended)
        await wire.open(connection, self._marker)
        self._wire = wire

    async def open_process(self) -> None:
        """Start the bridge on this machine. Raises OSError."""
        wire = ProcessWire(self._received, self._ended)
        await wire.open(self._marker)
        self._wire = wire

    async def hello(self, owner: str, client: str) -> dict[str, Any]:
        """Ship the listener's source and greet it, all in one go.

        Raises:
            HostSetupError: no Python, a forced command, no place to write, …; with the host's own words.
            ConnectionLostError: the line broke.
        """
        reply = await self._ask(
            "hello", {"protocol": PROTOCOL, "owner": owner, "client": client}, None, before=preface()
        )
        if reply.get("protocol") != PROTOCOL:
            raise ProtocolError(
                f"The listener on {self.host} speaks protocol {reply.get('protocol')!r}, this server {PROTOCOL}. "
                "Use the same version of distributed-provisioner for all servers of this user.",
                host=self.host,
            )
        self._greeted = True
        return reply

    async def request(
        self, op: str, params: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """Ask and await the reply; `timeout` in seconds.

        Raises:
            ConnectionLostError: the channel ended (or had ended before).
            HostUnreachableError: no answer in time.
            TooLargeError: it was not sent.
            LaunchError, HostSetupError, ProtocolError: what the listener answered.
        """
        return await self._ask(op, params, timeout)

    async def open_channel(self, kernel_id: str, generation: int, receiver: Receiver) -> Writer:
        """A stream to a kernel's relay inside this channel, for hosts where sshd forwards nothing. Raises as `request` does."""
        reply = await self.request(
            "relay", {"kernel_id": kernel_id, "generation": generation, "role": "server"}, CHANNEL_TIMEOUT
        )
        number = int(reply["channel"])
        channel = _Channel(self, number)
        if self.failure is not None:
            raise self.failure
        self._channels[number] = receiver
        self._last_channel = max(self._last_channel, number)
        assert self._wire is not None
        self._wire.on_flow = self._flow
        if not self._wire.is_writable:
            receiver.pause_writing()
        for data in self._early.pop(number, ()):
            asyncio.get_running_loop().call_soon(self._from_channel, number, data)
        return channel

    def write_channel(self, number: int, data: bytes | memoryview) -> None:
        """Nothing: close it."""
        if self.failure is not None or self._wire is None:
            return
        if not data and self._channels.pop(number, None) is None:
            return
        self._wire.write(b"".join((frame(number, data), data)))

    def _from_channel(self, number: int, data: bytes) -> None:
        receiver = self._channels.get(number)
        if receiver is None:
            if number > self._last_channel and len(self._early) < MAX_EARLY:
                self._early.setdefault(number, []).append(data)  # else it has been closed from this side
        elif data:
            receiver.data_received(data)
        else:
            del self._channels[number]
            receiver.lost()

    def _flow(self, writable: bool) -> None:
        for receiver in list(self._channels.values()):
            if writable:
                receiver.resume_writing()
            else:
                receiver.pause_writing()

    def close(self) -> None:
        """End the bridge; what is under way fails."""
        self.fail(ConnectionLostError(f"The connection to {self.host} was closed.", host=self.host))

    async def wait_closed(self) -> None:
        """Wait, after `close()`, until nothing of the bridge's process is left here."""
        if self._wire is not None:
            await self._wire.wait_closed()

    def fail(self, failure: ProvisionerError) -> None:
        """The line under the channel is gone: what is under way fails, without `on_lost`."""
        self._on_lost = None
        if self._wire is not None:
            self._wire.close()
        self._fail(failure)

    async def _ask(
        self, op: str, params: Mapping[str, Any], timeout: float | None, before: bytes = b""
    ) -> dict[str, Any]:
        number = next(self._numbers)
        line = json.dumps({"id": number, "op": op, **params}).encode() + b"\n"
        if len(line) > MAX_REQUEST:
            raise TooLargeError(
                f"the request '{op}' has {len(line) >> 20} MB, at most {MAX_REQUEST >> 20} are taken; {_largest(params)}",
                host=self.host,
            )
        if self.failure is not None:
            raise self.failure
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            return await asyncio.wait_for(self._exchange(before + line, answer), timeout)
        except LaunchTimeoutError:
            raise  # the host did answer: it is the kernel that was too slow
        except asyncio.TimeoutError:
            raise HostUnreachableError(
                f"{self.host} did not answer '{op}' within {timeout:g} s. It may be overloaded: try again.",
                host=self.host,
            ) from None
        finally:
            self._waiting.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()

    async def _exchange(self, data: bytes, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        assert self._wire is not None
        async with self._turn:
            await self._wire.writable()
            if self.failure is None:
                self._wire.write(data)
        return await answer

    def _received(self, data: bytes) -> None:
        try:
            rest = self._search.feed(data)
            for item in self._frames.feed(rest) if rest else ():
                if isinstance(item, bytes):
                    self._handle(item)
                else:
                    self._from_channel(*item)
        except TooMuchNoise:
            self._over(self._no_bridge())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._over(
                ProtocolError(
                    f"The listener on {self.host} said something that makes no sense ({error}). "
                    "Log in there and end it (its process is called server_listener.py serve); kernels go on.",
                    host=self.host,
                )
            )

    def _handle(self, line: bytes) -> None:
        message = json.loads(line)
        if "event" in message:
            self._on_event(message)
            return
        number = message.get("id")
        if number is None and "error" in message:
            self._setup_error = str(message["error"].get("message"))
            return
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(exception_of(message["error"], self.host))
        else:
            answer.set_result(message["result"])

    def _ended(self, error: BaseException | None) -> None:
        if error is not None or (self._greeted and self._setup_error is None):
            self._over(lost(self.host, error))
        elif self._setup_error is not None:
            self._over(
                HostSetupError(
                    f"{self.host} cannot be used: {self._setup_error}. Mend that there and try again.",
                    host=self.host,
                )
            )
        else:
            self._over(self._no_bridge())

    def _no_bridge(self) -> HostError:
        """The remote command has not run as it should: with the host's own words, and what it may be."""
        stderr = self._wire.stderr if self._wire is not None else b""
        said = words(self._search.noise + b"\n" + stderr)
        told = f" It said instead: {said}" if said else " It said nothing."
        if self._search.no_python:
            return HostSetupError(
                f"{self.host} has no Python 3.8 or newer (looked for {', '.join(PYTHONS)} on the PATH and in /usr/bin, "
                "/usr/local/bin and /opt/homebrew/bin). Install python3 there, or put it on the PATH of non-interactive shells.",
                host=self.host,
            )
        if self._search.done:
            return HostSetupError(
                f"{self.host} cannot be used: the listener's bridge ended at its start.{told} "
                "Mend that there and try again.",
                host=self.host,
            )
        return HostSetupError(
            f"{self.host} lets the user log in but runs no commands.{told} A ForceCommand in its sshd_config, a command= in "
            "authorized_keys, or a login shell like nologin stands in the way: allow commands for this user or key.",
            host=self.host,
        )

    def _over(self, failure: ProvisionerError) -> None:
        if self.failure is not None:
            return
        if self._wire is not None:
            self._wire.close()
        self._fail(failure)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(failure)

    def _fail(self, failure: ProvisionerError) -> None:
        if self.failure is None:
            self.failure = failure
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self.failure)
        channels, self._channels = self._channels, {}
        for receiver in channels.values():
            receiver.lost(self.failure)


class _Channel:
    """What a receiver writes to."""

    def __init__(self, control: Control, number: int) -> None:
        self._control, self._number = control, number

    def write(self, data: bytes | memoryview) -> None:
        if data:
            self._control.write_channel(self._number, data)

    def close(self) -> None:
        self._control.write_channel(self._number, b"")


def exception_of(error: Mapping[str, Any], host: str) -> ProvisionerError:
    """The exception for an `error` object of the listener."""
    kind, message = error.get("type"), str(error.get("message", ""))
    tail = str(error.get("log_tail") or "")
    if kind == "launcher-exited":
        return LauncherExitedError(message, exit_status=error.get("exit_status"), log_tail=tail, host=host)
    if kind in ("setup", "resources", "drained"):
        return _host_error(error, host)
    if kind == "bad-request":
        return ProtocolError(
            f"The listener on {host} refused a request: {message}. Correct that in kernel.json or in the start request; "
            "if it comes from neither, it is a bug of distributed-provisioner: report it.",
            host=host,
        )
    if kind == "unknown-op":
        return ProtocolError(
            f"The listener on {host} refused a request: {message}. It is of another version: "
            "use the same version of distributed-provisioner for all servers of this user.",
            host=host,
        )
    if kind == "timeout":
        failure = LaunchTimeoutError(message, host=host)
        failure.log_tail = tail  # type: ignore[attr-defined] # as LauncherExitedError has it
        return failure
    return _LAUNCH_ERRORS.get(str(kind), LaunchError)(message, host=host)


def _host_error(error: Mapping[str, Any], host: str) -> HostError:
    if error.get("type") == "drained":
        return HostDrainedError(host, str(error.get("message", "")).partition(": ")[2])
    return HostSetupError(
        f"{host} cannot be used: {error.get('message', '')}. Mend that there and try again.", host=host
    )


def _largest(params: Mapping[str, Any]) -> str:
    """What of a launch is the largest: names only, values may be secrets."""
    groups = ("spec_env", "request_env", "argv")
    sizes = {f"its {name}": len(str(value)) for name, value in params.items() if name not in groups}
    for name, value in {**params.get("spec_env", {}), **params.get("request_env", {})}.items():
        sizes[f"the environment variable {name}"] = len(value)
    sizes.update((f"argument {number}", len(item)) for number, item in enumerate(params.get("argv", ())))
    name = max(sizes, key=lambda name: sizes[name], default="it")
    return f"{name} has {sizes.get(name, 0) >> 20} MB of it"


_LAUNCH_ERRORS: dict[str, type[LaunchError]] = {
    "interpreter-not-found": InterpreterNotFoundError,
    "ports-exhausted": PortRangeExhaustedError,
    "need-bundle": NeedBundle,
    "too-large": TooLargeError,
}
