"""All hosts at once: each is asked through a connection of its own, all at the same time, each with a time limit of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from ..errors import ConnectionLostError, HostUnreachableError, LaunchError, ProtocolError, ProvisionerError
from ..io_thread import IOThread
from ..models import HostAddress, Login
from ..ssh import Connections, HostConnection
from .output import RelayStream, messages_of
from .reports import FoundKernel, HostReport, host_from_reply, kernel_from_status

T = TypeVar("T")

ANSWER_TIMEOUT = 15.0
"""Seconds that a host gets to answer, once it is connected."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a kernel that is stopped."""
LOOK_INTERVAL = 0.5
"""Seconds between looks at a log that is followed."""
STATE_INTERVAL = 5.0
"""Seconds between looks at whether a kernel that is followed is still there."""
LOG_LIMIT = 1 << 20


@dataclass(frozen=True)
class Place:
    """A host, and how to log in to it."""

    address: HostAddress
    login: Login = field(default_factory=Login)

    def for_user(self, name: str) -> Place:
        """The same for the kernels of that user, who logs in where the entry says so, else is reached by sudo."""
        return Place(self.address.for_user(name), replace(self.login.for_user(name), run_as=name))


@dataclass(frozen=True)
class Answers(Generic[T]):
    """What the hosts said."""

    given: tuple[T, ...]
    failed: Mapping[str, ProvisionerError]
    """Why the others could not be asked, or what they refused, by host or kernel."""


class NoSuchKernel(LookupError):
    """No kernel has an id that begins so, on the hosts that answered."""

    def __init__(self, prefix: str, failed: Mapping[str, ProvisionerError]) -> None:
        super().__init__(
            f"No kernel's id begins with '{prefix}': `jupyter ssh-cluster kernels` shows those that there are."
        )
        self.failed = failed


class Ambiguous(LookupError):
    """Several kernels have an id that begins so."""

    def __init__(self, prefix: str, kernel_ids: Sequence[str]) -> None:
        super().__init__(
            f"The ids of {len(kernel_ids)} kernels begin with '{prefix}': {', '.join(kernel_ids)}. Write more of it."
        )


class Cluster:
    """The hosts of an operator.

    All methods block until every host has answered or failed; Ctrl-C ends what is under way. Raises ProvisionerError only where one
    kernel or host is asked.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)

    # --- looking ------------------------------------------------------------------------------------------------------------------------

    def kernels(self, *, usage: bool = True) -> Answers[FoundKernel]:
        """Every kernel of this user, by host and age.

        Args:
            usage: whether to find out about memory and processor time, too.
        """
        replies = self._ask_all("list", usage=usage)
        found: list[FoundKernel] = []
        failed = dict(replies.failed)
        for place, reply in replies.given:
            try:
                kernels = [kernel_from_status(place.address, status) for status in reply["kernels"]]
            except (KeyError, TypeError, ValueError) as error:
                failed[str(place.address)] = _nonsense(place, error)
            else:
                found += sorted(kernels, key=lambda kernel: (kernel.started, kernel.kernel_id))
        return Answers(tuple(found), failed)

    def hosts(self) -> Answers[HostReport]:
        replies = self._ask_all("list")
        found: list[HostReport] = []
        failed = dict(replies.failed)
        for place, reply in replies.given:
            try:
                found.append(host_from_reply(place.address, reply))
            except (KeyError, TypeError, ValueError) as error:
                failed[str(place.address)] = _nonsense(place, error)
        return Answers(tuple(found), failed)

    def find(self, prefixes: Sequence[str]) -> Answers[FoundKernel]:
        """The kernels whose ids begin so, each once. A kernel that is on two hosts (one was away) counts as both.

        Raises:
            NoSuchKernel, Ambiguous: naming the first prefix for which that is so.
        """
        answers = self.kernels(usage=False)
        chosen: list[FoundKernel] = []
        for prefix in prefixes:
            matching = [kernel for kernel in answers.given if kernel.kernel_id.startswith(prefix)]
            ids = sorted({kernel.kernel_id for kernel in matching})
            if prefix in ids:
                matching, ids = [kernel for kernel in matching if kernel.kernel_id == prefix], [prefix]
            if not ids:
                raise NoSuchKernel(prefix, answers.failed)
            if len(ids) > 1:
                raise Ambiguous(prefix, ids)
            chosen += [kernel for kernel in matching if kernel not in chosen]
        return Answers(tuple(chosen), answers.failed)

    # --- changing -----------------------------------------------------------------------------------------------------------------------

    def stop(self, kernels: Sequence[FoundKernel]) -> Answers[FoundKernel]:
        """End kernels, on all hosts at once. What is kept of one whose server is gone is removed; a server that lives does that itself."""

        async def stop(kernel: FoundKernel) -> FoundKernel:
            which = {"kernel_id": kernel.kernel_id, "generation": kernel.generation}
            connection = await self._connection(self._place(kernel))
            if kernel.state != "exited":
                await self._request(connection, "end", grace=GRACE, **which)
            if kernel.server == "orphaned":
                await self._request(connection, "forget", keep_log=False, **which)
            return kernel

        return self._all([(kernel.kernel_id, partial(stop, kernel)) for kernel in kernels])

    def drain(self, places: Sequence[Place], on: bool, reason: str = "") -> Answers[tuple[Place, bool]]:
        """Let hosts take no new kernels, or take them again; with what they then are: root may have drained one for all users."""

        async def drain(place: Place) -> tuple[Place, bool]:
            connection = await self._connection(place)
            reply = await self._request(connection, "drain", on=on, reason=reason)
            return place, bool(reply.get("drained"))

        return self._all([(str(place.address), partial(drain, place)) for place in places])

    # --- reading ------------------------------------------------------------------------------------------------------------------------

    def log(self, kernel: FoundKernel, *, follow: bool = False) -> Iterator[str]:
        """The text of a kernel's log, then, with `follow`, what is added, until the kernel is no more."""
        return _each(self._log(kernel, follow))

    def output(self, kernel: FoundKernel, *, follow: bool = False) -> Iterator[dict[str, Any]]:
        """What a kernel published while no server listened, then, with `follow`, what it publishes: Jupyter's messages, with
        `header`, `parent_header`, `metadata`, `content` and `buffers` (bytes).

        Raises:
            ProvisionerError: its host cannot be asked; nothing is kept for this kernel.
        """
        return _each(self._output(kernel, follow))

    async def _log(self, kernel: FoundKernel, follow: bool) -> AsyncIterator[str]:
        connection = await self._connection(self._place(kernel))
        reply = await self._request(connection, "log", kernel_id=kernel.kernel_id, limit=LOG_LIMIT)
        yield reply["text"]
        over = Pause(connection, kernel)
        while follow and "end" in reply:
            last = await over.passed(LOOK_INTERVAL)
            try:
                reply = await self._request(
                    connection, "log", kernel_id=kernel.kernel_id, limit=LOG_LIMIT, after=reply["end"]
                )
            except LaunchError:
                return  # it was forgotten
            if reply["text"]:
                yield reply["text"]
            elif last:
                return

    async def _output(self, kernel: FoundKernel, follow: bool) -> AsyncIterator[dict[str, Any]]:
        connection = await self._connection(self._place(kernel))
        stream = RelayStream()
        stream.writer = await connection.open_relay(kernel.kernel_id, kernel.generation, stream)
        over = Pause(connection, kernel)
        try:
            async for message in messages_of(stream, secrets.token_hex(16), follow, over.passed):
                yield message
        finally:
            stream.close()

    # --- asking -------------------------------------------------------------------------------------------------------------------------

    def _place(self, kernel: FoundKernel) -> Place:
        return next(place for place in self.places if place.address == kernel.host)

    def _ask_all(self, op: str, **params: Any) -> Answers[tuple[Place, dict[str, Any]]]:
        async def ask(place: Place) -> tuple[Place, dict[str, Any]]:
            return place, await self._request(await self._connection(place), op, **params)

        return self._all([(str(place.address), partial(ask, place)) for place in self.places])

    async def _connection(self, place: Place) -> HostConnection:
        connection = Connections.current().get(place.address, place.login)
        await connection.connect()
        return connection

    async def _request(self, connection: HostConnection, op: str, **params: Any) -> dict[str, Any]:
        return await connection.request(op, timeout=ANSWER_TIMEOUT, **params)

    def _all(self, work: Sequence[tuple[str, Callable[[], Coroutine[Any, Any, T]]]]) -> Answers[T]:
        """Do it all at once; what fails is told by name."""

        async def gather() -> list[T | BaseException]:
            return await asyncio.gather(*(begin() for _, begin in work), return_exceptions=True)

        given: list[T] = []
        failed: dict[str, ProvisionerError] = {}
        for (name, _), outcome in zip(work, _call(gather), strict=True):
            if isinstance(outcome, ProvisionerError):
                failed[name] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                given.append(outcome)
        return Answers(tuple(given), failed)


