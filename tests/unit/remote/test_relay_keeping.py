"""What a relay keeps while nobody is there, what it drops first, and what it says about that."""

from __future__ import annotations

import hmac
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from jupyter_client.session import Session

from .relaying import KEY, FakeKernel, RelayProcess, Server, contents, relay_wire, relayed, wait_for, zmtp

if TYPE_CHECKING:
    import relay_keeper
    import relay_store
else:
    relay_keeper = __import__("relay_keeper")
    relay_store = __import__("relay_store")

MB = 1 << 20


def everything(server: Server, count: int) -> list[dict[str, Any]]:
    """Message types, contents and parents on iopub, once `count` messages are there."""
    server.until(lambda: len(server.on("iopub")) >= count)
    found = []
    for frames in server.on("iopub"):
        header, parent = (json.loads(frames[frames.index(b"<IDS|MSG>") + n]) for n in (2, 3))
        found.append(
            {"type": header["msg_type"], "parent": parent.get("msg_id"), "content": contents(frames)}
        )
    return found


def flood(kernel: FakeKernel, cell: str, kind: str, count: int, size: int) -> None:
    for n in range(count):
        kernel.publish(kind, {"n": n, "text": "x" * size}, {"msg_id": cell})


def settled(relay: RelayProcess, messages: int) -> Callable[[], bool]:
    return lambda: bool(relay.status()["missed"]["messages"] >= messages)


# --- dropping ------------------------------------------------------------------------------------------------------------------


def test_what_is_kept_while_nobody_is_there_stays_within_the_limit() -> None:
    """Printed text goes first, oldest first, then displays; statuses and errors stay; each cell is told what it lost."""
    with relayed(limit=2 * MB) as (relay, kernel):
        kernel.publish("status", {"execution_state": "busy"}, {"msg_id": "one"})
        flood(kernel, "one", "stream", 15, 100_000)
        flood(kernel, "one", "display_data", 5, 100_000)
        kernel.publish("error", {"ename": "x" * 100_000}, {"msg_id": "one"})
        flood(kernel, "two", "stream", 10, 100_000)
        flood(kernel, "two", "display_data", 14, 100_000)
        kernel.publish("status", {"execution_state": "idle"}, {"msg_id": "two"})
        wait_for(lambda: relay.status()["execution_state"] == "idle")
        missed = relay.status()["missed"]
        assert relay.status()["waiting"] <= 2 * MB
        server = Server(relay).connect()
        assert server.welcome["missed"] == missed
        kernel.publish("status", {"execution_state": "done"}, {"msg_id": "end"})
        server.until(lambda: bool(server.on("iopub")) and b"end" in server.on("iopub")[-1][4])
        found = everything(server, 1)
        kinds = [(each["type"], each["parent"]) for each in found]
        assert kinds[:2] == [("status", "one"), ("stream", "one")]
        assert kinds.count(("stream", "one")) == kinds.count(("stream", "two")) == 1
        assert ("error", "one") in kinds
        assert kinds[-2:] == [("status", "two"), ("status", "end")]
        # All text, and as many of the oldest displays as necessary.
        displays = [
            each["content"]["n"]
            for each in found
            if each["type"] == "display_data" and each["parent"] == "two"
        ]
        assert displays == list(range(14))[-len(displays) :]
        lost = 25 + 19 - sum(each["type"] == "display_data" for each in found)
        assert missed["messages"] == lost
        assert 100_000 * lost < missed["bytes"] < 101_000 * lost
        notices = [each["content"] for each in found if each["type"] == "stream"]
        assert {notice["name"] for notice in notices} == {"stderr"}
        assert all("could not be kept" in notice["text"] for notice in notices)
        assert sum(int(notice["text"].split()[0][1:]) for notice in notices) == lost


