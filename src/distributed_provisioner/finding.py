"""Which kernels of an earlier process of this server run on which hosts: asking the hosts' listeners, and what to make of the answers.

The hosts are the source of truth. All of them are asked at the same time; one that does not answer is asked again until it does, the
sooner if kernels are awaited that were there (`server_kernels.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .errors import ConnectionLostError, HostError, HostUnreachableError, LaunchError, ProvisionerError
from .io_thread import IOThread
from .kernel_log import Log
from .kernel_on_host import exit_reason
from .models import ExitReason, HostAddress, Login, RemoteProcess
from .owner import Presence, presence
from .persistence import process_from_status
from .ssh import Connections, HostConnection
from .ssh.beside import beside

ASK_TIMEOUT = 20.0
"""Seconds that a host gets to answer each question; nobody waits for that but its own task."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a host that could not be reached is asked again."""
REFUSED_PAUSE = 600.0
"""The same for one that is there and refuses us: many tries may look like an attack."""
AWAITED_PAUSE, AWAITED_REFUSED_PAUSE = 3.0, 30.0
"""The longest of both for a host whose kernels are awaited, as people are."""
UNCLEAR_PAUSE = 1.0
"""The same, at first, for kernels that cannot be told yet: a launch is being undone, a dead line is about to be noticed."""
LOOK_INTERVAL = 2.0


@dataclass(frozen=True)
class Place:
    """A host, and how to log in to it."""

    address: HostAddress
    login: Login


@dataclass(frozen=True)
class Found:
    """A kernel of an earlier process of this server, taken over on its host: what is needed to go on with it here."""

    kernel_id: str
    kernel_name: str
    process: RemoteProcess
    login: Login
    key: str = field(repr=False)
    signature_scheme: str
    encryption: Mapping[str, str] | None = field(repr=False)
    annotations: Mapping[str, Any] = field(repr=False)
    execution_state: str
    """`busy`, `idle`, `starting`, or empty where the host does not know."""
    identity: str = ""
    """The host's when the kernel was known to be there: it changes with a reboot. Empty if it is not known."""

    @property
    def place(self) -> Place:
        return Place(self.process.host, self.login)

    @property
    def launch(self) -> tuple[str, int]:
        """Which launch of which kernel it is."""
        return self.kernel_id, self.process.generation


@dataclass(frozen=True)
class Verdict:
    """What is to become of the kernels on a host."""

    adopt: list[Mapping[str, Any]]
    unclear: list[Mapping[str, Any]]
    """Look again in a moment."""
    ended: list[Mapping[str, Any]]
    """Ours, and no more."""
    others: list[Mapping[str, Any]] = field(default_factory=list)
    """A living process of this server has them."""


