"""The relay of one kernel: takes what the kernel says, keeps it until the server has handed it on, and sends again what was lost.

A process of its own, named dp-relay, which the listener forks: see `serve`. It listens on a Unix socket; relay_wire.py says what is
spoken there. It ends when told to ("stop", SIGTERM), or when nobody can reach it any more.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import time

import relay_wire
from relay_conversation import Conversation, is_count, same_user
from relay_io import Loop
from relay_keeper import Keeper
from relay_kernel import BadInfo, KernelSide
from relay_reader import Reader
from relay_store import Store
from relay_wire import (
    ACK,
    ACK_BYTES,
    ACK_SECONDS,
    CHUNK,
    GIVEN_UP,
    IOPUB,
    PROTOCOL,
    RELEASE,
    TELL,
    WELCOME,
    WINDOW,
    Credit,
    Rubbish,
    counts,
    head,
    loads,
    told,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, NoReturn, Optional, Sequence, Set

LIMIT = 64 << 20
"""Bytes that are kept while no server is there, unless the caller says otherwise."""
STILL_BACK = 600.0
"""Seconds for which a server that was cut off finds all that it had not taken, even if that is more than the limit."""
SILENT = 60.0
"""Seconds without an acknowledgment, with a window full, after which a server counts as absent although its stream stands."""
ROUND = 10.0
CUT_OFF = 300.0
"""Seconds that a relay whose socket was cleared away waits for its directory, which the listener looks after each minute."""
MAX_STREAMS = 32
FORSAKEN = 7 * 86400.0
"""Seconds after which a relay ends that has had neither a kernel nor a visitor."""


def serve(path: str, limit: int = LIMIT, spool_directories: Sequence[str] = ()) -> NoReturn:
    """Be a relay that listens on `path`, in this process, which is to be a forked child; never returns, ends with os._exit.

    It closes all file descriptors but 0 to 2, resets and unblocks signals, and takes a session and a name of its own, so it may be called
    with signals blocked and from inside an event loop. Once `path` is there, it accepts connections. `limit`: bytes kept while no server
    is there. `spool_directories`: where more than 4 MB may be kept; the one with most room is taken (default: the directory of `path`).
    """
    status = 1
    try:
        gc.freeze()  # what is the caller's stays shared with it, and none of its sockets is closed twice
        _leave_the_caller()
        Relay(_listen(path), path, limit, spool_directories or [os.path.dirname(path)]).run()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os._exit(status)


def _listen(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    temporary = path + "~"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    listening.bind(temporary)
    os.chmod(temporary, 0o600)
    listening.listen(16)
    os.rename(temporary, path)
    return listening


def _leave_the_caller() -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    signal.set_wakeup_fd(-1)
    for which in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(which, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(3, 4096))
    for number in numbers:
        if number > 2:
            with contextlib.suppress(OSError):
                os.close(number)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("dp-relay")  # what prctl(PR_SET_NAME) does, without ctypes


class Relay:
    """The server's stream on one side, the kernel on the other, and what is kept between them."""

    def __init__(self, listening: socket.socket, path: str, limit: int, directories: Sequence[str]) -> None:
        self.loop, self.listening, self.path = Loop(), listening, path
        self.keeper = Keeper(Store(directories), limit)
        self.kernel = KernelSide(self.loop, self.from_kernel, self.void, self.kernel_state, self.written)
        self.id = os.urandom(16).hex()
        self.server: Optional[Conversation] = None
        self.credit = Credit()
        """Of what goes to the bridge."""
        self.theirs = Credit()
        """Of what comes from it."""
        self.received = 0
        self.acked_bytes = 0
        self.ack_due = False
        self.heard = self.visited = time.monotonic()
        """When the server last acknowledged; when anybody was last connected."""
        self.readers: Set[Reader] = set()
        self.conversations: Set[Conversation] = set()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGHUP, lambda *_: self.loop.later(0, self.listen_again))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self.attend()
        self.loop.later(ROUND, self.round)
        self.loop.run()

    def attend(self) -> None:
        self.listening.setblocking(False)
        self.loop.selector.register(self.listening, selectors.EVENT_READ, self.accept)
        self.inode = os.stat(self.path).st_ino

    def listen_again(self) -> None:
        """Somebody cleared the directory away, and the listener made it again: so is the socket in it."""
        directory = os.path.dirname(self.path)
        with contextlib.suppress(OSError):
            if self.reachable() or os.lstat(directory).st_uid != os.getuid():
                return
            listening = _listen(self.path)
            self.loop.selector.unregister(self.listening)
            self.listening.close()
            self.listening = listening
            self.attend()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os._exit(0)

    def round(self) -> None:
        """Each ten seconds: is a server really there, and can anybody come?"""
        self.loop.later(ROUND, self.round)
        now, keeper = time.monotonic(), self.keeper
        blocked = not all(map(self.credit.has_room, range(4)))
        if keeper.attached and blocked and now - self.heard > SILENT:
            keeper.detach()
        elif not keeper.attached and keeper.unlimited and now - self.heard > STILL_BACK:
            keeper.unlimited = 0
            keeper.enforce()
        if not self.reachable():
            self.listen_again()
        if self.conversations:
            self.visited = now
        limit = FORSAKEN if self.reachable() else CUT_OFF
        if now - self.visited > limit and not (self.reachable() and self.kernel.state == "connected"):
            self.loop.stopped = True

    def reachable(self) -> bool:
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    # streams

    def accept(self, _: int) -> None:
        try:
            sock, _address = self.listening.accept()
        except OSError:
            return
        if not same_user(sock) or len(self.conversations) >= MAX_STREAMS:
            sock.close()
            return
        Conversation(self, sock)

    def hello(self, conversation: Conversation, said: Dict[str, Any]) -> None:
        """The first record of a stream. Raises Rubbish."""
        role = said.get("role")
        if said.get("protocol") != PROTOCOL or role not in ("server", "reader", "listener"):
            raise Rubbish("a hello of another protocol")
        conversation.role = str(role)
        if role == "server":
            self.hello_of_server(conversation, said)
        elif role == "reader":
            reader = conversation.reader = Reader(self.keeper, conversation.stream, said)
            self.readers.add(reader)
            conversation.write(told(WELCOME, self.status(backlog=reader.backlog, resend_from=1)))
            reader.pump()

    def hello_of_server(self, conversation: Conversation, said: Dict[str, Any]) -> None:
        bridge, have = said.get("bridge"), said.get("have", 0)
        had = said.get("received", [0, 0, 0, 0])
        if not isinstance(bridge, str) or len(bridge) != 32 or not is_count(have):
            raise Rubbish("a hello without a bridge")
        if not isinstance(had, list) or len(had) != 4 or not all(map(is_count, had)):
            raise Rubbish("a hello without counts")
        before, self.server = self.server, conversation
        if before is not None:
            if bridge != self.keeper.bridge:  # else it would come again, and push this one out
                before.write(told(TELL, {"tell": "superseded"}))
            before.stream.close()
        if bridge != self.keeper.bridge:
            self.received, self.credit, self.theirs = 0, Credit(), Credit()
            self.kernel.void_unfinished()
            had = [0, 0, 0, 0]
        backlog, first = self.keeper.hello(bridge, have, bool(said.get("kept")))
        self.credit.resume(had)
        self.heard = time.monotonic()
        conversation.write(told(WELCOME, self.status(backlog=backlog, resend_from=first)))
        self.acknowledge()
        self.pump()

    def status(self, **more: Any) -> Dict[str, Any]:
        keeper = self.keeper
        return {
            "protocol": PROTOCOL,
            "relay": self.id,
            "have": self.received,
            "received": self.theirs.total,
            "clients": [identity.hex() for identity in self.kernel.clients],
            "execution_state": keeper.state,
            "kernel": self.kernel.state,
            "missed": {"messages": keeper.missed_messages, "bytes": keeper.missed_bytes},
            "server": self.server is not None,
            "waiting": keeper.store.in_memory + keeper.store.in_files,
            **more,
        }

    def ended(self, conversation: Conversation) -> None:
        self.conversations.discard(conversation)
        if conversation.reader is not None:
            conversation.reader.close()
            self.readers.discard(conversation.reader)
        if conversation is self.server:
            self.server = None
            self.heard = time.monotonic()
            self.keeper.detach()

    # from the server

    def obey(self, conversation: Conversation, record: relay_wire.Record) -> None:
        """A record of the server's. Raises Rubbish."""
        kind, flags, number, identity, payload = record
        if kind <= IOPUB:
            self.piece(kind, flags, number, identity, payload)
        elif kind == ACK:
            self.credit.acknowledged(counts(payload))
            self.heard = time.monotonic()
            self.keeper.attached = True
        elif kind == RELEASE:
            if len(payload) != 1 or payload[0] > IOPUB:
                raise Rubbish("a release of no lane")
            self.keeper.release(payload[0], identity, number, flags == GIVEN_UP)
        elif kind == TELL:
            self.told_by_server(loads(payload))
        else:
            raise Rubbish("a record that is not for a relay")

    def piece(self, kind: int, flags: int, number: int, identity: bytes, payload: memoryview) -> None:
        if kind == IOPUB:
            raise Rubbish("nobody publishes to a kernel")
        if number <= self.received:
            return
        self.received = number
        self.theirs.moved(kind, len(payload))
        if self.theirs.total[kind] - self.theirs.consumed[kind] > WINDOW + 2 * CHUNK:
            raise Rubbish("more than the window")
        self.kernel.send(kind, identity, bytes(payload), flags, self.theirs)
        self.want_ack()

    def told_by_server(self, said: Dict[str, Any]) -> None:
        tell, identities = said.get("tell"), said.get("identities")
        if tell not in ("open", "close"):
            return  # a later version's
        try:
            names = [bytes.fromhex(each) for each in identities or ()]
        except (TypeError, ValueError):
            raise Rubbish("no identities") from None
        if any(len(name) > relay_wire.MAX_IDENTITY for name in names):
            raise Rubbish("no identities")
        (self.kernel.open if tell == "open" else self.kernel.close)(names)

    def written(self, credit: Credit) -> None:
        """Something is in the kernel's socket."""
        if credit is self.theirs:
            if sum(credit.consumed) - self.acked_bytes >= ACK_BYTES:
                self.acknowledge()
            else:
                self.want_ack()

    def want_ack(self) -> None:
        if not self.ack_due:
            self.ack_due = True
            self.loop.later(ACK_SECONDS, self.acknowledge_later)

    def acknowledge_later(self) -> None:
        if self.ack_due:
            self.acknowledge()

    def acknowledge(self) -> None:
        self.ack_due = False
        self.acked_bytes = sum(self.theirs.consumed)
        if self.server is not None:
            self.server.write(relay_wire.ack(self.received, self.theirs.consumed))

    # from the kernel

    def from_kernel(self, kind: int, identity: bytes, piece: memoryview, ends: bool) -> None:
        begins = (kind, identity) not in self.keeper.open
        entry = self.keeper.add(kind, identity, piece, ends)
        for reader in self.readers:
            reader.add(entry, begins)
        self.loop.idle = self.pump_all

    def void(self, kind: int, identity: bytes) -> None:
        entry = self.keeper.void(kind, identity)
        for reader in self.readers:
            if entry is not None:
                reader.add(entry, False)
        self.loop.idle = self.pump_all

    def pump_all(self) -> None:
        """Once for all that one look at the sockets has brought."""
        self.pump()
        for reader in list(self.readers):
            reader.pump()

    def kernel_state(self, state: str) -> None:
        if self.server is not None:
            self.server.write(told(TELL, {"tell": "kernel", "state": state}))

    def pump(self) -> None:
        """Send as much as the stream takes and the windows allow."""
        if self.server is None:
            return
        stream, keeper, credit = self.server.stream, self.keeper, self.credit
        while stream.waiting < 2 * CHUNK and not stream.closed:
            entry = keeper.next(credit)
            if entry is None:
                break
            data = keeper.payload(entry)
            credit.moved(entry.kind, len(data))
            stream.write(head(entry.kind, entry.number, entry.flags, entry.identity, len(data)), data)
            if stream.waiting >= CHUNK:
                stream.flush()
        if stream.out and not stream.closed:
            stream.flush()

    # from the listener

    def listener_says(self, conversation: Conversation, said: Dict[str, Any]) -> None:
        tell = said.get("tell")
        if tell == "stop":
            self.stop()
        elif tell == "status":
            conversation.write(told(TELL, {"tell": "status", **self.status()}))
        elif tell == "connect":
            self.connect(conversation, said.get("info"))

    def connect(self, conversation: Conversation, info: object) -> None:
        def answer(why: str) -> None:
            reply = {"tell": "failed", "why": why} if why else {"tell": "connected"}
            conversation.write(told(TELL, reply))

        if not isinstance(info, dict):
            raise Rubbish("no connection info")
        self.keeper.key = str(info.get("key", "")).encode()
        self.keeper.scheme = str(info.get("signature_scheme") or "hmac-sha256")
        try:
            self.kernel.connect(info, answer)
        except BadInfo as error:
            answer(str(error))
