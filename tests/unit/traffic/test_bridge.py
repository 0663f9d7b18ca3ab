"""What a kernel says reaches those for whom it is, once and in order, whatever happens to the line, to clients and to the relay."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from distributed_provisioner.traffic import backlog, publisher, routes

from ..remote.relaying import FakeKernel, RelayProcess, relay_wire, wait_for
from .serving import STATUS_PARENT, Near, busy, client_of, opened, real, served, until

Three = tuple[Near, FakeKernel, RelayProcess]


@pytest.fixture
def three() -> Iterator[Three]:
    with served() as found:
        yield found


# --- clients that are not there ------------------------------------------------------------------------------------------------


def test_what_is_published_before_anybody_listens_is_heard_by_the_first_who_does(three: Three) -> None:
    """A kernel says `starting`, and its first cell may print, before its client has connected."""
    near, kernel, _ = three
    for number in range(5):
        kernel.send("iopub", b"%d" % number)
    kernel.send("iopub", b"large", os.urandom(1 << 20))
    wait_for(lambda: near.bridge._link.count >= 6)
    first = near.subscriber()
    assert [first.recv_multipart()[0] for _ in range(6)] == [b"0", b"1", b"2", b"3", b"4", b"large"]
    second = near.subscriber()
    kernel.send("iopub", b"new")
    assert second.recv() == first.recv() == b"new"


def test_an_answer_waits_for_its_client(three: Three) -> None:
    """A page that reconnects gets the reply to what it asked before."""
    near, kernel, _ = three
    client = near.connect("shell", b"me")
    client.send(b"question")
    assert kernel.receive() == [b"me", b"question"]
    client.close()
    wait_for(lambda: not near.bridge._routes[0].clients)
    data = os.urandom(2 << 20)
    kernel.send("shell", b"me", b"answer", data)
    kernel.send("shell", b"me", b"second")
    time.sleep(0.3)
    client = near.connect("shell", b"me")
    assert client.recv_multipart() == [b"answer", data]
    assert client.recv_multipart() == [b"second"]


def test_what_nobody_comes_for_is_given_up_after_a_while_and_kept_on_the_host(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's memory must not fill with answers to clients that never come again."""
    near, kernel, relay = three
    monkeypatch.setattr(routes, "HOLD_TIMEOUT", 0.5)
    client = near.connect("shell", b"me")
    client.send(b"question")
    assert kernel.receive() == [b"me", b"question"]
    client.close()
    wait_for(lambda: not near.bridge._routes[0].clients)
    kernel.send("shell", b"me", b"answer")
    wait_for(lambda: near.bridge._holds._bytes > 0)
    wait_for(lambda: near.bridge._holds._bytes == 0)
    assert not near.bridge._routes[0]._lanes
    again = near.connect("shell", b"me")
    assert again.poll(200) == 0
    assert relay.process.poll() is None


