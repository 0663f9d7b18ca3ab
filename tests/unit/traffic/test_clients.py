"""Any ZMQ client is served at the near ends as a kernel would serve it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
import zmq

from distributed_provisioner.traffic import clients as clients_module
from distributed_provisioner.traffic import farewells

from ..remote.relaying import FakeKernel, RelayProcess, wait_for, zmtp
from .serving import Near, served

Three = tuple[Near, FakeKernel, RelayProcess]


@pytest.fixture
def three() -> Iterator[Three]:
    with served() as found:
        yield found


@pytest.mark.parametrize("channel", ["shell", "control", "stdin"])
@pytest.mark.parametrize("identity", [b"me", b"x" * 255, b""])
def test_requests_and_answers_find_their_way(channel: str, identity: bytes, three: Three) -> None:
    """A client with a name, or without one, has a kernel to itself."""
    near, kernel, _ = three
    client, other = near.connect(channel, identity), near.connect(channel, b"another")
    for frames in ([b"x"], [b"", b"<IDS|MSG>", b"y" * 300], [os.urandom(3 << 20), b"", b"end"]):
        client.send_multipart(frames)
        name, *said = kernel.receive(channel)
        assert said == frames
        assert name == identity or (not identity and len(name) == 16)
        kernel.send(channel, name, b"answer", *frames)
        assert client.recv_multipart() == [b"answer", *frames]
    assert other.poll(50) == 0


@pytest.mark.parametrize("socket_type", [zmq.REQ, zmq.DEALER, zmq.ROUTER])
def test_sockets_of_each_type_that_may_talk_to_a_kernel_are_served(socket_type: int, three: Three) -> None:
    """Kernel clients in other languages choose REQ or ROUTER."""
    near, kernel, _ = three
    client = near.connect("shell", b"me", socket_type=socket_type)
    if socket_type == zmq.ROUTER:
        time.sleep(0.2)  # it drops what it sends to somebody whom it does not know yet
        client.send_multipart(
            [b"", b"hello"]
        )  # our end has the empty name, but the system's ROUTER makes one up
        return
    client.send_multipart([b"hello"])
    frames = kernel.receive()
    assert frames[-1] == b"hello"
    kernel.send("shell", *frames[:-1], b"world")
    assert client.recv_multipart() == [b"world"]


def test_the_heart_beats_as_long_as_the_kernel_lives(three: Three) -> None:
    """Clients take a kernel without a heartbeat for dead, and one with it for alive."""
    near, _, _ = three
    heart = near.connect("hb", timeout=2000)
    for beat in (b"ping", os.urandom(70000)):
        heart.send(beat)
        assert heart.recv() == beat
    near.call(near.bridge.rest)
    heart.send(b"ping")
    assert heart.poll(200) == 0


def test_subscriptions_select_by_the_beginning_of_the_first_frame(three: Three) -> None:
    """Watchers subscribe to a part of what a kernel publishes."""
    near, kernel, _ = three
    everything, some = near.subscriber(), near.subscriber(b"stream.", b"status")
    for topic in (b"stream.stdout", b"display", b"status", b"x" * 70000):
        kernel.send("iopub", topic, b"data")
    assert [everything.recv_multipart()[0][:10] for _ in range(4)] == [
        b"stream.std",
        b"display",
        b"status",
        b"x" * 10,
    ]
    assert [some.recv_multipart()[0] for _ in range(2)] == [b"stream.stdout", b"status"]
    some.unsubscribe(b"stream.")
    wait_for(lambda: any(client.topics == [b"status"] for client in near.bridge._publisher._live))
    kernel.send("iopub", b"stream.stdout", b"unheard")
    kernel.send("iopub", b"status", b"heard")
    assert some.recv_multipart() == [b"status", b"heard"]


def test_a_client_of_zmtp_3_0_is_served(three: Three) -> None:
    """JeroMQ and old libraries subscribe by a message, and know no commands but READY."""
    near, kernel, _ = three
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(f"{near.prefix}-2")
        greeting = zmtp.SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
        sock.sendall(greeting + zmtp.ready(b"SUB") + b"\0\4\1abc")
        wait_for(lambda: len(near.bridge._publisher._live) == 1)
        kernel.send("iopub", b"other", b"1")
        kernel.send("iopub", b"abcd", b"2")
        data = b""
        while b"abcd" not in data:
            data += sock.recv(65536)
        assert data.endswith(b"\1\4abcd\0\0012")
        assert b"other" not in data


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 8 + b"\x7f\1", zmtp.GREETING + zmtp.ready(b"PUSH")]
)
def test_who_is_no_client_is_turned_away(said: bytes, three: Three) -> None:
    """Rubbish at one near end harms nobody else."""
    near, kernel, _ = three
    client = near.connect("shell", b"me")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(f"{near.prefix}-1")
        sock.sendall(said)
        while sock.recv(65536):
            pass
    client.send(b"still here")
    assert kernel.receive() == [b"me", b"still here"]


def test_a_second_client_of_the_same_name_gets_the_answers_to_what_it_asks(three: Three) -> None:
    """Jupyter's managers give all their clients one name; the newest takes over, and an older one that asks again is heard."""
    near, kernel, _ = three
    first = near.connect("shell", b"me")
    first.send(b"1")
    assert kernel.receive() == [b"me", b"1"]
    second = near.connect("shell", b"me")
    wait_for(lambda: len(near.bridge._routes[0].clients) == 2)
    kernel.send("shell", b"me", b"answer 1")
    assert second.recv() == b"answer 1"
    first.send(b"2")
    assert kernel.receive() == [b"me", b"2"]
    kernel.send("shell", b"me", b"answer 2")
    assert first.recv() == b"answer 2"
    assert second.poll(50) == 0


