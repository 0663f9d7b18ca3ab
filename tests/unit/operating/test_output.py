"""A reader's stream of records becomes messages again, and what is shown of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_provisioner.cli.cluster_read import message_to_json, show, shown
from distributed_provisioner.errors import ConnectionLostError, ProtocolError
from distributed_provisioner.operating.output import messages_of
from distributed_provisioner.traffic.shared import relay_wire, zmtp

KEPT_END = relay_wire.told(relay_wire.TELL, {"tell": "kept-end"})


class Relay:
    """The far end of a stream: gives prepared bytes, in pieces of a size, and keeps what it is told."""

    def __init__(self, data: bytes, size: int = 1 << 16, end: bool = True) -> None:
        self.pieces = [data[at : at + size] for at in range(0, len(data), size)]
        self.end = end
        self.told: list[Any] = []
        self._records = relay_wire.Records()

    async def read(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if not self.end:
            await asyncio.sleep(3600)
        return b""

    def write(self, data: bytes) -> None:
        self.told += [
            (kind, number, bytes(payload)) for kind, _, number, _, payload in self._records.feed(data)
        ]


def message(kind: str, content: dict[str, Any], buffers: Iterable[bytes] = ()) -> list[bytes]:
    parts: tuple[dict[str, Any], ...] = ({"msg_type": kind, "msg_id": "m"}, {"msg_id": "p"}, {}, content)
    return [
        b"kernel.x.stream",
        b"<IDS|MSG>",
        b"signature",
        *(json.dumps(part).encode() for part in parts),
        *buffers,
    ]


def records(messages: Iterable[list[bytes]]) -> bytes:
    """As a relay sends them."""
    found, number = b"", 0
    for frames in messages:
        pieces = zmtp.encode(frames)
        for index, piece in enumerate(pieces):
            number += 1
            flags = relay_wire.ENDS if index + 1 == len(pieces) else 0
            found += relay_wire.record(relay_wire.IOPUB, number, flags, payload=piece)
    return found


async def read(relay: Relay, follow: bool = False, ended: bool = True) -> list[dict[str, Any]]:
    async def over(seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return ended

    return [found async for found in messages_of(relay, "0" * 32, follow, over)]


@settings(deadline=None)  # each example has a loop of its own
@given(
    st.lists(st.tuples(st.text(max_size=20), st.lists(st.binary(max_size=300), max_size=2)), max_size=5),
    st.integers(1, 500),
)
def test_messages_arrive_as_they_were_published(told: list[tuple[str, list[bytes]]], size: int) -> None:
    """Output would be lost or mixed up, depending on how the network cuts it."""
    sent = records(message("stream", {"name": "stdout", "text": text}, buffers) for text, buffers in told)
    found = asyncio.run(read(Relay(sent + KEPT_END, size)))
    assert [(one["content"]["text"], one["buffers"]) for one in found] == told
    assert all(one["parent_header"] == {"msg_id": "p"} for one in found)


async def test_what_was_read_is_acknowledged() -> None:
    """The relay would stop after 8 MB, and the rest would never come."""
    large = message("display_data", {"data": {}}, [b"x" * (3 << 20)])
    relay = Relay(records([large, large]) + KEPT_END)
    assert len(await read(relay)) == 2
    hello, *acks = relay.told
    assert hello[0] == relay_wire.HELLO
    assert json.loads(hello[2]) == {
        "protocol": 1, "role": "reader", "bridge": "0" * 32, "have": 0, "received": [0, 0, 0, 0], "kept": True, "follow": False,
    }  # fmt: skip
    kind, number, payload = acks[-1]
    assert kind == relay_wire.ACK
    assert number == sum(len(zmtp.encode(frames)) for frames in (large, large))
    assert relay_wire.counts(payload)[relay_wire.IOPUB] == sum(
        len(piece) for frames in (large, large) for piece in zmtp.encode(frames)
    )


async def test_half_a_message_of_a_kernel_that_died_is_dropped() -> None:
    """The first message of its successor would be glued to it, and nothing after it could be read."""
    begun = relay_wire.record(relay_wire.IOPUB, 1, 0, payload=zmtp.encode(message("stream", {}))[0][:40])
    rest = zmtp.encode(message("stream", {"text": "whole"}))[0]
    void = relay_wire.record(relay_wire.IOPUB, 2, relay_wire.VOID | relay_wire.ENDS, payload=rest)
    [found] = await read(Relay(begun + void + KEPT_END))
    assert found["content"] == {"text": "whole"}


async def test_without_follow_it_ends_after_what_was_kept_and_with_it_goes_on_until_the_kernel_ends() -> None:
    """The command would hang, or hide what comes."""
    kept, live = (records([message("stream", {"text": text})]) for text in ("kept", "live"))
    relay = Relay(kept + KEPT_END, end=False)
    assert [one["content"]["text"] for one in await read(relay)] == ["kept"]
    relay = Relay(kept + KEPT_END + live, end=False)
    assert [one["content"]["text"] for one in await read(relay, follow=True)] == ["kept", "live"]


async def test_a_stream_that_breaks_off_or_makes_no_sense_is_an_error() -> None:
    """Half of the output would look like all of it."""
    with pytest.raises(ConnectionLostError):
        await read(Relay(records([message("stream", {})])))
    with pytest.raises(ProtocolError):
        await read(Relay(b"\xff" * 100))


# --- what is shown --------------------------------------------------------------------------------------------------------------------


def test_text_goes_to_where_it_belongs_and_other_kinds_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A picture would fill the terminal with rubbish, or nobody would know that there was one."""
    picture = {"text/plain": "<Figure>", "image/png": "A" * 4096}
    for kind, content in (
        ("status", {"execution_state": "busy"}),
        ("stream", {"name": "stdout", "text": "out\n"}),
        ("stream", {"name": "stderr", "text": "err\n"}),
        ("execute_result", {"data": {"text/plain": "42"}}),
        ("display_data", {"data": picture}),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["\x1b[31mTraceback\x1b[0m", "E: v"]}),
    ):
        show({"msg_type": kind, "content": content})
    assert capsys.readouterr() == ("out\n42\n<Figure> [image/png, 4K]\n", "err\nTraceback\nE: v\n")


def test_a_result_without_text_is_named() -> None:
    """It would be an empty line."""
    assert shown({"application/json": {}}) == "[application/json, 2B]"


def test_json_has_the_whole_message() -> None:
    """Programs that read it would miss buffers."""
    plain = {"header": {}, "content": {}, "msg_type": "x"}
    assert message_to_json({**plain, "buffers": [b"\0\xff"]}) == {**plain, "buffers": ["AP8="]}
    json.dumps(message_to_json({**plain, "buffers": [b"\0\xff"]}))


async def test_what_is_no_output_is_acknowledged_too() -> None:
    """A kernel that answered much while nobody listened: its relay sends no more than a window of what is not acknowledged."""
    answer = relay_wire.record(relay_wire.SHELL, 1, relay_wire.ENDS, b"page", bytes(1000))
    relay = Relay(answer + records([message("stream", {"name": "stdout", "text": "x"})]) + KEPT_END)
    assert len(await read(relay)) == 1
    (kind, _, counts) = relay.told[-1]
    assert kind == relay_wire.ACK
    assert relay_wire.counts(memoryview(counts))[relay_wire.SHELL] == 1000