def test_a_notice_is_a_message_that_jupyter_takes() -> None:
    """A client that checks signatures throws away what is not signed with the kernel's key."""
    with relayed(limit=300_000) as (relay, kernel):
        flood(kernel, "cell", "stream", 10, 100_000)
        wait_for(settled(relay, 7))
        server = Server(relay).connect()
        server.until(lambda: len(server.on("iopub")) == 3)
        session = Session(key=KEY.encode(), signature_scheme="hmac-sha256")
        _, frames = session.feed_identities(server.on("iopub")[0])
        message = session.deserialize(frames)
        assert message["parent_header"] == {"msg_id": "cell"}
        assert message["msg_type"] == "stream"
        assert message["content"]["text"].startswith("[8 messages (")
        assert message["header"]["date"].tzinfo is not None
        raw = server.on("iopub")[0][2:]
        assert hmac.new(KEY.encode(), b"".join(raw[1:5]), "sha256").hexdigest().encode() == raw[0]


def test_one_message_above_the_limit_is_dropped_while_it_comes() -> None:
    """A plot of a gigabyte must not fill the disk before it is found too large."""
    with relayed(limit=1 * MB) as (relay, kernel):
        kernel.publish("display_data", {"text": "x" * 30 * MB}, {"msg_id": "cell"})
        kernel.publish("stream", {"text": "after"}, {"msg_id": "cell"})
        wait_for(lambda: relay.status()["missed"]["bytes"] > 30 * MB)
        server = Server(relay).connect()
        found = everything(server, 2)
        assert [each["content"].get("name") for each in found] == ["stderr", None]
        assert "1 message (30.0 MB)" in found[0]["content"]["text"]


@pytest.mark.parametrize("directories", [["/tmp"], []], ids=["too large", "no disk"])
def test_a_message_above_the_limit_takes_no_more_than_the_limit(directories: list[str]) -> None:
    """It is found too large while it comes, not when it has filled the disk or the memory; the next one is kept again."""
    keeper = relay_keeper.Keeper(relay_store.Store(directories, memory=100_000), limit=1 * MB)
    start = b"".join(
        map(bytes, zmtp.encode([b"t", b"<IDS|MSG>", b"", b'{"msg_type": "stream"}', b"{}", b"{}", b"{}"]))
    )
    for _ in range(100):
        keeper.add(relay_wire.IOPUB, b"", memoryview(start), False)
        start = b"x" * 50_000
        assert keeper.store.total <= 1 * MB
    keeper.add(relay_wire.IOPUB, b"", memoryview(b"the end"), True)
    keeper.add(relay_wire.IOPUB, b"", memoryview(b"\0\4next"), True)
    keeper.hello("a" * 32, 0, False)
    pieces = list(iter(lambda: keeper.next(relay_wire.Credit()), None))
    assert [piece.flags & (relay_wire.VOID | relay_wire.ENDS) for piece in pieces] == [3, 1]
    assert b"1 message (" in keeper.payload(pieces[0])
    assert keeper.payload(pieces[1]) == b"\0\4next"
    for segment in keeper.store.segments:
        os.close(segment.file)


def test_control_and_stdin_go_first_and_the_rest_in_its_order(tmp_path: Path) -> None:
    """A reply must not overtake the output that belongs before it; an interrupt's may."""
    keeper = relay_keeper.Keeper(relay_store.Store([str(tmp_path)]), limit=1 * MB)
    for kind in (3, 0, 3, 2, 1, 0):
        keeper.add(kind, b"", memoryview(b"\0\1x"), True)
    keeper.hello("a" * 32, 0, False)
    pieces = iter(lambda: keeper.next(relay_wire.Credit()), None)
    assert [piece.kind for piece in pieces] == [1, 2, 3, 0, 3, 0]


def test_what_a_server_left_behind_is_not_dropped_for_a_cut_line() -> None:
    """A slow client's backlog, which is more than the limit, survives a cut of a second: it would have arrived without it."""
    with relayed(limit=1 * MB) as (relay, kernel):
        server = Server(relay).connect()
        server.consuming = False
        flood(kernel, "cell", "stream", 150, 100_000)
        wait_for(lambda: relay.status()["waiting"] > 15_000_000)
        server.close()
        wait_for(lambda: not relay.status()["server"])
        kernel.publish("status", {"n": 150})
        server.consuming, server.coming.consumed = True, list(server.coming.total)
        time.sleep(0.2)
        server.connect()
        found = everything(server, 151)
        assert [each["content"]["n"] for each in found] == list(range(151))
        assert relay.status()["missed"]["messages"] == 0


