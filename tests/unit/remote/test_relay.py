"""The relay between a kernel's sockets and a stream: every message once, in order, byte by byte."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .relaying import PATIENCE, REMOTE, FakeKernel, RelayProcess, Server, relay_wire, relayed, wait_for, zmtp

Pair = tuple[RelayProcess, FakeKernel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with relayed() as both:
        yield both


# --- messages ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("transport", "ip"), [("ipc", ""), ("tcp", "127.0.0.1"), ("tcp", "::1")])
def test_messages_of_every_shape_pass_both_ways(transport: str, ip: str) -> None:
    """A kernel behind the relay is the same kernel, on Unix sockets, IPv4 and IPv6."""
    if ip == "::1" and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    with relayed(transport=transport, ip=ip) as (relay, kernel):
        server = Server(relay).connect()
        for frames in (
            [b""],
            [b"x"],
            [bytes([n]) * size for n, size in enumerate((0, 1, 255, 256, 65535, 1 << 20, 0))],
            [str(n).encode() for n in range(500)],
        ):
            for channel in ("shell", "control", "stdin"):
                server.send(channel, b"me", *frames)
                assert kernel.receive(channel) == [b"me", *frames]
                kernel.send(channel, b"me", *frames)
                server.until(lambda: bool(server.messages))
                assert server.messages.pop() == (channel, b"me", frames)
            kernel.send("iopub", *frames)
            server.until(lambda: bool(server.messages))
            assert server.messages.pop() == ("iopub", b"", frames)


def test_a_large_message_is_never_stored_whole_in_memory(pair: Pair) -> None:
    """Ten users who plot at the same time must not need ten times 50 MB on the host."""
    relay, kernel = pair
    server = Server(relay).connect()
    before, data = relay.memory(), os.urandom(50 << 20)
    kernel.send("iopub", b"topic", data)
    server.until(lambda: bool(server.messages))
    assert server.messages[0][2] == [b"topic", data]
    receiver: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: receiver.append(kernel.receive()))
    thread.start()
    server.send("shell", b"me", data)
    thread.join(20)
    assert receiver == [[b"me", data]]
    assert relay.memory() - before < 16 << 20


def test_clients_are_told_apart_by_their_identity(pair: Pair) -> None:
    """Two notebooks on one kernel get their own replies; identities that a ROUTER has made up are allowed for."""
    relay, kernel = pair
    server = Server(relay).connect()
    for identity in (b"a", b"b", b"\0made up"):
        server.send("shell", identity, b"request of " + identity)
        name, request = kernel.receive()
        assert request == b"request of " + identity
        assert name[:1] != b"\0"  # another ROUTER may refuse what only a ROUTER makes up
        kernel.send("shell", name, b"reply to " + identity)
    server.until(lambda: len(server.messages) == 3)
    assert server.messages == [("shell", name, [b"reply to " + name]) for name in (b"a", b"b", b"\0made up")]


def test_stdin_is_connected_before_the_first_request_arrives(pair: Pair) -> None:
    """A cell that begins with input() asks on a connection that has to be there already: else it waits for ever."""
    relay, kernel = pair
    server = Server(relay).connect()
    for n in range(20):
        identity = b"client-%d" % n
        server.send("shell", identity, b"run input()")
        kernel.receive()
        time.sleep(0.005)  # libzmq looks for new connections once in some milliseconds only
        kernel.sockets["stdin"].router_mandatory = True
        kernel.send("stdin", identity, b"your name?")  # raises where nobody is connected
    server.until(lambda: len(server.on("stdin")) == 20)


def test_control_is_not_held_up_by_a_flood(pair: Pair) -> None:
    """An interrupt has to get through while a cell prints without end and nobody reads that."""
    relay, kernel = pair
    server = Server(relay).connect()
    server.send("control", b"me", b"interrupt")
    kernel.receive("control")
    server.consuming = False
    for n in range(300):
        kernel.send("iopub", b"%d" % n, b"x" * 100_000)
    wait_for(lambda: relay.status()["waiting"] > 25_000_000)
    kernel.send("control", b"me", b"interrupted")
    server.until(lambda: bool(server.on("control")))
    while server.read(0.3):
        pass
    assert sum(len(frames[1]) for frames in server.on("iopub")) <= relay_wire.WINDOW + relay_wire.CHUNK
    server.consuming = True
    server.coming.consumed = list(server.coming.total)
    server.acknowledge()
    server.until(lambda: len(server.on("iopub")) == 300)
    assert [int(frames[0]) for frames in server.on("iopub")] == list(range(300))


def test_a_kernel_that_does_not_read_makes_the_sender_wait() -> None:
    """A client that sends faster than a busy kernel reads is slowed down, and the relay does not grow; control goes through."""
    with relayed() as (relay, kernel):
        kernel.sockets["shell"].close()
        Path(f"{kernel.info['ip']}-1").unlink()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(f"{kernel.info['ip']}-1")
            deaf.listen()
            server = Server(relay).connect()
            piece = b"".join(map(bytes, zmtp.encode([b"x" * 100_000])))
            server.send("control", b"me", b"x")
            before = relay.memory()
            sent = 0
            server.send_piece(0, b"me", piece, relay_wire.ENDS)
            accepted, _ = deaf.accept()
            engine = zmtp.Engine(b"ROUTER")
            accepted.sendall(engine.take())
            while not engine.is_ready:
                engine.feed(accepted.recv(300))
                accepted.sendall(engine.take())
            while True:
                with contextlib.suppress(TimeoutError):
                    server.until(lambda: server.going.has_room(0), 0.5)
                if not server.going.has_room(0):
                    break
                server.send_piece(0, b"me", piece, relay_wire.ENDS)
                sent += len(piece)
            assert sent < relay_wire.WINDOW + (4 << 20)
            assert relay.memory() - before < 2 * relay_wire.WINDOW + (4 << 20)
            server.send("control", b"me", b"interrupt")
            assert kernel.receive("control")[1] == b"x"
            assert kernel.receive("control")[1] == b"interrupt"
            accepted.close()


# --- streams -------------------------------------------------------------------------------------------------------------------


def test_what_was_lost_with_a_stream_is_sent_again_once(pair: Pair) -> None:
    """The line is cut with messages on it: each arrives once, in order, in both directions."""
    relay, kernel = pair
    server = Server(relay).connect()
    sent, received = 0, []
    for cut in range(30):
        for _ in range(5):
            kernel.send("iopub", b"%d" % sent, b"x" * (sent * 7919 % 400_000))
            server.send("shell", b"me", b"%d" % sent)
            sent += 1
        if cut % 3:
            with contextlib.suppress(TimeoutError):
                server.until(lambda: False, 0.01)
        server.partial = dict(server.partial)
        server.connect()
    server.until(lambda: len(server.on("iopub")) == sent)
    assert server.sock is not None
    seen_before = b"".join(map(bytes, zmtp.encode([b"again"])))
    server.sock.sendall(
        relay_wire.record(relay_wire.SHELL, server.number, relay_wire.ENDS, b"me", seen_before)
    )
    server.send("shell", b"me", b"%d" % sent)
    assert [int(frames[0]) for frames in server.on("iopub")] == list(range(sent))
    assert all(len(frames[1]) == n * 7919 % 400_000 for n, frames in enumerate(server.on("iopub")))
    received = [int(kernel.receive()[1]) for _ in range(sent + 1)]
    assert received == list(range(sent + 1))
    assert server.doubles == 0
    with pytest.raises(Exception, match="temporarily unavailable"):
        kernel.sockets["shell"].recv(flags=1)


def test_a_broken_stream_neither_uses_up_the_window_nor_widens_it(pair: Pair) -> None:
    """What was lost on the way counts no more, and what has come and was not consumed counts on: else it stands still, or overflows."""
    relay, kernel = pair
    server = Server(relay).connect()
    server.consuming = False
    for _ in range(40):
        kernel.send("iopub", b"x" * (1 << 20))
    for _ in range(30):  # each loses what its socket holds
        time.sleep(0.02)
        server.connect()
    while server.read(0.5):
        pass
    window = relay_wire.WINDOW
    assert window <= server.coming.total[relay_wire.IOPUB] < window + 2 * relay_wire.CHUNK
    server.connect()
    while server.read(0.5):
        pass
    assert server.coming.total[relay_wire.IOPUB] < window + 2 * relay_wire.CHUNK
    server.consuming = True
    server.coming.consumed = list(server.coming.total)
    server.acknowledge()
    server.until(lambda: len(server.on("iopub")) == 40)


def test_another_bridge_gets_all_that_was_not_released(pair: Pair) -> None:
    """The server was started again: what the notebook has not seen yet is there, marked as old; what it has seen is not."""
    relay, kernel = pair
    first = Server(relay).connect()
    first.send("shell", b"me", b"run")
    kernel.receive()
    for n in range(4):
        kernel.send("iopub", b"%d" % n)
        kernel.send("shell", b"me", b"reply %d" % n)
    first.until(lambda: len(first.messages) == 8)
    numbers = [n for n, (channel, _, _) in enumerate(first.messages, 1) if channel == "iopub"]
    first.release("iopub", number=numbers[1])
    wait_for(lambda: relay.status()["waiting"] == 2 * 3 + 4 * 9)
    first.close()
    kernel.send("iopub", b"4")
    wait_for(lambda: not relay.status()["server"])
    second = Server(relay).connect()
    assert (second.welcome["have"], second.welcome["received"]) == (0, [0, 0, 0, 0])
    assert bytes.fromhex(second.welcome["clients"][0]) == b"me"
    second.until(lambda: len(second.messages) == second.welcome["backlog"] == 7)
    assert second.on("iopub") == [[b"2"], [b"3"], [b"4"]]
    assert second.on("shell") == [[b"reply %d" % n] for n in range(4)]
    assert second.flags == {relay_wire.OLD}
    second.flags.clear()
    kernel.send("iopub", b"5")
    second.until(lambda: len(second.messages) == 8)
    assert second.flags == {0}


def test_a_new_server_takes_the_place_of_the_one_before(pair: Pair) -> None:
    """Two halves of servers on one kernel would each lose what the other one gets."""
    relay, kernel = pair
    first = Server(relay).connect()
    second = Server(relay).connect()
    with pytest.raises((EOFError, ConnectionError)):
        first.until(lambda: False)
    kernel.send("iopub", b"x")
    second.until(lambda: second.on("iopub") == [[b"x"]])


def test_a_request_that_was_cut_off_is_not_run(pair: Pair) -> None:
    """The client or the server died in the middle of a message: the kernel forgets that one, and takes the next."""
    relay, kernel = pair
    server = Server(relay).connect()
    whole = b"".join(map(bytes, zmtp.encode([b"half", b"y" * 200_000])))
    server.send("shell", b"me", b"one")
    assert kernel.receive()[1] == b"one"
    server.send_piece(0, b"me", whole[:150_000], 0)
    server.until(lambda: not server.unacknowledged)
    server.send_piece(0, b"me", b"", relay_wire.VOID)
    server.send("shell", b"me", b"two")
    assert kernel.receive()[1] == b"two"
    server.send_piece(0, b"me", whole[:150_000], 0)
    server.until(lambda: not server.unacknowledged)
    successor = Server(relay).connect()
    successor.send("shell", b"me", b"three")
    assert kernel.receive()[1] == b"three"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        b"\0" * 100,
        relay_wire.record(relay_wire.HELLO, payload=b"[]"),
        relay_wire.record(relay_wire.HELLO, payload=b"{"),
        relay_wire.record(relay_wire.HELLO, payload=b"[" * 100_000),
        relay_wire.told(relay_wire.HELLO, {"protocol": 2, "role": "server"}),
        relay_wire.told(relay_wire.HELLO, {"protocol": 1, "role": "server", "bridge": "x" * 32, "have": -1}),
        relay_wire.told(
            relay_wire.HELLO, {"protocol": 1, "role": "server", "bridge": "x" * 32, "received": [1]}
        ),
        relay_wire.told(relay_wire.TELL, {"tell": "stop"}),
        relay_wire.told(relay_wire.HELLO, {"protocol": 1, "role": "reader"}) + relay_wire.release(1, 3),
        relay_wire.told(relay_wire.HELLO, {"protocol": 1, "role": "listener"})
        + relay_wire.ack(1, [0, 0, 0, 0]),
        relay_wire.told(relay_wire.HELLO, {"protocol": 1, "role": "listener"})
        + relay_wire.told(relay_wire.TELL, {"tell": "connect", "info": 5}),
    ],
    ids=[str(n) for n in range(13)],
)
def test_rubbish_closes_its_stream_and_harms_no_other(pair: Pair, rubbish: bytes) -> None:
    """Whatever connects by mistake, the notebook that runs goes on."""
    relay, kernel = pair
    server = Server(relay).connect()
    with relay.connect() as sock:
        sock.settimeout(20)
        sock.sendall(rubbish)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while sock.recv(65536):
                pass
    kernel.send("iopub", b"x")
    server.until(lambda: server.on("iopub") == [[b"x"]])


@pytest.mark.parametrize("case", ["iopub", "ack", "release", "window", "identities"])
def test_a_server_that_breaks_the_rules_is_closed(pair: Pair, case: str) -> None:
    """A stream that is out of step is made anew; the relay's memory is not at its mercy."""
    relay, _ = pair
    server = Server(relay).connect()
    assert server.sock is not None
    with contextlib.suppress(OSError):
        if case == "iopub":
            server.send_piece(3, b"", b"\0\1x", relay_wire.ENDS)
        elif case == "ack":
            server.sock.sendall(relay_wire.record(relay_wire.ACK, 1, payload=b"123"))
        elif case == "release":
            server.sock.sendall(relay_wire.record(relay_wire.RELEASE, 1, payload=b"\x09"))
        elif case == "identities":
            server.sock.sendall(relay_wire.told(relay_wire.TELL, {"tell": "open", "identities": ["xyz"]}))
        else:
            nowhere = {"transport": "ipc", "ip": "/nowhere", **{f"{n}_port": 1 for n in relay_wire.CHANNELS}}
            with relay.connect() as sock:  # the answer would take as long as a kernel may
                sock.sendall(relay_wire.told(relay_wire.HELLO, {"protocol": 1, "role": "listener"}))
                sock.sendall(
                    relay_wire.told(relay_wire.TELL, {"tell": "connect", "info": nowhere, "name": "k"})
                )
                relay.status()
                for _ in range(100):
                    server.send_piece(0, b"me", b"x" * relay_wire.CHUNK, 0, careless=True)
    with pytest.raises((EOFError, ConnectionError)):
        server.until(lambda: False)
    Server(relay).connect()


