"""How the listener keeps a relay beside each kernel, and leads servers to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .driver import Bridge, ListenerError, launch_parameters, lives, stub_argv, until
from .relaying import Server

ZMQ_KERNEL = """
import json, os, sys, zmq
info = json.load(open(sys.argv[1]))
context, sockets = zmq.Context(), {}
for channel in ("shell", "iopub", "stdin", "control", "hb"):
    s = sockets[channel] = context.socket({"iopub": zmq.XPUB, "hb": zmq.REP}.get(channel, zmq.ROUTER))
    port = info[channel + "_port"]
    s.bind(f"ipc://{info['ip']}-{port}" if info["transport"] == "ipc" else f"tcp://{info['ip']}:{port}")
if sys.argv[2] == "eager":
    sockets["iopub"].recv()
    sockets["iopub"].send_multipart([b"first", b"words"])
while True:
    identity, word, *rest = sockets["shell"].recv_multipart()
    for number in range(int(rest[0]) if word == b"publish" else 0):
        sockets["iopub"].send_multipart([b"n", b"%d" % number, *rest[1:]])
    if word == b"end":
        os._exit(int(rest[0]))
    sockets["shell"].send_multipart([identity, word, b"%d" % os.getpid(), *rest])
"""
"""A kernel made of ZMQ sockets: does what the shell's messages say."""


def zmq_argv(mode: str = "") -> list[str]:
    return ["python", "-c", ZMQ_KERNEL, "{connection_file}", mode]


class At:
    """Where relaying.Server finds a relay."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.servers: list[Server] = []

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return sock


class Through(At):
    """The same by a channel of the control connection."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__("")
        self.bridge = bridge

    def connect(self) -> socket.socket:
        number = self.bridge.request("relay", kernel_id="k", generation=1, role="server")["channel"]
        near, far = socket.socketpair()

        def down() -> None:
            while data := self.bridge.frames[number].get():
                far.sendall(data)
            far.close()

        def up() -> None:
            with contextlib.suppress(ValueError, OSError):  # the bridge was closed first
                while data := far.recv(1 << 18):
                    self.bridge.send_frame(number, data)
                self.bridge.send_frame(number)
            self.bridge.frames[number].put(b"")

        for work in (down, up):
            threading.Thread(target=work, daemon=True).start()
        return near


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    found: list[Server] = []
    yield found
    for server in found:
        server.close()


def record_of(bridge: Bridge, kernel_id: str = "k") -> dict[str, Any]:
    for path in Path(bridge.welcome["directory"]).glob("*/record"):
        values: dict[str, Any] = json.loads(path.read_text())
        if values["kernel_id"] == kernel_id:
            return values
    raise KeyError(kernel_id)


def ask(server: Server, *frames: bytes) -> list[bytes]:
    """Send a request to the kernel, and await its reply."""
    before = len(server.on("shell"))
    server.send("shell", b"me", *frames)
    server.until(lambda: len(server.on("shell")) > before)
    return server.on("shell")[-1]


# --- beginning ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_relay_hears_the_kernel_before_the_launch_is_answered(
    bridge: Bridge, servers: list[Server], transport: str
) -> None:
    """What a kernel publishes first would be lost, and a notebook would wait for it."""
    kernel = bridge.launch(zmq_argv("eager"), transport=transport, relay=True)
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(server)
    server.until(lambda: server.on("iopub") == [[b"first", b"words"]])
    assert ask(server, b"hello")[1] == b"%d" % kernel["pid"]
    assert Path(kernel["relay"]).stat().st_mode & 0o777 == 0o600
    [status] = bridge.request("list")["kernels"]
    assert status["relay"] == kernel["relay"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"relay": False},
        {"relay": True, "encryption": {"curve_publickey": "p", "curve_secretkey": "s"}},
        {"relay": True, "transport": "direct", "address": "127.0.0.1"},
    ],
)
def test_kernel_that_no_relay_can_speak_with_has_none(bridge: Bridge, parameters: dict[str, Any]) -> None:
    """With Curve, or where the server comes by itself, a relay would only stand in the way."""
    kernel = bridge.launch(stub_argv(), **parameters)
    assert kernel["relay"] is None
    assert record_of(bridge)["relay_pid"] == 0
    with pytest.raises(ListenerError, match="has no relay") as caught:
        bridge.request("relay", kernel_id="k", generation=1, role="server")
    assert caught.value.kind == "no-relay"


