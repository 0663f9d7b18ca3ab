"""What comes in a lump reaches Jupyter Server below the rates at which it drops output, and everybody else at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from distributed_provisioner.traffic import pace, publisher

from ..remote.relaying import FakeKernel, RelayProcess, contents, relay_wire, wait_for
from .serving import Near, served

Three = tuple[Near, FakeKernel, RelayProcess]
BYTES, FIRST_BYTES, MESSAGES, FIRST_MESSAGES = 400_000, 200_000, 200, 100
LINE = "x" * 49_000


@pytest.fixture
def three() -> Iterator[Three]:
    with served() as found:
        yield found


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a Jupyter Server with smaller limits."""
    monkeypatch.setitem(sys.modules, pace.LIMITER, types.ModuleType(pace.LIMITER))
    monkeypatch.setattr(pace, "WINDOW", 1.0)
    for name in ("BYTES", "FIRST_BYTES", "MESSAGES", "FIRST_MESSAGES"):
        monkeypatch.setattr(pace, name, globals()[name])


def say(kernel: FakeKernel, numbers: range, text: str = LINE, kind: str = "stream") -> None:
    for number in numbers:
        kernel.publish(kind, {"number": number, "text": text})


def number_of(frames: list[bytes]) -> int:
    return int(contents(frames).get("number", -1))


class Heard:
    """What a subscriber hears, and when."""

    def __init__(self, output: zmq.Socket[bytes], last: int) -> None:
        self.arrivals: list[tuple[float, int, int]] = []
        while not self.arrivals or self.arrivals[-1][1] != last:
            frames = output.recv_multipart()
            if (number := number_of(frames)) >= 0:
                self.arrivals.append((time.monotonic(), number, sum(map(len, frames))))

    @property
    def numbers(self) -> list[int]:
        return [number for _, number, _ in self.arrivals]

    @property
    def seconds(self) -> float:
        return self.arrivals[-1][0] - self.arrivals[0][0]

    def most(self) -> tuple[int, int]:
        """Messages and bytes in the fullest second."""
        windows = [
            [size for at, _, size in self.arrivals if start <= at < start + 1]
            for start, _, _ in self.arrivals
        ]
        return max(map(len, windows)), max(map(sum, windows))


def another(near: Near, kernel: FakeKernel, relay: RelayProcess, **said: Any) -> Near:
    """A server after one that was killed while a page was open and the kernel printed."""
    near.connect("shell", b"page").send(b"run")
    kernel.receive()
    near.close()
    say(kernel, **said)
    successor = Near(relay.path)
    wait_for(successor.is_up)
    return successor


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("text", [LINE, "x"], ids=["bytes", "messages"])
def test_a_replay_stays_below_the_limits_and_what_is_new_comes_behind_it(text: str, three: Three) -> None:
    """Jupyter Server would cut it ("IOPub data rate exceeded"), though it was printed slowly; other subscribers do not wait."""
    _, kernel, _ = three
    count = 30 if text == LINE else 500
    successor = another(*three, numbers=range(count), text=text)
    try:
        watcher = successor.subscriber()
        successor.connect("shell", b"page")
        output = successor.connect("iopub")
        wait_for(lambda: bool(output.poll(100)))
        time.sleep(0.1)
        say(kernel, range(count, count + 1), text)
        sent = time.monotonic()
        Heard(watcher, count)
        assert time.monotonic() - sent < 0.5
        heard = Heard(output, count)
        assert heard.numbers == list(range(count + 1))
        messages, size = heard.most()
        assert messages <= 1.2 * (MESSAGES + FIRST_MESSAGES)
        assert size <= 1.2 * (BYTES + FIRST_BYTES)
        assert heard.seconds < 5  # no slower than it has to be
    finally:
        successor.close()


@pytest.mark.usefixtures("limited")
def test_a_server_that_is_killed_in_the_middle_of_a_replay_leaves_the_rest_to_the_next_one(
    three: Three,
) -> None:
    """What waits for its turn has not been heard: the host must keep it."""
    *_, relay = three
    successor = another(*three, numbers=range(30))
    try:
        successor.connect("shell", b"page")
        output = successor.connect("iopub")
        first = Heard(output, 9).numbers
        time.sleep(publisher.PAIRING + 0.3)  # nobody else is expected: what was heard is released
        while output.poll(0):
            first += [number_of(output.recv_multipart())]
    finally:
        successor.close()
    last = Near(relay.path)
    try:
        wait_for(last.is_up)
        last.connect("shell", b"page")
        second = Heard(last.connect("iopub"), 29).numbers
        assert sorted({*first, *second}) == list(range(30))
        assert second == list(range(second[0], 30))
        assert second[0] > 5
    finally:
        last.close()