# --- the kernel ----------------------------------------------------------------------------------------------------------------


def test_the_relay_goes_on_with_a_restarted_kernel(pair: Pair) -> None:
    """After a restart the notebook's connection is the same, and what waited for the kernel goes to the new one."""
    relay, kernel = pair
    server = Server(relay).connect()
    server.send("shell", b"me", b"one")
    assert kernel.receive() == [b"me", b"one"]
    kernel.stop()
    server.until(lambda: {"tell": "kernel", "state": "gone"} in server.told)
    server.send("shell", b"me", b"two")
    server.send("control", b"other", b"three")
    successor = FakeKernel()
    try:
        assert relay.to_kernel(successor.info) == {"tell": "connected"}
        assert successor.receive() == [b"me", b"two"]
        assert successor.receive("control") == [b"other", b"three"]
        successor.send("shell", b"me", b"done")
        server.until(lambda: bool(server.messages))
        assert server.messages == [("shell", b"me", [b"done"])]
        assert server.told[-1] == {"tell": "kernel", "state": "connected"}
    finally:
        successor.stop()


def test_what_the_dead_kernel_had_half_of_does_not_reach_its_successor(pair: Pair) -> None:
    """The rest of a request without its beginning is rubbish that would close the new kernel's connection."""
    relay, kernel = pair
    server = Server(relay).connect()
    whole = b"".join(map(bytes, zmtp.encode([b"half", b"y" * 400_000])))
    server.send("shell", b"me", b"one")
    assert kernel.receive() == [b"me", b"one"]
    server.send_piece(0, b"me", whole[:200_000], 0)
    server.until(lambda: server.going.consumed[0] >= 200_000 or not server.unacknowledged)
    time.sleep(0.2)
    kernel.stop()
    server.until(lambda: {"tell": "kernel", "state": "gone"} in server.told)
    server.send_piece(0, b"me", whole[200_000:], relay_wire.ENDS)
    server.send("shell", b"me", b"two")
    successor = FakeKernel()
    try:
        assert relay.to_kernel(successor.info) == {"tell": "connected"}
        assert successor.receive() == [b"me", b"two"]
    finally:
        successor.stop()


