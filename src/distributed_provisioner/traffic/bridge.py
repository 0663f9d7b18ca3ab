"""The server's half of one kernel's relay: near ends for ZMQ clients, one stream of records to the host.

Runs on the I/O loop. It lives as long as the kernel's endpoints do: over cut lines, and over restarts of the kernel on its host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .clients import Client, Owner
from .echo import Echo
from .farewells import Farewells
from .link import Link, Opener
from .messages import Activity, Author, asked
from .publisher import Publisher
from .routes import Holds, Routes
from .shared import relay_wire as wire
from .unanswered import Request, Unanswered

TELL_AFTER = 5.0
"""Seconds without its host after which a running cell says so."""
LOOK_AGAIN = 1.0
"""Seconds after which a cell that was run meanwhile says so, too."""
HICCUP = 1.0
"""Seconds that a stream may be gone, on a line that stands, before anybody is told."""
DRAIN_TIMEOUT = 2.0
QUIET = 0.1
"""Seconds without anything new after which a kernel that has gone has said all it had to say."""

_log = logging.getLogger(__name__)


class Bridge:
    """One kernel's messages, between Jupyter's clients and the relay on its host.

    Args:
        author: signs messages of our own.
        host: for messages to people.
    """

    def __init__(self, author: Author, host: str, name: str) -> None:
        self._author, self._host, self._name = author, host, name
        self._activity = Activity()
        self._link = Link(self, name)
        self._holds = Holds()
        self._unanswered = Unanswered(self._link, author, self._end_request)
        self._activity.listeners.append(self._unanswered.status)
        self._publisher = Publisher(self._link, author, self._activity)
        self._routes: list[Routes] = []
        self._farewells = Farewells(self._link, self._activity, self._routes)
        arrival, leaving = self._publisher.identity_arrived, self._farewells.left
        self._routes += [
            Routes(kind, self._link, self._holds, arrives, leaving, unanswered=watch)
            for kind, arrives, watch in (
                (wire.SHELL, self._asker_arrived, self._unanswered),
                (wire.CONTROL, arrival, None),
                (wire.STDIN, arrival, None),
            )
        ]
        self._echo = Echo()
        self._kernel_gone = False
        self._away = False
        self._told: set[str] = set()
        """Requests whose cells say that the host is away."""
        self._greeted = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def protocols(self) -> list[Callable[[], Client]]:
        """What serves connections to the near ends, in the order of `models.CHANNELS`."""
        shell, control, stdin = self._routes
        ends: list[tuple[Owner, bytes]] = [
            (shell, b"ROUTER"), (self._publisher, b"XPUB"), (stdin, b"ROUTER"), (control, b"ROUTER"), (self._echo, b"REP"),
        ]  # fmt: skip
        return [_serving(owner, socket_type) for owner, socket_type in ends]

    @property
    def count(self) -> int:
        """How many clients there are."""
        return self._publisher.count + sum(len(routes.clients) for routes in self._routes)

    @property
    def is_up(self) -> bool:
        """Whether the relay is connected."""
        return self._link.is_up

    def _asker_arrived(self, client: Client) -> None:
        """A client on shell: the relay connects for it before it has said anything, which saves its first request the time."""
        self._link.tell({"tell": "open", "identities": [client.identity.hex()]})
        self._publisher.identity_arrived(client)

    def resume(self, opener: Opener) -> None:
        """The host is (again) reached by `opener`."""
        self._link.resume(opener)

    def suspend(self) -> None:
        """The host is away: clients wait, and are told."""
        self._link.suspend()
        self._later("away", 0.0, self._host_away)

    def relaunched(self) -> None:
        """Another process is the kernel now, on the same host."""
        self._echo.beats, self._kernel_gone = True, False
        self._activity.running.clear()
        self._unanswered.clear()

    def rest(self) -> None:
        """The kernel has ended: its heart does not beat until another one is there."""
        self._echo.beats = False

    async def drain(self) -> None:
        """The kernel has ended: hand on what it still said, for at most `DRAIN_TIMEOUT` seconds."""
        self.rest()
        await self._quiet()
        self._publisher.hurry()

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        deadline, seen, since = loop.time() + DRAIN_TIMEOUT, self._link.count, loop.time()
        while (self._link.is_up or self._link.is_opening) and loop.time() < deadline:
            await asyncio.sleep(0.02)
            if self._link.count != seen or not self._kernel_gone:
                seen, since = self._link.count, loop.time()
            elif loop.time() - since >= QUIET:
                return

    def say(self, text: str) -> None:
        """A line on standard error of each cell that is being worked on."""
        for parent in list(self._activity.running.values()):
            self._publisher.publish(self._author.error_text(text, parent))

    def close(self) -> None:
        """End all connections."""
        self._link.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._holds.close()
        self._unanswered.clear()
        self._farewells.close()
        for routes in self._routes:
            routes.close()
        self._publisher.close()
        self._echo.close()

    # --- what the link tells --------------------------------------------------------------------------------------------------

    def piece(self, kind: int, identity: bytes, flags: int, number: int, payload: memoryview) -> None:
        if kind == wire.IOPUB:
            self._publisher.piece(flags, number, payload)
        else:
            self._routes[kind].piece(identity, flags, number, payload)

    def welcome(self, said: dict[str, Any], successor: bool) -> None:
        self._kernel_gone = said.get("kernel") == "gone"
        if successor:
            self._begin_anew()
        elif self._greeted:
            self._publisher.lump_comes()
        else:
            self._activity.state = self._activity.state or str(said.get("execution_state") or "")
            expected = {bytes.fromhex(identity) for identity in said.get("clients", ())}
            self._farewells.expect(expected)
            self._publisher.welcome(expected)
            for client in [client for routes in self._routes for client in routes.clients]:
                self._publisher.identity_arrived(client)  # they were quicker than the relay
        self._greeted = True
        self._told.clear()
        for name in list(self._timers):
            self._timers.pop(name).cancel()
        if self._away:
            self._away = False
            self._status(self._activity.state or "idle")

    def told(self, what: dict[str, Any]) -> None:
        if what.get("tell") == "kernel":
            self._kernel_gone = what.get("state") == "gone"
        elif what.get("tell") == "superseded":
            _log.warning("[%s] another server has taken the kernel over", self._name)
            self._link.stay_away()

    def stream_lost(self) -> None:
        self._later("away", HICCUP, self._host_away)

    def room(self, kind: int) -> None:
        self._routes[kind].room()

    # --- what people are told -------------------------------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        self._publisher.begin_anew()
        self._publisher.lump_comes()
        for routes in self._routes:
            routes.begin_anew()
        identities = {client.identity.hex() for routes in self._routes for client in routes.clients}
        self._link.tell({"tell": "open", "identities": sorted(identities)})
        self.say(
            f"[distributed-provisioner] The relay on {self._host} that carries this kernel's messages was ended from outside and has been "
            "started again. The kernel goes on; some of its output may be missing."
        )
        self._unanswered.relay_lost()

    def _end_request(self, request: Request) -> None:
        """It went with a relay: the client must not wait for ever."""
        lost = f"lost with the relay on {self._host}, which was ended from outside"
        text = (
            f"The end of this cell was {lost}. Look at its variables, or run it again."
            if request.busy or request.idle or request.replied
            else f"This cell was {lost}, and was not run. Run it again."
        )
        self._publisher.publish(self._author.error_text(f"[distributed-provisioner] {text}", request.header))
        if not request.replied:
            self._routes[wire.SHELL].answer(request.identity, self._author.reply(text, request.header))
        if not request.idle:
            self._activity.running.pop(str(request.header.get("msg_id")), None)
            self._publisher.publish(self._author.status("idle", request.header))

    def _host_away(self) -> None:
        if self._away:
            return
        self._away = True
        self._status("reconnecting")
        self._later("told", TELL_AFTER, self._say_away)

    def _say_away(self) -> None:
        """In each cell that is being worked on, or waits for the host; again and again, for those that come meanwhile."""
        away = f"[distributed-provisioner] {self._host} cannot be reached at the moment."
        for parent in list(self._activity.running.values()):
            self._tell(
                parent, f"{away} The cell goes on there, and its output is shown as soon as the host is back."
            )
        for beginning in self._link.outbox.beginnings(wire.SHELL):
            if (request := asked(beginning)) is not None:
                self._tell(request, f"{away} The cell is run as soon as the host is back.")
        self._later("told", LOOK_AGAIN, self._say_away)

    def _tell(self, request: Mapping[str, Any], text: str) -> None:
        """Say something in a request's cell, once for each time that the host is away."""
        if (name := str(request.get("msg_id"))) not in self._told:
            self._told.add(name)
            self._publisher.publish(self._author.error_text(text, request))

    def _status(self, state: str) -> None:
        self._publisher.publish(self._author.status(state, {}))

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()
        if seconds <= 0:
            call()
        else:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, call)


def _serving(owner: Owner, socket_type: bytes) -> Callable[[], Client]:
    return lambda: Client(owner, socket_type)