@pytest.mark.usefixtures("limited")
def test_what_was_printed_while_a_line_was_cut_is_paced_and_pictures_are_not(three: Three) -> None:
    """A page would see minutes of output in a second; of messages that are no streams only the number counts."""
    near, kernel, _ = three
    output = near.subscriber()
    near.suspend()
    say(kernel, range(20))
    say(kernel, range(20, 60), kind="display_data")
    near.resume()
    heard = Heard(output, 59)
    assert heard.numbers == list(range(60))
    assert heard.arrivals[19][0] - heard.arrivals[0][0] > 1
    assert heard.seconds - (heard.arrivals[19][0] - heard.arrivals[0][0]) < 0.5
    assert heard.arrivals[3][0] - heard.arrivals[0][0] < 0.1  # so much is let through at once


@pytest.mark.usefixtures("limited")
def test_a_message_that_was_cut_in_two_is_whole_and_in_its_place(three: Three) -> None:
    """A picture whose first half a page has goes on before anything that waits."""
    near, kernel, _ = three
    output = near.subscriber()
    for number in range(0, 60, 2):
        say(kernel, range(number, number + 1), "x" * 1_000_000, "display_data")
        say(kernel, range(number + 1, number + 2), "x")
        if number % 10 == 0:
            wait_for(near.is_up)
            near.cut()
    assert Heard(output, 59).numbers == list(range(60))


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("before", [True, False])
def test_half_a_message_that_has_no_end_spoils_nothing(before: bool, three: Three) -> None:
    """The kernel died while the line was cut: what a page had of a picture is forgotten with its connection, what it had not is dropped."""
    near, kernel, _ = three
    output = near.subscriber()
    wait_for(
        lambda: not near.bridge._publisher._pace._pacers
    )  # it came first, and so it is paced for a while
    pieces = near.bridge._publisher.piece
    half = memoryview(b"\2" + (1 << 20).to_bytes(8, "big") + b"x" * 300_000)

    def cut() -> None:
        if before:
            pieces(0, 1, half)
        near.bridge._publisher.lump_comes()
        if not before:
            pieces(0, 1, half)
        pieces(relay_wire.VOID, 2, memoryview(b""))

    near.call(cut)

    def heard() -> bool:
        kernel.send("iopub", b"next")
        return output.poll(100) != 0

    wait_for(heard)
    assert output.recv() == b"next"


@pytest.mark.usefixtures("limited")
def test_a_flood_is_not_slowed(three: Three) -> None:
    """Live output comes as it does without us: what is too much for Jupyter Server is its own business."""
    near, kernel, _ = three
    output = near.subscriber()
    near.cut()
    time.sleep(0.2)
    wait_for(near.is_up)
    time.sleep(1.5)
    say(kernel, range(60))
    assert Heard(output, 59).seconds < 1


@pytest.mark.usefixtures("limited")
def test_what_is_too_much_to_wait_comes_at_once(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that prints faster than it can be shown, for long: memory is bounded, and nothing is lost here."""
    near, kernel, _ = three
    monkeypatch.setattr(pace, "MOST", 1_500_000)
    output = near.subscriber()
    near.suspend()
    say(kernel, range(60))
    near.resume()
    heard = Heard(output, 59)
    assert heard.numbers == list(range(60))
    assert heard.seconds < 1.5
    assert not near.bridge._publisher._pace._pacers


@pytest.mark.usefixtures("limited")
def test_a_kernel_that_ended_is_not_waited_for(three: Three) -> None:
    """The page drops the cell when it hears that its kernel restarts: its last words have to be there by then."""
    near, kernel, _ = three
    output = near.subscriber()
    near.suspend()
    say(kernel, range(40))
    near.resume()
    assert number_of(output.recv_multipart()) == -1  # "reconnecting"
    kernel.context.destroy(linger=500)
    near.run(near.bridge.drain())
    ended = time.monotonic()
    assert Heard(output, 39).numbers == list(range(40))
    assert time.monotonic() - ended < 0.5


def test_clients_without_limits_are_not_slowed(three: Three) -> None:
    """nbclient gives up what it has not heard four seconds after a reply: scripts must have it all at once."""
    near, kernel, _ = three
    output = near.subscriber()
    near.suspend()
    say(kernel, range(100))
    near.resume()
    assert Heard(output, 99).seconds < 1


def test_the_limits_are_those_of_jupyter_server() -> None:
    """They and their place may change with it: nothing would be paced, or not enough."""
    code = (
        f"import importlib, json; module = importlib.import_module({pace.LIMITER!r})\n"
        "traits = module.ZMQChannelsWebsocketConnection.class_traits()\n"
        "names = 'iopub_data_rate_limit', 'iopub_msg_rate_limit', 'rate_limit_window'\n"
        "print(json.dumps([traits[name].default() for name in names]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    data, messages, window = json.loads(found.stdout)
    assert window == pace.WINDOW
    assert pace.FIRST_BYTES + pace.BYTES * (window + 0.5) <= data * window
    assert pace.FIRST_MESSAGES + pace.MESSAGES * (window + 0.5) <= messages * window