def test_a_listener_that_comes_back_disturbs_nothing(pair: Pair) -> None:
    """It tells the relay again where the kernel is: the reply to a cell that runs must not go astray."""
    relay, kernel = pair
    server = Server(relay).connect()
    server.send("shell", b"me", b"run")
    assert kernel.receive() == [b"me", b"run"]
    assert relay.to_kernel(kernel.info) == {"tell": "connected"}
    time.sleep(0.1)
    kernel.send("shell", b"me", b"done")
    server.until(lambda: server.on("shell") == [[b"done"]])
    assert {"tell": "kernel", "state": "gone"} not in server.told


def test_a_restart_on_the_same_addresses_is_a_restart(pair: Pair) -> None:
    """Kernels keep their addresses over a restart: the relay must not take the new one for the old one."""
    relay, kernel = pair
    server = Server(relay).connect()
    kernel.send("iopub", b"old")
    kernel.context.destroy(linger=200)
    successor = FakeKernel(at=kernel.directory)
    try:
        assert relay.to_kernel(successor.info) == {"tell": "connected"}
        successor.send("iopub", b"new")
        server.until(lambda: server.on("iopub") == [[b"old"], [b"new"]])
    finally:
        successor.stop()


def test_all_that_is_published_after_connected_arrives() -> None:
    """The listener answers the launch after "connected": a message that is published then must not be lost."""
    for _ in range(10):
        with relayed() as (relay, kernel):
            kernel.send("iopub", b"first")
            server = Server(relay).connect()
            while not server.messages:
                assert server.read(5)
            assert server.on("iopub") == [[b"first"]]