def test_two_clients_of_one_name_never_mix_their_messages(three: Three) -> None:
    """They share one connection to the kernel: half of one's message within another's would ruin both."""
    near, kernel, _ = three
    clients = [near.connect("shell", b"me") for _ in range(2)]
    data = [bytes([65 + n]) * (5 << 20) for n in range(2)]
    for client, each in zip(clients, data, strict=True):
        client.send_multipart([each, b"end"])
    assert sorted(tuple(kernel.receive()) for _ in range(2)) == [(b"me", each, b"end") for each in data]


def test_a_client_that_goes_in_the_middle_of_a_message_spoils_nothing(three: Three) -> None:
    """Its name's next message must not be taken for the rest of it."""
    near, kernel, _ = three
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{near.prefix}-1")
        sock.sendall(
            zmtp.GREETING + zmtp.ready(b"DEALER", b"me") + zmtp.frame_header(1 << 20) + b"x" * 600000
        )
        wait_for(lambda: near.bridge._link.outbox._number > 0)
    wait_for(lambda: not near.bridge._routes[0].clients)
    client = near.connect("shell", b"me")
    client.send_multipart([b"a", b"b"])
    assert kernel.receive() == [b"me", b"a", b"b"]


def test_a_subscriber_that_does_not_read_stops_no_other_one(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page in a suspended browser tab must not make the notebook beside it stand still; its backlog is bounded."""
    near, kernel, _ = three
    monkeypatch.setattr(clients_module, "PATIENCE", 0.3)
    asleep, awake = near.subscriber(rcvhwm=10), near.subscriber()
    for number in range(60):
        kernel.send("iopub", b"%d" % number, os.urandom(1 << 20))
    assert [awake.recv_multipart()[0] for _ in range(60)] == [b"%d" % number for number in range(60)]
    (slow,) = [client for client in near.bridge._publisher._live if client.hopeless]
    assert slow.waiting <= 16 << 20
    while asleep.poll(300):
        asleep.recv_multipart()
    wait_for(lambda: not slow.hopeless)
    kernel.send("iopub", b"again", b"")
    assert asleep.recv_multipart() == awake.recv_multipart() == [b"again", b""]


def test_the_only_subscriber_loses_nothing_however_late_it_reads(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that reads its output an hour later still has all of it: the relay keeps it."""
    near, kernel, _ = three
    monkeypatch.setattr(clients_module, "PATIENCE", 0.1)
    asleep = near.subscriber(rcvhwm=10)
    for number in range(60):
        kernel.send("iopub", b"%d" % number, os.urandom(1 << 20))
    time.sleep(1)
    assert sum(client.waiting for client in near.bridge._publisher._live) <= 16 << 20
    assert [asleep.recv_multipart()[0] for _ in range(60)] == [b"%d" % number for number in range(60)]


@pytest.mark.parametrize("stall", [0.0, 1.5])
def test_subscribers_that_all_read_slowly_lose_nothing(
    stall: float, three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one server are slow together: it has much to do, or was held up for seconds. An `idle` that is lost is busy for ever."""
    near, kernel, _ = three
    monkeypatch.setattr(clients_module, "PATIENCE", 0.3)
    subscribers = [near.subscriber(rcvhwm=10) for _ in range(2)]
    for number in range(200):
        kernel.send("iopub", b"%d" % number, bytes(100_000))
    time.sleep(stall)
    for number in range(200):
        for subscriber in subscribers:
            assert subscriber.recv_multipart()[0] == b"%d" % number
        time.sleep(0.0 if stall else 0.01)


def test_an_empty_message_of_a_subscriber_is_passed_over(three: Three) -> None:
    """Any XSUB may send one; it is no subscription."""
    near, kernel, _ = three
    sock = near.context.socket(zmq.XSUB)
    near.sockets.append(sock)
    sock.linger, sock.rcvtimeo = 0, 20000
    sock.connect(f"ipc://{near.prefix}-2")
    for said in (b"", b"\x01"):
        sock.send(said)
    wait_for(lambda: bool(near.bridge._publisher._live))
    kernel.send("iopub", b"x", b"y")
    assert sock.recv_multipart() == [b"x", b"y"]


@pytest.mark.parametrize("name", [b"page", b""])
def test_the_kernel_keeps_no_connection_of_a_client_that_will_not_come_again(
    name: bytes, three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that a page is loaded it has another name: in weeks, a kernel would run out of descriptors."""
    near, kernel, relay = three
    monkeypatch.setattr(farewells, "STAYING_AWAY", 0.3)
    monkeypatch.setattr(farewells, "FAREWELL", 0.3)
    page, stays = near.connect("shell", name), near.connect("control", b"stays")
    for client, channel in ((page, "shell"), (stays, "control")):
        client.send(b"run")
        assert kernel.receive(channel)[-1] == b"run"
    parent = {"msg_id": "m1", "msg_type": "execute_request"}
    near.subscriber()
    kernel.publish("status", {"execution_state": "busy"}, parent)
    wait_for(lambda: bool(near.bridge._activity.running))
    page.close()
    time.sleep(1)
    assert len(relay.status()["clients"]) == 2  # it may still be answered
    kernel.publish("status", {"execution_state": "idle"}, parent)
    wait_for(lambda: relay.status()["clients"] == [b"stays".hex()])
    kernel.send("control", b"stays", b"answer")
    assert stays.recv() == b"answer"


def test_the_connections_of_an_earlier_servers_clients_are_closed_too(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of pages that were closed while the server was away; a page that is back keeps its own."""
    near, kernel, relay = three
    for name in (b"closed", b"open"):
        near.connect("shell", name).send(b"run")
        assert kernel.receive()[0] == name
    near.close()
    monkeypatch.setattr(farewells, "STAYING_AWAY", 1.0)
    successor = Near(relay.path)
    try:
        page = successor.connect("shell", b"open")
        wait_for(lambda: relay.status()["clients"] == [b"open".hex()])
        kernel.send("shell", b"open", b"answer")
        assert page.recv() == b"answer"
    finally:
        successor.close()


def test_nothing_goes_on_after_the_end_of_a_bridge(three: Three) -> None:
    """A timer that sets itself again would keep each kernel that there ever was."""
    near, kernel, _ = three
    for name in (b"", b"page"):
        near.connect("shell", name).send(b"run")
        kernel.receive()
    near.sockets.pop().close()
    wait_for(lambda: len(near.bridge._routes[0].clients) == 1)
    near.close()
    wait_for(lambda: not near.bridge._routes[0].clients)
    assert near.bridge._farewells._timer is None
    assert not near.bridge._farewells._due