def test_holds_are_bounded_and_the_oldest_is_given_up_first(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten closed pages with large answers."""
    near, kernel, _ = three
    monkeypatch.setattr(routes, "HOLD_BYTES", 3 << 20)
    for name in (b"a", b"b", b"c"):
        client = near.connect("shell", name)
        client.send(b"question")
        kernel.receive()
        client.close()
    wait_for(lambda: not near.bridge._routes[0].clients)
    for name in (b"a", b"b", b"c"):
        kernel.send("shell", name, name * (5 << 18))
    wait_for(lambda: near.bridge._link.count >= 15)
    assert near.bridge._holds._bytes <= 3 << 20
    assert near.connect("shell", b"a").poll(200) == 0
    assert near.connect("shell", b"c").recv() == b"c" * (5 << 18)


# --- another server ----------------------------------------------------------------------------------------------------------------


def test_the_client_of_an_earlier_server_gets_what_it_missed_and_others_hear_only_news(three: Three) -> None:
    """A page that stayed open while the server was restarted shows all of its output; the server's own watcher is no page."""
    near, kernel, relay = three
    page, output = near.connect("shell", b"page"), near.subscriber()
    page.send(b"run")
    assert kernel.receive() == [b"page", b"run"]
    busy(kernel)
    output.recv_multipart()
    time.sleep(0.1)  # the relay has been told what was heard
    near.close()
    for number in range(3):
        kernel.send("iopub", b"missed %d" % number)
    kernel.send("shell", b"page", b"reply")
    successor = Near(relay.path)
    try:
        wait_for(successor.is_up)
        watcher = successor.connect("iopub")
        wait_for(lambda: len(successor.bridge._publisher._live) == 1)
        kernel.send("iopub", b"live")
        assert watcher.recv() == b"live"
        time.sleep(publisher.PAIRING)
        output, page = successor.connect("iopub"), successor.connect("shell", b"page")
        assert page.recv() == b"reply"
        # The first one is for Jupyter Server, which throws it away; the second one is for the page.
        for _ in range(2):
            assert opened(output.recv_multipart()) == ("status", {}, {"execution_state": "busy"})
        assert [output.recv() for _ in range(4)] == [b"missed 0", b"missed 1", b"missed 2", b"live"]
        kernel.send("iopub", b"more")
        assert output.recv() == watcher.recv() == b"more"
        time.sleep(publisher.PAIRING + 0.2)  # then it is sure that nobody else is meant
    finally:
        successor.close()
    last = Near(relay.path)
    try:
        wait_for(last.is_up)
        assert last.connect("shell", b"page").poll(200) == 0
        output = last.connect("iopub")
        for _ in range(2):
            assert opened(output.recv_multipart())[0] == "status"
        assert output.poll(1000) == 0
    finally:
        last.close()


def test_a_page_that_is_back_before_the_relay_is_connected_gets_what_it_missed(three: Three) -> None:
    """Its host may be slow to answer; nothing is kept for it for ten more minutes, and nothing comes twice."""
    near, kernel, relay = three
    near.connect("shell", b"page").send(b"run")
    kernel.receive()
    near.close()
    kernel.send("iopub", b"missed")
    successor = Near(relay.path + "-not-yet")
    try:
        successor.connect("shell", b"page")
        output = successor.connect("iopub")
        wait_for(lambda: bool(successor.bridge._publisher._new) and bool(successor.bridge._routes[0].clients))
        successor.path = relay.path
        assert output.recv() == b"missed"
        wait_for(lambda: successor.bridge._publisher._backlog is None, 2 * publisher.PAIRING + 1)
        successor.connect("shell", b"page")
        assert output.poll(int(2000 * publisher.PAIRING)) == 0
    finally:
        successor.close()


def test_a_server_whose_kernel_another_one_took_stays_away(three: Three) -> None:
    """Else the two would push each other out, over and over."""
    near, kernel, relay = three
    successor = Near(relay.path)
    try:
        wait_for(lambda: successor.is_up() and not near.is_up())
        output = successor.subscriber()
        time.sleep(1)
        assert len(near.streams) == len(successor.streams) == 1
        kernel.send("iopub", b"heard")
        assert output.recv() == b"heard"
    finally:
        successor.close()


def test_the_backlog_for_clients_of_an_earlier_server_is_bounded(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that never comes back must not cost the server's memory."""
    near, kernel, relay = three
    monkeypatch.setattr(backlog, "HOLD_BYTES", 2 << 20)
    near.connect("shell", b"page").send(b"run")
    kernel.receive()
    near.close()
    for number in range(8):
        kernel.send("iopub", b"%d" % number, os.urandom(1 << 20))
    successor = Near(relay.path)
    try:
        wait_for(lambda: successor.bridge._link.count >= 32)
        time.sleep(0.2)
        assert successor.bridge._publisher._backlog is not None
        assert successor.bridge._publisher._backlog._bytes <= 3 << 20
        output = successor.connect("iopub")
        successor.connect("shell", b"page")
        assert output.recv_multipart()[0] == b"7"
    finally:
        successor.close()


# --- the line -------------------------------------------------------------------------------------------------------------------------


def test_forty_broken_streams_under_load_lose_and_double_nothing() -> None:
    """Each request is run once, and every byte of output arrives once, in order."""
    with real() as (near, _, _):
        client = client_of(near)
        client.wait_for_ready(timeout=20)
        client.execute_interactive("runs = []", timeout=10)
        cuts, done = [0], threading.Event()

        def cut() -> None:
            while cuts[0] < 40 and not done.wait(0.04):
                if near.is_up():
                    near.cut()
                    cuts[0] += 1

        cutting = threading.Thread(target=cut)
        cutting.start()
        requests = 0
        try:
            while cutting.is_alive() or requests < 20:
                printed = ""

                def hook(message: dict[str, Any]) -> None:
                    nonlocal printed
                    printed += message["content"]["text"] if message["msg_type"] == "stream" else ""

                code = f"runs.append({requests})\nfor i in range(20): print({requests}, i, 'x' * 3000)"
                client.execute_interactive(code, timeout=20, output_hook=hook)
                assert printed == "".join(f"{requests} {i} {'x' * 3000}\n" for i in range(20))
                requests += 1
        finally:
            done.set()
            cutting.join()
        assert cuts[0] == 40
        reply = client.execute_interactive(
            "", user_expressions={"v": f"runs == list(range({requests}))"}, timeout=10
        )
        assert reply["content"]["user_expressions"]["v"]["data"]["text/plain"] == "True"
        client.stop_channels()


def test_large_messages_pass_whole_over_broken_streams(three: Three) -> None:
    """A picture of 30 MB, in both directions, with ten cuts."""
    near, kernel, _ = three
    client, output = near.connect("shell", b"me"), near.subscriber()
    data = os.urandom(30 << 20)
    client.send_multipart([b"up", data])
    kernel.send("iopub", b"down", data)
    for _ in range(10):
        time.sleep(0.03)
        wait_for(near.is_up)
        near.cut()
    assert output.recv_multipart() == [b"down", data]
    assert kernel.receive() == [b"me", b"up", data]


def test_what_is_done_with_is_said_soon_on_a_quiet_stream_and_seldom_under_load(three: Three) -> None:
    """A server that is killed before that shows lines twice; a record for each message would double the traffic."""
    near, kernel, _ = three
    output = near.subscriber()
    said: list[float] = []
    stream = near.streams[-1]

    def note(data: bytes | memoryview) -> None:
        said.append(time.monotonic())
        stream.transport.write(data)

    near.call(lambda: setattr(stream, "write", note))
    pauses = []
    for _ in range(20):
        time.sleep(0.05)
        said.clear()
        kernel.send("iopub", b"line")
        assert output.recv() == b"line"
        heard = time.monotonic()
        wait_for(lambda: bool(said))
        pauses.append(said[0] - heard)
    assert sorted(pauses)[10] < relay_wire.ACK_SECONDS * 0.6
    time.sleep(0.1)
    said.clear()
    started = time.monotonic()
    for _ in range(3000):
        kernel.send("iopub", b"line")
    for _ in range(3000):
        output.recv()
    assert len(said) <= (time.monotonic() - started) / relay_wire.ACK_SECONDS + 2


# --- the kernel and its relay ---------------------------------------------------------------------------------------------------------


def test_a_kernel_that_ends_says_all_it_had_to_say_and_then_its_reason_is_told(three: Three) -> None:
    """Killed for memory: the cell's last lines, and why, in the notebook."""
    near, kernel, _ = three
    output = near.subscriber()
    busy(kernel)
    for number in range(50):
        kernel.send("iopub", b"%d" % number, b"x" * 10000)
    wait_for(lambda: near.bridge._link.count >= 51)
    kernel.context.destroy(linger=500)

    async def end() -> None:
        await near.bridge.drain()
        near.bridge.say("The kernel has ended: killed for memory.")

    started = time.monotonic()
    near.run(end())
    assert time.monotonic() - started < 2.5
    output.recv_multipart()
    assert [output.recv_multipart()[0] for _ in range(50)] == [b"%d" % number for number in range(50)]
    kind, parent, content = opened(output.recv_multipart())
    assert (kind, parent) == ("stream", STATUS_PARENT)
    assert content == {"name": "stderr", "text": "The kernel has ended: killed for memory.\n"}


def test_half_a_message_of_a_kernel_that_ended_spoils_nothing(three: Three) -> None:
    """After the restart the same clients go on."""
    near, kernel, relay = three
    output = near.subscriber()
    kernel.send("iopub", b"first")
    assert output.recv() == b"first"
    near.call(
        lambda: near.bridge._publisher.piece(
            0, 1, memoryview(b"\2" + (1 << 20).to_bytes(8, "big") + b"x" * 300000)
        )
    )
    near.call(lambda: near.bridge._publisher.piece(2, 2, memoryview(b"")))

    def heard() -> bool:
        kernel.send("iopub", b"next")
        return output.poll(100) != 0

    wait_for(heard)
    assert output.recv() == b"next"
    assert relay.process.poll() is None


def test_a_relay_that_was_killed_is_replaced_and_the_running_request_is_answered() -> None:
    """Its successor knows nothing: nothing is asked twice, and the user is told."""
    with real() as (near, relay, info):
        client = client_of(near)
        client.wait_for_ready(timeout=20)
        client.execute_interactive("n = 0", timeout=10)
        client.execute("import time; n += 1; time.sleep(1.5)")
        until(client, "execute_input")
        relay.process.kill()
        relay.process.wait()
        os.unlink(relay.path)
        successor = RelayProcess()
        try:
            near.path = successor.path
            assert successor.to_kernel(info) == {"tell": "connected"}
            (*_, told) = until(client, "stream")
            assert "relay on host1" in told["content"]["text"]
            assert client.get_shell_msg(timeout=10)["content"]["status"] == "ok"
            reply = client.execute_interactive("", user_expressions={"n": "n"}, timeout=10)
            assert reply["content"]["user_expressions"]["n"]["data"]["text/plain"] == "1"
        finally:
            client.stop_channels()
            successor.stop()


def test_what_was_held_when_the_relay_was_killed_says_nothing_about_its_successor(three: Three) -> None:
    """Its successor counts anew: told that 9 pieces are done with, it would drop the first 9 that it has."""
    near, kernel, relay = three
    near.connect("shell", b"page").send(b"run")
    assert kernel.receive() == [b"page", b"run"]
    near.sockets.pop().close()
    wait_for(lambda: not near.bridge._routes[0].clients)
    for number in range(9):
        kernel.send("shell", b"page", b"reply %d" % number)
    wait_for(lambda: near.bridge._link.count == 9)
    relay.process.kill()
    relay.process.wait()
    os.unlink(relay.path)
    successor = RelayProcess()
    try:
        assert successor.to_kernel(kernel.info) == {"tell": "connected"}
        near.path = successor.path
        wait_for(lambda: near.is_up() and near.bridge._link.count == 9)
        page = near.connect("shell", b"page")
        assert [page.recv() for _ in range(9)] == [b"reply %d" % number for number in range(9)]
        time.sleep(0.1)
        assert max(near.bridge._link._released.values(), default=0) <= near.bridge._link._have
    finally:
        successor.stop()


def test_each_subscriber_gets_a_welcome_of_its_own_where_the_kernel_sends_them() -> None:
    """JEP 65: clients wait for it; jupyter_client raises on one that it has seen."""
    with real() as (near, _, _):
        ids = set()
        for _ in range(3):
            client = client_of(near)
            ids.add(until(client, "iopub_welcome")[-1]["header"]["msg_id"])
            client.wait_for_ready(timeout=20)
            client.stop_channels()
        assert len(ids) == 3


def test_a_flood_keeps_the_loop_free_for_other_kernels(three: Three) -> None:
    """The I/O thread carries all kernels: none may hold it for more than a moment."""
    near, kernel, _ = three
    output = near.subscriber(rcvhwm=0)
    longest = [0.0]

    async def watch() -> None:
        while True:
            before = time.thread_time()  # not by the clock: this machine has other things to do
            await asyncio.sleep(0)
            longest[0] = max(longest[0], time.thread_time() - before)

    async def start() -> asyncio.Task[None]:
        return asyncio.ensure_future(watch())

    watching = near.run(start())
    for number in range(30000):
        kernel.send("iopub", b"%d" % number, b"x" * 500)
    for number in range(30000):
        assert output.recv_multipart()[0] == b"%d" % number
    near.call(watching.cancel)
    assert longest[0] < 0.05


def test_input_and_interleaved_channels_work_over_the_relay() -> None:
    """The kernel asks on stdin whoever runs the cell."""
    with real() as (near, _, _):
        client = client_of(near)
        client.wait_for_ready(timeout=20)
        printed = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        client.execute_interactive(
            "print(input('name? '))", timeout=10, output_hook=hook, stdin_hook=lambda _: client.input("Ada")
        )
        assert "".join(printed) == "Ada\n"
        client.stop_channels()