def test_half_a_message_of_a_dead_kernel_is_void(pair: Pair) -> None:
    """A kernel that is killed in the middle of a plot must not glue half of it to what its successor says."""
    relay, kernel = pair
    server = Server(relay).connect()
    dying = HandMadeKernel()
    thread = threading.Thread(target=dying.serve)
    thread.start()
    assert relay.to_kernel(dying.info) == {"tell": "connected"}
    whole = b"".join(map(bytes, zmtp.encode([b"topic", b"z" * 900_000])))
    dying.iopub.sendall(whole[:600_000])
    server.until(lambda: sum(map(len, server.partial.values())) > 0)
    thread.join()
    dying.close()
    server.until(lambda: server.partial == {} and {"tell": "kernel", "state": "gone"} in server.told)
    assert server.messages == []
    assert relay.to_kernel(kernel.info) == {"tell": "connected"}
    kernel.send("iopub", b"next")
    server.until(lambda: server.on("iopub") == [[b"next"]])


def test_a_kernel_of_zmtp_3_0_is_served() -> None:
    """Its library knows no PING, so there is no PONG to wait for."""
    relay, dying = RelayProcess(), HandMadeKernel(minor=0)
    try:
        thread = threading.Thread(target=dying.serve)
        thread.start()
        assert relay.to_kernel(dying.info) == {"tell": "connected"}
        thread.join()
        dying.iopub.sendall(b"\0\5hello")
        server = Server(relay).connect()
        server.until(lambda: server.on("iopub") == [[b"hello"]])
    finally:
        dying.close()
        relay.stop()