def test_a_message_of_which_a_part_was_sent_is_void_when_it_is_dropped() -> None:
    """Else the notebook waits for the rest for ever, or takes the next message for it."""
    with relayed(limit=1 * MB) as (relay, kernel):
        server = Server(relay).connect()
        server.consuming = False
        kernel.publish("display_data", {"text": "x" * 12 * MB}, {"msg_id": "cell"})
        wait_for(lambda: relay.status()["waiting"] > 12 * MB)
        while server.read(0.5):
            pass
        assert server.partial
        server.close()
        wait_for(lambda: not relay.status()["server"])
        flood(kernel, "next", "display_data", 30, 500_000)
        wait_for(settled(relay, 2))
        server.consuming, server.coming.consumed = True, list(server.coming.total)
        server.connect()
        kernel.publish("status", {"execution_state": "end"})
        server.until(lambda: any(b"status" in frames[0] for frames in server.on("iopub")))
        found = everything(server, 1)
        assert found[0]["content"]["name"] == "stderr"
        assert found[0]["parent"] == "cell"
        assert server.partial == {}


def test_a_status_that_a_read_has_cut_is_a_status(tmp_path: Path) -> None:
    """A kernel that looks busy for ever, because "idle" came in two parts, is one that nobody dares to restart."""
    parts = [b'{"msg_type": "status"}', b"{}", b"{}", b'{"execution_state": "idle"}']
    wire = b"".join(map(bytes, zmtp.encode([b"topic", b"<IDS|MSG>", b"", *parts])))
    for at in range(1, len(wire)):
        keeper = relay_keeper.Keeper(relay_store.Store([str(tmp_path)]), limit=600)
        keeper.add(relay_wire.IOPUB, b"", memoryview(wire)[:at], False)
        keeper.add(relay_wire.IOPUB, b"", memoryview(wire)[at:], True)
        assert keeper.state == "idle"
        assert keeper.missed_messages == 0


# --- disk ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 3 * MB], ids=["no room at all", "no room in one file"])
def test_a_full_disk_costs_output_and_nothing_else(most: int, tmp_path: Path) -> None:
    """The relay drops what it cannot keep, says so, and goes on; a disk that is full is no reason to lose a kernel."""
    code = "import os,resource,sys; n=int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE,(n,n)); os.execv(sys.argv[2],sys.argv[2:])"
    kernel = FakeKernel()
    relay = RelayProcess(wrapper=(sys.executable, "-c", code, str(most)), spool=tmp_path)
    try:
        assert relay.to_kernel(kernel.info) == {"tell": "connected"}
        server = Server(relay).connect()
        server.send("shell", b"me", b"x")
        assert kernel.receive() == [b"me", b"x"]
        server.consuming = False
        kernel.publish("status", {"execution_state": "busy"}, {"msg_id": "cell"})
        flood(kernel, "cell", "stream", 300, 100_000)
        kernel.publish("status", {"execution_state": "idle"}, {"msg_id": "cell"})
        kernel.send("shell", b"me", b"reply")
        wait_for(lambda: relay.status()["execution_state"] == "idle")
        assert relay.memory() < 50 * MB
        server.consuming, server.coming.consumed = True, list(server.coming.total)
        server.acknowledge()
        server.until(lambda: bool(server.on("shell")) and b'"idle"' in server.on("iopub")[-1][-1])
        found = everything(server, 1)
        numbers = [each["content"]["n"] for each in found if "n" in each["content"]]
        notices = [each["content"]["text"] for each in found if "name" in each["content"]]
        missed = relay.status()["missed"]["messages"]
        assert numbers == sorted(set(numbers))
        assert [each["content"].get("execution_state") for each in (found[0], found[-1])] == ["busy", "idle"]
        if most:
            assert (len(numbers), missed) == (300, 0)
        else:
            assert missed > 150
            assert len(notices) > 0
            assert "for want of disk space" in notices[0]
    finally:
        relay.stop()
        kernel.stop()