def test_kernel_that_speaks_another_protocol_is_told_as_that(bridge: Bridge) -> None:
    """A launch that cannot be used must fail with the reason, and leave nothing."""
    code = (
        "import contextlib, threading\n"
        "def say(s):\n"
        "  while True:\n"
        "    c, _ = s.accept()\n"
        "    with contextlib.suppress(OSError): c.sendall(b'HTTP/1.1 400 Bad Request' * 9)\n"
        "for s in held: threading.Thread(target=say, args=(s,)).start()"
    )
    begun = time.monotonic()
    with pytest.raises(ListenerError, match="relay cannot connect to it: not ZMTP 3") as caught:
        bridge.launch(stub_argv(code), relay=True)
    assert time.monotonic() - begun < 5
    assert caught.value.kind == "relay"
    until(lambda: not relays_of(bridge))
    assert not bridge.request("list")["kernels"]


def relays_of(bridge: Bridge) -> list[int]:
    """pids of the relays below the bridge's home."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text() == "dp-relay\n":
                environment = (path / "environ").read_bytes().split(b"\0")
                if b"HOME=" + bridge.welcome["home"].encode() in environment:
                    found.append(int(path.name))
        except OSError:
            pass  # it ended meanwhile
    return found


def test_relay_has_nothing_of_the_listeners(home: Path, bridge: Bridge) -> None:
    """A relay that held the listener's sockets would keep them open for ever; one that shared its group would end with it."""
    other = Bridge(home)
    bridge.launch(zmq_argv(), "first", relay=True)
    bridge.launch(zmq_argv(), relay=True)
    pid, listener = record_of(bridge)["relay_pid"], bridge.welcome["pid"]

    def sockets(process: int) -> set[str]:
        links = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()]
        return {link for link in links if link.startswith("socket:")}

    assert not sockets(pid) & sockets(listener)
    assert os.getsid(pid) == pid
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(fields["SigBlk"], 16) == 0
    assert fields["Name"] == "dp-relay"
    other.close()


# --- its end --------------------------------------------------------------------------------------------------------------------------


def test_relay_outlives_the_kernel_and_ends_with_forget(bridge: Bridge, servers: list[Server]) -> None:
    """What a kernel said last can still be read after its end; when nobody wants it any more, nothing stays."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    pid = record_of(bridge)["relay_pid"]
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(server)
    ask(server, b"publish", b"3")
    server.send("shell", b"me", b"end", b"7")
    assert bridge.event()["code"] == 7
    successor = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(successor)
    successor.until(lambda: len(successor.on("iopub")) == 3)
    bridge.request("forget", kernel_id="k", generation=1)
    assert not lives(pid)
    assert not relays_of(bridge)
    assert not os.path.exists(os.path.dirname(kernel["relay"]))


def test_relay_is_no_process_of_the_kernel(bridge: Bridge, servers: list[Server]) -> None:
    """Ending a kernel's whole descent, or counting it, must pass the relay by."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    pid = record_of(bridge)["relay_pid"]
    [status] = bridge.request("list", usage=True)["kernels"]
    assert status["processes"] == 1
    assert bridge.request("end", kernel_id="k", generation=1, grace=0)["code"] == -9
    assert lives(pid)
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(server)
    assert server.welcome["kernel"] == "gone"


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_restart_keeps_the_relay_and_its_clients(
    bridge: Bridge, servers: list[Server], transport: str
) -> None:
    """A notebook that is open over a restart goes on with the same connection and loses nothing."""
    first = bridge.launch(zmq_argv(), transport=transport, relay=True)
    server = Server(At(first["relay"])).connect()  # type: ignore[arg-type]
    servers.append(server)
    assert ask(server, b"a")[1] == b"%d" % first["pid"]
    second = bridge.launch(zmq_argv(), generation=2, transport=transport, relay=True, ports=first["ports"])
    assert second["relay"] == first["relay"]
    assert second["pid"] != first["pid"]
    assert ask(server, b"b")[1] == b"%d" % second["pid"]
    assert len(relays_of(bridge)) == 1
    bridge.request("forget", kernel_id="k", generation=2)
    assert not relays_of(bridge)