def test_why_a_kernel_cannot_be_relayed_is_told() -> None:
    """A launch that cannot work ends with a reason, not with a wait."""
    relay = RelayProcess()
    try:
        answer = relay.to_kernel(
            {"transport": "carrier pigeon", "ip": "x", **{f"{n}_port": 1 for n in relay_wire.CHANNELS}}
        )
        assert answer["tell"] == "failed"
        assert "carrier pigeon" in answer["why"]
        assert "shell_port" in relay.to_kernel({"transport": "tcp", "ip": "127.0.0.1"})["why"]
        with socket.socket() as web:
            web.bind(("127.0.0.1", 0))
            web.listen()
            info = {
                "transport": "tcp",
                "ip": "127.0.0.1",
                **{f"{n}_port": web.getsockname()[1] for n in relay_wire.CHANNELS},
            }
            asked: list[object] = []
            thread = threading.Thread(target=lambda: asked.append(relay.to_kernel(info)))
            thread.start()
            sock, _ = web.accept()
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 60)
            thread.join(20)
            sock.close()
        assert asked == [{"tell": "failed", "why": "not ZMTP 3"}]
    finally:
        relay.stop()


def test_a_successor_connects_for_the_clients_of_a_lost_relay() -> None:
    """The relay was killed while a cell ran: its reply still finds its way, through another one."""
    with relayed() as (relay, kernel):
        server = Server(relay).connect()
        server.send("shell", b"me", b"run")
        assert kernel.receive() == [b"me", b"run"]
        os.kill(relay.process.pid, signal.SIGKILL)
        relay.process.wait()
        other = RelayProcess()
        try:
            assert other.to_kernel(kernel.info) == {"tell": "connected"}
            server.relay, server.have, server.coming = other, 0, relay_wire.Credit()
            server.connect()
            assert server.sock is not None
            server.sock.sendall(
                relay_wire.told(relay_wire.TELL, {"tell": "open", "identities": [b"me".hex()]})
            )
            wait_for(lambda: b"me".hex() in other.status()["clients"])
            time.sleep(0.3)
            kernel.send("shell", b"me", b"done")
            server.until(lambda: server.on("shell") == [[b"done"]])
            server.sock.sendall(
                relay_wire.told(relay_wire.TELL, {"tell": "close", "identities": [b"me".hex()]})
            )
            wait_for(lambda: other.status()["clients"] == [])
        finally:
            other.stop()