class Pause:
    """Waits while something is followed, and looks from time to time whether the kernel is still there."""

    def __init__(self, connection: HostConnection, kernel: FoundKernel) -> None:
        self._connection, self._kernel = connection, kernel
        self._looked = asyncio.get_running_loop().time()

    async def passed(self, seconds: float) -> bool:
        """Wait; whether the kernel has ended. A host that cannot be asked says nothing about it."""
        await asyncio.sleep(seconds)
        now = asyncio.get_running_loop().time()
        if now - self._looked < STATE_INTERVAL:
            return False
        self._looked = now
        kernel = self._kernel
        try:
            reply = await self._connection.request("list", timeout=ANSWER_TIMEOUT)
        except (HostUnreachableError, ConnectionLostError):
            return False
        return not any(
            (status["kernel_id"], status["generation"]) == (kernel.kernel_id, kernel.generation)
            and status["state"] != "exited"
            for status in reply["kernels"]
        )


def _nonsense(place: Place, error: Exception) -> ProtocolError:
    return ProtocolError(
        f"The listener on {place.address} gave an answer that makes no sense ({type(error).__name__}: {error}). "
        "Is another version of this package in use there?",
        host=str(place.address),
    )


def _call(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on the I/O thread; an interrupted caller (Ctrl-C) cancels it.

    The coroutine is made over there: Ctrl-C may come at any moment here, and would leave one that nobody awaits.
    """
    loop = IOThread.current().loop
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def begin() -> None:
        if outcome.cancelled():
            return
        task = loop.create_task(work())
        outcome.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel))
        task.add_done_callback(end)

    def end(task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if not outcome.set_running_or_notify_cancel():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(task.result())

    try:
        loop.call_soon_threadsafe(begin)
        return outcome.result()
    except BaseException:
        outcome.cancel()
        raise


def _each(items: AsyncIterator[T]) -> Iterator[T]:
    """What an asynchronous iterator gives, one at a time: it goes on only when the caller asks for more."""
    end: Any = object()
    task: asyncio.Task[Any] | None = None

    async def following() -> T:
        nonlocal task
        task = asyncio.current_task()
        return await anext(items, end)

    async def close() -> None:
        while (
            task is not None and not task.done()
        ):  # after Ctrl-C; older Pythons lose a cancellation now and then
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        await items.aclose()  # type: ignore[attr-defined] # it is a generator

    try:
        while (item := _call(following)) is not end:
            yield item
    finally:
        _call(close)