@pytest.mark.parametrize("pause", [0.0, 0.003])
def test_restart_while_the_old_kernel_is_being_forgotten_is_a_restart(bridge: Bridge, pause: float) -> None:
    """So it is when somebody restarts a kernel whose host is away: as soon as it is back, the one is ended and the other begun."""
    first = bridge.launch(zmq_argv(), relay=True)
    forget = bridge.send("forget", kernel_id="k", generation=1, keep_log=False)
    time.sleep(pause)
    launch = bridge.send(
        "launch",
        **launch_parameters(zmq_argv(), generation=2, relay=True, ip=first["ip"], ports=first["ports"]),
    )
    bridge.reply(forget)
    second = bridge.reply(launch)
    assert second["ip"] == first["ip"]
    assert record_of(bridge)["generation"] == 2
    assert Path(second["relay"]).is_socket()
    assert not lives(first["pid"])


def test_restart_without_a_relay_ends_the_one_before(bridge: Bridge) -> None:
    """An option that was changed takes effect with the restart, and leaves no process behind."""
    bridge.launch(zmq_argv(), relay=True)
    assert bridge.launch(stub_argv(), generation=2, relay=False)["relay"] is None
    assert not relays_of(bridge)
    assert bridge.launch(zmq_argv(), generation=3, relay=True)["relay"]
    with pytest.raises(ListenerError):
        bridge.launch(["python", "-c", "raise SystemExit(3)"], generation=4, relay=True)
    assert not relays_of(bridge)
    assert not bridge.request("list")["kernels"]


def test_cancelled_restart_leaves_no_relay(bridge: Bridge) -> None:
    """The relay waits for the kernel that takes the place of the old one; if none comes it must go."""
    bridge.launch(zmq_argv(), relay=True)
    number = bridge.send("launch", **launch_parameters(zmq_argv(), generation=2, relay=True))
    bridge.request("cancel", kernel_id="k", generation=2)
    with pytest.raises(ListenerError, match="cancelled"):
        bridge.reply(number)
    until(lambda: not relays_of(bridge), 2)
    assert [path.name for path in Path(bridge.welcome["directory"]).iterdir()] == ["s"]


# --- faults ---------------------------------------------------------------------------------------------------------------------------


def test_killed_relay_is_started_again_at_the_same_place(bridge: Bridge, servers: list[Server]) -> None:
    """A living kernel whose relay was killed must be reachable again, each time, and the server told."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    for _ in range(3):
        before = record_of(bridge)["relay_pid"]
        os.kill(before, signal.SIGKILL)
        event = bridge.event()
        assert (event["event"], event["kernel_id"]) == ("note", "k")
        assert "was started again" in event["text"]
        assert record_of(bridge)["relay_pid"] != before
        server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
        servers.append(server)
        assert ask(server, b"a")[1] == b"%d" % kernel["pid"]
    assert len(relays_of(bridge)) == 1


def test_relay_of_a_killed_listener_is_found_again(home: Path, bridge: Bridge, servers: list[Server]) -> None:
    """kill -9 of the listener loses nothing that a relay has, nor the watch over it."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    pid = record_of(bridge)["relay_pid"]
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(server)
    ask(server, b"publish", b"2")
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    again = Bridge(home)
    [status] = again.request("adopt", kernels=[{"kernel_id": "k", "generation": 1}])["kernels"]
    assert status["relay"] == kernel["relay"]
    assert relays_of(bridge) == [pid]
    assert ask(server, b"a")[1] == b"%d" % kernel["pid"]
    os.kill(pid, signal.SIGKILL)
    assert "was started again" in again.event()["text"]
    second = again.launch(zmq_argv(), generation=2, relay=True)
    assert second["relay"] == kernel["relay"]
    again.request("forget", kernel_id="k", generation=2)
    assert not relays_of(bridge)
    again.close()