@dataclass(frozen=True)
class Answer:
    """What a host has told."""

    place: Place
    identity: str
    """The host's: another one after a reboot."""
    taken: Sequence[Found] = ()
    """What is this process's from now on."""
    unclear: Sequence[Mapping[str, Any]] = ()
    """Statuses of those that are asked for again."""
    ended: Sequence[Mapping[str, Any]] = ()
    """Statuses of those that are no more."""
    others: Sequence[Mapping[str, Any]] = ()
    """Statuses of those that a living process of this server has."""

    def end_of(self, kernel: Found) -> tuple[ExitReason, str] | None:
        """Why a kernel that was there is no more, and the end of its log; None if it is, or may be."""
        if self.names(kernel, (*self.unclear, *self.others)):
            return None
        if kernel.kernel_id in [each.kernel_id for each in self.taken]:
            return None
        if kernel.identity and kernel.identity != self.identity:
            return ExitReason(None, "host rebooted", "its host was restarted"), ""
        for status in self.ended:
            if status.get("kernel_id") == kernel.kernel_id:
                return exit_reason(status), str(status.get("log_tail") or "")
        return ExitReason(None, "unknown", "its host does not know it any more"), ""

    def names(self, kernel: Found, statuses: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a kernel is among these."""
        return any(status.get("kernel_id") == kernel.kernel_id for status in statuses)


def judge(
    statuses: Iterable[Mapping[str, Any]],
    owner: str,
    presence_of: Callable[[str, bool], Presence] = presence,
    is_ours: Callable[[Mapping[str, Any]], bool] = lambda status: False,
) -> Verdict:
    """Decide about kernels by their statuses: only those of this very server whose process is gone are touched.

    Args:
        is_ours: whether this process has asked for a kernel already, and did not hear the answer.
    """
    verdict = Verdict([], [], [])
    for status in statuses:
        if owner.endswith(":") or status.get("owner") != owner:
            continue
        server = presence_of(str(status.get("client") or ""), bool(status.get("server_connected")))
        if is_ours(status):
            server = "gone"
        state = status.get("state")
        if server == "alive":
            verdict.others.append(status)
        elif state == "exited":
            verdict.ended.append(status)
        elif state == "running" and server == "gone":
            verdict.adopt.append(status)
        elif state in ("running", "starting"):
            verdict.unclear.append(status)
    return verdict


def newest(found: Sequence[Found]) -> tuple[list[Found], list[Found]]:
    """Of several launches of one kernel the last one, and the others: a restart elsewhere may have left one behind."""
    kept: dict[str, Found] = {}
    for each in sorted(found, key=lambda item: item.process.generation):
        kept[each.kernel_id] = each
    others = [each for each in found if each.process.generation < kept[each.kernel_id].process.generation]
    return list(kept.values()), others


class Search:
    """Asks hosts for kernels, in the background, from `start()` on.

    Args:
        places: the hosts; those of `first` are the ones that `wait` waits for.
        deliver: gets what they answer, on the I/O thread.
        awaited: kernels that were on these hosts.
    """

    def __init__(
        self,
        places: Sequence[Place],
        first: Sequence[Place],
        deliver: Callable[[Answer], None],
        log: Log,
        awaited: Iterable[Found] = (),
    ) -> None:
        self.places = list(dict.fromkeys([*first, *places]))
        self.answered: set[Place] = set()
        self._first = set(first)
        self._deliver = deliver
        self._log = log
        self._awaited = {kernel.launch: kernel.place for kernel in awaited}
        self._changed = threading.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._over: set[Place] = set()

    def start(self) -> None:
        IOThread.current().submit(self._start())

    def wait(self, timeout: float) -> None:
        """Wait, for at most `timeout` seconds, until each of the first hosts has answered or failed once."""
        with self._changed:
            self._changed.wait_for(lambda: self._first <= self._over, timeout)

    def stop(self) -> None:
        """Ask nobody any more."""
        with suppress(RuntimeError):  # the I/O thread has ended
            IOThread.current().submit(self._stop())

    async def _start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._pursue(place)) for place in self.places]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _pursue(self, place: Place) -> None:
        """Ask one host until all is clear there."""
        pause, unclear = FIRST_PAUSE, UNCLEAR_PAUSE
        while True:
            try:
                clear = await self._ask(place)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._told(place)
                known = isinstance(error, ProvisionerError)
                log = self._log.info if known and pause == FIRST_PAUSE else self._log.debug
                what = str(error) if known else repr(error)
                log("[host=%s] cannot be asked for kernels of an earlier run: %s", place.address, what)
                awaited = place in self._awaited.values()
                if isinstance(error, HostUnreachableError | ConnectionLostError):
                    await self._pause(place, pause)
                else:
                    await self._pause(place, AWAITED_REFUSED_PAUSE if awaited else REFUSED_PAUSE)
                pause = min(pause * 2, AWAITED_PAUSE if awaited else LONGEST_PAUSE)
                continue
            self.answered.add(place)
            self._told(place)
            if clear:
                return
            await asyncio.sleep(unclear)
            unclear = min(unclear * 1.2, LONGEST_PAUSE)

    async def _pause(self, place: Place, seconds: float) -> None:
        """Wait, or until somebody else (a launch) has reached the host."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_INTERVAL))
            if Connections.current().get(place.address, place.login).state == "connected":
                return

    def _told(self, place: Place) -> None:
        with self._changed:
            self._over.add(place)
            self._changed.notify_all()

    async def _ask(self, place: Place) -> bool:
        """Take over what is ours on a host; whether all is clear there."""
        connections = Connections.current()
        connection = connections.get(place.address, place.login)
        identity = (await connection.connect()).identity
        reply = await connection.request("list", timeout=ASK_TIMEOUT)
        owner, client = await connections.names()

        def is_ours(status: Mapping[str, Any]) -> bool:
            launch = status.get("kernel_id"), status.get("generation")
            return launch in self._awaited and status.get("client") == client

        verdict = await beside(lambda: judge(reply["kernels"], owner, is_ours=is_ours))
        for status in verdict.ended:
            await self._let_rest(connection, status)
        adopted: list[Mapping[str, Any]] = []
        if verdict.adopt:
            names = [
                {name: status[name] for name in ("kernel_id", "generation", "client")}
                for status in verdict.adopt
            ]
            adopted = (await connection.request("adopt", timeout=ASK_TIMEOUT, kernels=names))["kernels"]
        taken = [found(place, status, identity) for status in adopted if status.get("state") == "running"]
        # What has exited, or was taken by somebody else, between the two questions is asked for again.
        unclear = [*verdict.unclear, *(status for status in adopted if status.get("state") != "running")]
        self._deliver(Answer(place, identity, taken, unclear, verdict.ended, verdict.others))
        return not unclear

    async def _let_rest(self, connection: HostConnection, status: Mapping[str, Any]) -> None:
        """Say how a kernel ended while nobody was there. What ended well is forgotten; of the others, log and output can be read until
        their lease is over."""
        kernel_id, why = status["kernel_id"], status.get("detail") or status.get("reason") or "nobody saw how"
        if status.get("code") == 0 or status.get("reason") in ("superseded", "orphaned"):
            names = {"kernel_id": kernel_id, "generation": status["generation"]}
            with suppress(HostError, LaunchError):
                await connection.request("forget", timeout=ASK_TIMEOUT, keep_log=False, **names)
            self._log.info(
                "[kernel=%s host=%s] has ended while no server was there: %s",
                kernel_id[:4],
                connection.address,
                why,
            )
        else:
            self._log.warning(
                "[kernel=%s host=%s] has ended while no server was there: %s",
                kernel_id[:4],
                connection.address,
                why,
            )


def found(place: Place, status: Mapping[str, Any], identity: str) -> Found:
    """What the host's answer to `adopt` says of one kernel."""
    return Found(
        kernel_id=str(status["kernel_id"]),
        kernel_name=str(status["kernel_name"]),
        process=process_from_status(place.address, status),
        login=place.login,
        key=str(status["key"]),
        signature_scheme=str(status.get("signature_scheme") or "hmac-sha256"),
        encryption=status.get("encryption") or None,
        annotations=dict(status.get("annotations") or {}),
        execution_state=str(status.get("execution_state") or ""),
        identity=identity,
    )


def identity_of(kernel: Found) -> str:
    """The identity of the host where it runs, if that is connected. Call it on the I/O loop."""
    welcome = Connections.current().get(kernel.process.host, kernel.login).welcome
    return welcome.identity if welcome is not None else ""


def end_later(kernel: Found) -> None:
    """End a kernel that a later launch has taken the place of."""

    async def end() -> None:
        connection = Connections.current().get(kernel.process.host, kernel.login)
        connection.end_later(kernel.kernel_id, kernel.process.generation)

    IOThread.current().submit(end())
