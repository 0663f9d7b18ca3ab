"""The control channel to one host's listener: requests, replies, events, each a JSON object on a line of its own.

Nothing of a request is ever logged: it holds keys and environments.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import asyncssh

from ..errors import (
    ConnectionLostError,
    HostError,
    HostSetupError,
    HostUnreachableError,
    LaunchTimeoutError,
    ProtocolError,
    ProvisionerError,
    TooLargeError,
)
from ..traffic import Receiver, Writer
from .bootstrap import MarkerSearch, TooMuchNoise, local_command, new_marker, preface, remote_command
from .channels import Channels
from .errors import lost
from .frames import FrameBuffer
from .listener_errors import exception_of, largest, no_bridge
from .run_as import RunAs, refused
from .wire import ProcessWire, SessionWire, Wire

PROTOCOL = 1
CHANNEL_TIMEOUT = 10.0
"""Seconds in which a relay has to be connected."""
MAX_REQUEST = 8 << 20
"""Bytes of a request; a listener takes no more."""


class Control:
    """Starts a bridge and talks to the listener through it. Any number of requests may be under way at once.

    Args:
        host: the entry, for messages.
        on_event: gets each event.
        on_lost: called once when the channel has ended, with the reason; not after `close()`.
        run_as: whose listener it is, if not that of the user who logs in.
    """

    def __init__(
        self,
        host: str,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[ProvisionerError], None],
        run_as: RunAs | None = None,
    ) -> None:
        self.host = host
        self.run_as = run_as
        self.failure: ProvisionerError | None = None
        self._on_event = on_event
        self._on_lost: Callable[[ProvisionerError], None] | None = on_lost
        self._marker = new_marker()
        self._search = MarkerSearch(self._marker)
        self._frames = FrameBuffer()
        self._channels = Channels()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._turn = asyncio.Lock()
        self._wire: Wire | None = None
        self._setup_error: str | None = None
        self._greeted = False

    async def open_session(self, connection: asyncssh.SSHClientConnection) -> None:
        """Start the bridge over SSH. Raises asyncssh.Error."""
        wire = SessionWire(self._received, self._ended)
        await wire.open(connection, remote_command(self._marker, self._user))
        self._wire = wire

    async def open_process(self) -> None:
        """Start the bridge on this machine. Raises OSError."""
        wire = ProcessWire(self._received, self._ended)
        await wire.open(local_command(self._marker, self._user))
        self._wire = wire

    @property
    def _user(self) -> str | None:
        return self.run_as.user if self.run_as is not None else None

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
        if self.failure is not None:
            raise self.failure
        assert self._wire is not None
        return self._channels.open(number, receiver, self._wire)

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
                f"the request '{op}' has {len(line) >> 20} MB, at most {MAX_REQUEST >> 20} are taken; {largest(params)}",
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
                    self._channels.received(*item)
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
        stderr = self._wire.stderr if self._wire is not None else b""
        asked_sudo = self._search.trouble not in ("", "no-python") and not self._search.done
        if self.run_as is not None and asked_sudo:
            return refused(self.host, self.run_as, self._search, stderr)
        return no_bridge(self.host, self._search, stderr)

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
        self._channels.lost(self.failure)
