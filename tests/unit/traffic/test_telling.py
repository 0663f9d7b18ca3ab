"""What a notebook is told in its kernel's name: that its host is away, and in what state its kernel is."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from distributed_provisioner.traffic import bridge

from ..remote.relaying import FakeKernel, RelayProcess, wait_for
from .serving import STATUS_PARENT, Near, busy, opened, served, session_of

Three = tuple[Near, FakeKernel, RelayProcess]


@pytest.fixture
def three() -> Iterator[Three]:
    with served() as found:
        yield found


def test_requests_wait_while_the_host_is_away_and_the_clients_are_told(three: Three) -> None:
    """A notebook that is used on a train: it must neither seem dead, nor forget what was asked."""
    near, kernel, _ = three
    client, output = near.connect("shell", b"me"), near.subscriber()
    busy(kernel)
    output.recv_multipart()
    near.suspend()
    told = output.recv_multipart()
    assert opened(told) == ("status", {}, {"execution_state": "reconnecting"})
    assert session_of(told) == "s"  # the kernel's own: Lab drops messages at a change of sessions
    client.send(b"asked meanwhile")
    late = near.connect("control", b"late")
    late.send(b"from a new client")
    kernel.send("iopub", b"printed meanwhile")
    assert kernel.sockets["shell"].poll(200) == 0
    near.resume()
    assert kernel.receive() == [b"me", b"asked meanwhile"]
    assert kernel.receive("control") == [b"late", b"from a new client"]
    assert opened(output.recv_multipart()) == ("status", {}, {"execution_state": "busy"})
    assert output.recv() == b"printed meanwhile"


def test_a_host_that_stays_away_is_named_in_the_running_cell(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user must know why nothing moves, and be told once; a cell that is over is left alone."""
    near, kernel, _ = three
    monkeypatch.setattr(bridge, "TELL_AFTER", 0.2)
    monkeypatch.setattr(bridge, "LOOK_AGAIN", 0.1)
    output = near.subscriber()
    busy(kernel)
    output.recv_multipart()
    near.suspend()
    output.recv_multipart()
    kind, parent, content = opened(output.recv_multipart())
    assert (kind, parent, content["name"]) == ("stream", STATUS_PARENT, "stderr")
    assert "host1 cannot be reached" in content["text"]
    assert output.poll(500) == 0
    near.resume()
    output.recv_multipart()
    busy(kernel, "idle")
    output.recv_multipart()
    near.suspend()
    output.recv_multipart()
    assert output.poll(500) == 0


def request(kind: str, name: str) -> list[bytes]:
    """A client's message."""
    parts = [{"msg_id": name, "msg_type": kind, "session": "s"}, {}, {}, {"code": "x" * 500_000}]
    return [b"<IDS|MSG>", b"sig", *(json.dumps(part).encode() for part in parts)]


def test_cells_that_are_run_while_the_host_is_away_say_so(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look as if they ran; each is told once, whether it was run before the host was missed or after, and nothing else is told."""
    near, kernel, relay = three
    monkeypatch.setattr(bridge, "TELL_AFTER", 0.3)
    monkeypatch.setattr(bridge, "LOOK_AGAIN", 0.1)
    page, output = near.connect("shell", b"me"), near.subscriber()
    page.send_multipart(request("execute_request", "arrived"))
    assert len(kernel.receive()) == 7
    wait_for(lambda: near.bridge._link.outbox.is_empty)
    relay.process.send_signal(signal.SIGSTOP)  # a line that is dead takes what is written to it
    page.send_multipart(request("execute_request", "before"))
    page.send_multipart(request("kernel_info_request", "question"))
    wait_for(lambda: not near.bridge._link.outbox.is_empty)
    near.suspend()
    assert opened(output.recv_multipart())[0] == "status"
    kind, parent, content = opened(output.recv_multipart())
    assert (kind, parent["msg_id"], content["name"]) == ("stream", "before", "stderr")
    assert "host1 cannot be reached" in content["text"]
    page.send_multipart(request("execute_request", "after"))
    assert opened(output.recv_multipart())[1]["msg_id"] == "after"
    assert output.poll(500) == 0
    relay.process.send_signal(signal.SIGCONT)
    near.resume()
    asked = [json.loads(kernel.receive()[3])["msg_id"] for _ in range(3)]
    assert asked == ["before", "question", "after"]
    assert opened(output.recv_multipart())[0] == "status"
    assert output.poll(500) == 0


def test_a_page_that_comes_back_is_told_in_what_state_its_kernel_is(three: Three) -> None:
    """Lab shows `Unknown` until a cell runs: it is behind the welcome, which Jupyter Server throws away."""
    near, kernel, relay = three
    near.connect("shell", b"page").send(b"run")
    kernel.receive()
    busy(kernel)
    busy(kernel, "idle")
    wait_for(lambda: near.bridge._activity.state == "idle")
    near.close()
    kernel.publish("iopub_welcome", {"subscription": ""})
    kernel.send("iopub", b"missed")
    successor = Near(relay.path)
    try:
        wait_for(lambda: successor.bridge._publisher._welcomes)
        successor.connect("shell", b"page")
        output = successor.connect("iopub")
        heard = [opened(output.recv_multipart()) for _ in range(2)]
        assert heard == [
            ("iopub_welcome", {}, {"subscription": ""}),
            ("status", {}, {"execution_state": "idle"}),
        ]
    finally:
        successor.close()