def test_spool_files_go_when_nothing_needs_them(tmp_path: Path) -> None:
    """Disk space is given back while the stream goes on, not only when the relay has nothing left to keep."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        store = relay_store.Store([str(tmp_path / "missing"), directory], memory=0)
        bodies = [store.put(memoryview(bytes([n]) * MB)) for n in range(20)]
        assert len(store.segments) == 5
        assert all(store.get(body) == bytes([n]) * MB for n, body in enumerate(bodies))
        for body in bodies[:12]:
            store.free(body)
        assert len(store.segments) == 2
        store.hold(bodies[12])
        for body in bodies[12:]:
            store.free(body)
        assert store.get(bodies[12]) == bytes([12]) * MB
        store.free(bodies[12])
        assert store.total == 0
        assert sum(os.fstat(segment.file).st_size for segment in store.segments) <= 4 * MB
        assert os.listdir(directory) == []
        with pytest.raises(relay_store.Full):
            relay_store.Store([str(tmp_path / "missing")], memory=10).put(memoryview(b"x" * 11))
        for segment in store.segments:
            os.close(segment.file)


# --- readers and what was given up ---------------------------------------------------------------------------------------------


def test_a_reader_gets_what_is_kept_and_follows_without_taking_it_away() -> None:
    """Looking at a kernel's output from a shell must not cost the notebook a line of it."""
    with relayed() as (relay, kernel):
        for n in range(3):
            kernel.send("iopub", b"%d" % n)
        wait_for(lambda: relay.status()["waiting"] == 9)
        reader = Server(relay, "reader", kept=True, follow=True).connect()
        reader.until(lambda: {"tell": "kept-end"} in reader.told)
        assert reader.on("iopub") == [[b"0"], [b"1"], [b"2"]]
        server = Server(relay).connect()
        server.until(lambda: len(server.messages) == 3)
        server.release("iopub")
        kernel.send("iopub", b"3", b"x" * MB)
        for each in (reader, server):
            each.until(lambda each=each: len(each.messages) == 4)  # type: ignore[misc]
        assert reader.messages == server.messages
        late = Server(relay, "reader", kept=True).connect()
        late.until(lambda: {"tell": "kept-end"} in late.told)
        assert late.on("iopub") == [[b"3", b"x" * MB]]


def test_a_reader_is_told_what_is_void() -> None:
    """A message that is too large to be kept must not be joined with the next one."""
    with relayed(limit=1 * MB) as (relay, kernel):
        reader = Server(relay, "reader", follow=True).connect()
        kernel.publish("display_data", {"text": "x" * 4 * MB})
        kernel.publish("status", {"execution_state": "idle"})
        reader.until(lambda: len(reader.on("iopub")) == 1)
        assert contents(reader.on("iopub")[0]) == {"execution_state": "idle"}
        assert relay.status()["missed"]["messages"] == 1


def test_what_was_given_up_can_still_be_read() -> None:
    """Nobody came for the output of a night: it is there for who asks, within the limit, and not sent to each server."""
    with relayed(limit=1 * MB) as (relay, kernel):
        server = Server(relay).connect()
        flood(kernel, "cell", "stream", 5, 100_000)
        server.until(lambda: len(server.messages) == 5)
        server.release("iopub", given_up=True)
        flood(kernel, "cell", "stream", 10, 100_000)
        server.until(lambda: len(server.messages) == 15)
        server.release("iopub", given_up=True)
        wait_for(settled(relay, 5))
        assert relay.status()["waiting"] <= 1 * MB
        other = Server(relay).connect()
        assert other.welcome["backlog"] == 0
        reader = Server(relay, "reader", kept=True).connect()
        reader.until(lambda: {"tell": "kept-end"} in reader.told)
        found = everything(reader, 1)
        assert found[0]["content"]["name"] == "stderr"
        assert [each["content"]["n"] for each in found[1:]] == list(range(10))[-len(found) + 1 :]
        third = Server(relay, kept=True).connect()
        third.until(lambda: len(third.messages) == len(found))
        assert all(flags & relay_wire.OLD for flags in third.flags)


# --- a model of the stream -----------------------------------------------------------------------------------------------------