def test_relay_that_died_with_its_listener_is_started_again(home: Path, bridge: Bridge) -> None:
    """Who kills all of ours but the kernel must not cut it off."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    pid = record_of(bridge)["relay_pid"]
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    again = Bridge(home)
    until(lambda: relays_of(bridge) not in ([], [pid]))
    server = Server(At(kernel["relay"]))  # type: ignore[arg-type]
    until(lambda: Path(kernel["relay"]).exists())
    server.connect()
    assert ask(server, b"a")[1] == b"%d" % kernel["pid"]
    server.close()
    again.close()


def test_stopped_relay_does_not_hold_up_a_list(bridge: Bridge) -> None:
    """One sick process must not keep a user from seeing all the others."""
    bridge.launch(zmq_argv(), relay=True)
    pid = record_of(bridge)["relay_pid"]
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert [k["state"] for k in bridge.request("list")["kernels"]] == ["running"]
    assert time.monotonic() - begun < 2
    os.kill(pid, signal.SIGCONT)


def test_connections_live_on_when_the_runtime_directory_is_deleted(
    home: Path, bridge: Bridge, servers: list[Server]
) -> None:
    """rm -rf in /tmp by a cleaner or a user: the kernel computes on, its server goes on, and the next one finds the listener."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(server)
    ask(server, b"a")
    shutil.rmtree(bridge.welcome["directory"])
    assert ask(server, b"publish", b"2")[1] == b"%d" % kernel["pid"]
    again = Bridge(home)
    assert again.welcome["pid"] == bridge.welcome["pid"]
    assert again.welcome["kernels"][0]["state"] == "running"
    assert ask(server, b"b")[1] == b"%d" % kernel["pid"]
    until(lambda: os.path.exists(kernel["relay"]))
    server.release("shell", b"me")
    server.close()
    successor = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    servers.append(successor)
    assert ask(successor, b"c")[1] == b"%d" % kernel["pid"]
    again.request("forget", kernel_id="k", generation=1)
    until(lambda: not relays_of(bridge))
    again.close()


# --- through the control connection -----------------------------------------------------------------------------------------------


def test_relay_is_reached_through_the_control_connection(bridge: Bridge, servers: list[Server]) -> None:
    """Sites that forbid every forwarding have the control channel, for large messages beside requests."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    server = Server(Through(bridge)).connect()  # type: ignore[arg-type]
    servers.append(server)
    big = os.urandom(6 << 20)
    reply = ask(server, b"echo", big)
    assert reply[1:] == [b"%d" % kernel["pid"], big]
    assert bridge.request("ping") == {}
    server.release("shell", b"me")
    server.close()
    again = Server(Through(bridge)).connect()  # type: ignore[arg-type]
    servers.append(again)
    assert ask(again, b"a")[1] == b"%d" % kernel["pid"]


# --- cost -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_relay_costs_a_launch_nothing_to_speak_of(bridge: Bridge) -> None:
    """The relay starts while the kernel does: who waits for a kernel must not wait for it."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(12):
        for relay in (False, True):
            begun = time.perf_counter()
            bridge.launch(zmq_argv(), f"k{number}{relay}", relay=relay)
            times[relay].append(time.perf_counter() - begun)
            bridge.request("forget", kernel_id=f"k{number}{relay}", generation=1)
    assert statistics.median(times[True]) < statistics.median(times[False]) + 0.02