# --- the process ---------------------------------------------------------------------------------------------------------------


def test_a_relay_ends_when_told_and_takes_its_socket_along() -> None:
    """Nothing is left of a kernel that was shut down."""
    relay = RelayProcess()
    assert Path(f"/proc/{relay.process.pid}/comm").read_text() == "dp-relay\n"
    assert os.stat(relay.path).st_mode & 0o777 == 0o600
    assert relay.tell({"tell": "stop"}) == {}
    assert relay.process.wait(5) == 0
    assert list(relay.directory.iterdir()) == []
    relay.stop()


def test_a_relay_keeps_no_descriptor_of_who_started_it() -> None:
    """A forked child that keeps its parent's sockets keeps its connections open after it has closed them."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    relay = RelayProcess(pass_fds=(writer,))
    try:
        os.close(writer)
        assert os.read(reader, 1) == b""
        assert os.getsid(relay.process.pid) == relay.process.pid
        names = [os.readlink(f"/proc/{relay.process.pid}/fd/{n}") for n in range(3)]
        assert len(names) == 3
    finally:
        os.close(reader)
        relay.stop()


def test_a_hundred_relays_have_room_on_a_host() -> None:
    """Each kernel has one: forked from a listener and idle, it takes less than 4 MB for itself."""
    code = """