class Streams(RuleBasedStateMachine):
    """Messages, cuts, acknowledgments, releases and other bridges in any order: each bridge gets each message once, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(dir="/tmp")
        self.store = relay_store.Store([self.directory], memory=200)
        self.keeper = relay_keeper.Keeper(self.store, limit=1 << 30)
        self.sent: dict[tuple[int, bytes], list[bytes]] = {}
        """All whole messages of the kernel, by lane."""
        self.half: dict[tuple[int, bytes], bytes] = {}
        self.released: dict[tuple[int, bytes], int] = {}
        """How many messages of a lane are done with."""
        self.serial = 0
        self.new_bridge()

    def teardown(self) -> None:
        for segment in self.store.segments:
            os.close(segment.file)
        os.rmdir(self.directory)

    def new_bridge(self) -> None:
        self.bridge = secrets.token_hex(16)
        self.have = 0
        self.coming = relay_wire.Credit(300)
        self.got: dict[tuple[int, bytes], list[tuple[bytes, int]]] = {}
        self.partial: dict[tuple[int, bytes], bytes] = {}
        self.before = dict(self.released)
        self.connect()

    @rule()
    def connect(self) -> None:
        """The stream is cut, and made again."""
        if self.bridge != self.keeper.bridge:
            self.credit = relay_wire.Credit(300)
        self.keeper.hello(self.bridge, self.have, False)
        self.credit.resume(self.coming.total)

    @rule()
    def another_bridge(self) -> None:
        self.new_bridge()

    @rule(
        kind=st.integers(0, 3),
        size=st.integers(1, 300),
        ends=st.booleans(),
        who=st.sampled_from([b"a", b"b"]),
    )
    def the_kernel_says(self, kind: int, size: int, ends: bool, who: bytes) -> None:
        lane = (kind, b"" if kind == relay_wire.IOPUB else who)
        self.serial += 1
        piece = (b"%d." % self.serial).ljust(size, b"x")
        self.keeper.add(*lane, memoryview(piece), ends)
        whole = self.half.pop(lane, b"") + piece
        if ends:
            self.sent.setdefault(lane, []).append(whole)
        else:
            self.half[lane] = whole

    @rule(kind=st.integers(0, 3), who=st.sampled_from([b"a", b"b"]))
    def the_kernel_dies_in_the_middle(self, kind: int, who: bytes) -> None:
        lane = (kind, b"" if kind == relay_wire.IOPUB else who)
        self.keeper.void(*lane)
        self.half.pop(lane, None)

    @rule(count=st.integers(1, 10), lost=st.booleans())
    def pieces_travel(self, count: int, lost: bool) -> None:
        """`lost`: they are on the way when the stream is cut."""
        for _ in range(count):
            entry = self.keeper.next(self.credit)
            if entry is None:
                break
            data = self.keeper.payload(entry)
            self.credit.moved(entry.kind, len(data))
            if not lost:
                self.arrive(entry.kind, entry.flags, entry.number, entry.identity, data)
        if lost:
            self.connect()

    def arrive(self, kind: int, flags: int, number: int, identity: bytes, data: bytes) -> None:
        assert number > self.have
        self.have = number
        self.coming.moved(kind, len(data))
        assert self.coming.total[kind] - self.coming.consumed[kind] <= 300 + 300
        lane = (kind, identity)
        if flags & relay_wire.VOID:
            self.partial.pop(lane, None)
        whole = self.partial.pop(lane, b"") + data
        if flags & relay_wire.ENDS:
            self.got.setdefault(lane, []).append((whole, number))
        elif whole:
            self.partial[lane] = whole

    @rule()
    def acknowledge(self) -> None:
        self.coming.consumed = list(self.coming.total)
        self.credit.acknowledged(self.coming.consumed)

    @precondition(lambda self: bool(self.got))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.got)))
        count = data.draw(st.integers(1, len(self.got[lane])))
        self.keeper.release(*lane, self.got[lane][count - 1][1], False)
        self.released[lane] = max(self.released.get(lane, 0), self.before.get(lane, 0) + count)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        for lane, got in self.got.items():
            start = self.before.get(lane, 0)
            assert [whole for whole, _ in got] == self.sent[lane][start : start + len(got)]

    @rule()
    def all_arrives_in_the_end(self) -> None:
        for _ in range(10_000):
            before = self.have
            self.acknowledge()
            self.pieces_travel(10, False)
            if self.have == before:
                break
        for lane, sent in self.sent.items():
            assert len(self.got.get(lane, [])) == len(sent) - self.before.get(lane, 0)

    @rule()
    def all_is_released(self) -> None:
        self.all_arrives_in_the_end()
        for lane, got in self.got.items():
            self.keeper.release(*lane, got[-1][1], False)
            self.released[lane] = self.before.get(lane, 0) + len(got)
        if not self.half and not self.partial:
            assert self.store.in_memory + self.store.in_files == sum(
                entry.size for lane in self.keeper.sent.values() for entry in lane
            )


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_dropped_the_rest_arrives_whole_and_in_order(seed: int, tmp_path: Path) -> None:
    """Dropping while streams are cut and bridges change: no half message, no wrong order, no status that is lost."""
    chance = random.Random(seed)
    keeper = relay_keeper.Keeper(relay_store.Store([str(tmp_path)], memory=20_000), limit=60_000)
    kernel, bridges = Chatter(keeper, chance), [Listener(keeper)]
    attached = False
    for _ in range(1500):
        what = chance.random()
        if what < 0.7:
            kernel.says_something()
        elif what < 0.8 and attached:
            keeper.detach()
            keeper.unlimited, attached = 0, False
            keeper.enforce()
            assert (
                keeper.store.total <= 60_000 + 2_000 * kernel.number
            )  # what may not be dropped is small here
        elif what < 0.85 and not attached:
            if chance.random() < 0.3:
                bridges.append(Listener(keeper))
            bridges[-1].hello()
            attached = True
        elif attached:
            bridges[-1].take(chance.randrange(40), chance)
    bridges.append(Listener(keeper))
    bridges[-1].hello(kept=True)
    bridges[-1].take(1 << 30, chance)
    assert keeper.missed_messages > 50
    for bridge in bridges:
        assert bridge.numbers == sorted(set(bridge.numbers))
    assert kernel.statuses <= {number for bridge in bridges for number in bridge.numbers}
    assert bridges[-1].partial == b""
    for segment in keeper.store.segments:
        os.close(segment.file)


class Chatter:
    """A kernel that publishes messages of all kinds and sizes, in pieces."""

    def __init__(self, keeper: relay_keeper.Keeper, chance: random.Random) -> None:
        self.keeper, self.chance = keeper, chance
        self.number = 0
        self.statuses: set[int] = set()

    def says_something(self) -> None:
        self.number += 1
        kind = self.chance.choice(["stream", "stream", "display_data", "status", "comm_msg"])
        if kind == "status":
            self.statuses.add(self.number)
        parts = [
            json.dumps(each).encode() for each in ({"msg_type": kind}, {"msg_id": f"c{self.number // 50}"})
        ]
        rest = b"x" * (10 if kind == "status" else self.chance.randrange(9000))
        frames = [b"t", b"<IDS|MSG>", b"", *parts, b"{}", b"%d" % self.number, rest]
        wire = b"".join(map(bytes, zmtp.encode(frames)))
        at = self.chance.randrange(1, 200)
        pieces = [wire[:at]]
        while at < len(wire):
            step = self.chance.randrange(100, 8000)
            pieces.append(wire[at : at + step])
            at += step
        for index, piece in enumerate(pieces):
            self.keeper.add(relay_wire.IOPUB, b"", memoryview(piece), index + 1 == len(pieces))


class Listener:
    """A bridge that releases most of what it has got, and gives some of it up."""

    def __init__(self, keeper: relay_keeper.Keeper) -> None:
        self.keeper, self.bridge, self.have, self.partial = keeper, secrets.token_hex(16), 0, b""
        self.numbers: list[int] = []
        self.credit = relay_wire.Credit(1 << 40)

    def hello(self, kept: bool = False) -> None:
        self.keeper.hello(self.bridge, self.have, kept)

    def take(self, count: int, chance: random.Random) -> None:
        for _ in range(count):
            entry = self.keeper.next(self.credit)
            if entry is None:
                break
            assert entry.number > self.have
            self.have = entry.number
            self.partial = (b"" if entry.flags & relay_wire.VOID else self.partial) + self.keeper.payload(
                entry
            )
            if entry.flags & relay_wire.ENDS:
                frames = zmtp.split(self.partial)
                self.partial = b""
                if frames[6].isdigit():  # not a notice
                    self.numbers.append(int(frames[6]))
                if chance.random() < 0.5:
                    self.keeper.release(relay_wire.IOPUB, b"", self.have, chance.random() < 0.1)