import sys
for unused in ("ssl", "_hashlib", "bz2", "lzma"):
    sys.modules[unused] = None
sys.path.insert(0, sys.argv[1])
import asyncio, os, listener, relay
async def main():
    pid = os.fork()
    if not pid:
        relay.serve(sys.argv[2])
    print(pid, flush=True)
    sys.stdin.read()
    os.kill(pid, 15)
    print(os.waitpid(pid, 0)[1])
asyncio.run(main())
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = f"{directory}/t"
        command = [sys.executable, "-I", "-S", "-c", code, str(REMOTE), path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            wait_for(lambda: os.path.exists(path))
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
            time.sleep(0.2)
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
            files = {os.readlink(f"/proc/{pid}/fd/{n}") for n in range(3)}
            open_files = len(os.listdir(f"/proc/{pid}/fd"))
            process.stdin.close()
            assert process.stdout.read() == "0\n"
        assert private < 4096
        assert open_files == 3 + 2, files  # its socket and its selector
        assert os.listdir(directory) == []


class HandMadeKernel:
    """A kernel's iopub that speaks ZMTP byte by byte."""

    def __init__(self, minor: int = 1) -> None:
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen()
        port = self.listening.getsockname()[1]
        self.info = {
            "transport": "tcp",
            "ip": "127.0.0.1",
            "key": "k",
            **{f"{n}_port": port for n in relay_wire.CHANNELS},
        }
        self.minor = minor

    def serve(self) -> None:
        self.listening.settimeout(PATIENCE)
        self.iopub, _ = self.listening.accept()
        greeting = bytearray(zmtp.GREETING)
        greeting[11] = self.minor
        self.iopub.sendall(bytes(greeting) + zmtp.ready(b"XPUB"))
        engine, subscribed = zmtp.Engine(b"XPUB"), False
        while not subscribed:
            for name, body, _ in engine.feed(self.iopub.recv(4096)):
                subscribed = subscribed or (name == b"PING" if self.minor else bytes(body) == b"\0\1\1")
                assert self.minor or name != b"PING"
        if self.minor:
            self.iopub.sendall(zmtp.command(b"PONG", b"dp"))

    def close(self) -> None:
        self.iopub.close()
        self.listening.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_status_tells_the_last_state_of_the_kernel(pair: Pair) -> None:
    """A server that adopts a kernel shows whether it is busy; text that only looks like a status does not count."""
    relay, kernel = pair
    kernel.publish("status", {"execution_state": "busy"})
    wait_for(lambda: relay.status()["execution_state"] == "busy")
    kernel.publish("stream", {"name": "stdout", "text": '"execution_state": "idle"'})
    kernel.publish("display_data", {"data": {"application/json": {"execution_state": "idle"}}})
    kernel.publish("status", {"execution_state": "busy", "x": json.dumps({"execution_state": "idle"})})
    wait_for(lambda: relay.status()["waiting"] > 600)
    assert relay.status()["execution_state"] == "busy"
    kernel.publish("status", {"execution_state": "idle"})
    wait_for(lambda: relay.status()["execution_state"] == "idle")
