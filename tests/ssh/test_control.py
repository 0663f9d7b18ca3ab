"""The control channel: lines in, lines out; what makes no sense harms one connection only."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from distributed_provisioner import errors
from distributed_provisioner.ssh.control import Control
from distributed_provisioner.ssh.frames import FrameBuffer, frame
from distributed_provisioner.ssh.listener_errors import exception_of

from .conftest import Run


def test_lines_are_cut_wherever_the_packets_end() -> None:
    """The stream knows no lines."""
    stream = b"a\n\nbc\ndef"
    for cut in range(len(stream) + 1):
        buffer = FrameBuffer()
        assert [*buffer.feed(stream[:cut]), *buffer.feed(stream[cut:])] == [b"a", b"", b"bc"]
        assert [*buffer.feed(b"g\n")] == [b"defg"]


def test_frames_of_channels_are_told_from_lines_wherever_the_packets_end() -> None:
    """Any byte may be in a frame, a new line and a brace, too."""
    payload = b'\0\n{"id": 1}\n'
    stream = (
        b'{"id": 1}\n' + frame(7, payload) + payload + frame(8, b"") + frame(7, b"x") + b"x" + b'{"id": 2}\n'
    )
    for cut in range(len(stream) + 1):
        buffer = FrameBuffer()
        found = [*buffer.feed(stream[:cut]), *buffer.feed(stream[cut:])]
        assert [item for item in found if isinstance(item, bytes)] == [b'{"id": 1}', b'{"id": 2}']
        data = [item for item in found if isinstance(item, tuple)]
        assert b"".join(piece for channel, piece in data if channel == 7) == payload + b"x"
        assert (8, b"") in data


def test_a_line_of_sixty_megabytes_is_put_together_in_linear_time() -> None:
    """Logs and environments may be that large."""
    buffer, piece = FrameBuffer(), b"x" * 16384
    start = time.monotonic()
    for _ in range(60 * 64):
        assert [*buffer.feed(piece)] == []
    (line,) = buffer.feed(b"\n")
    assert len(line) == 60 << 20
    assert time.monotonic() - start < 1


def test_a_line_without_end_is_refused() -> None:
    """A host must not be able to fill the server's memory."""
    buffer, piece = FrameBuffer(), b"x" * (1 << 20)
    for _ in range(64):
        list(buffer.feed(piece))
    with pytest.raises(ValueError, match="more than 64 MB"):
        list(buffer.feed(piece))


@pytest.mark.parametrize(
    "line", [b"rubbish\n", b"[1]\n", b'"text"\n', b"\xff\xfe\n", b'{"id": 1}\n', b'{"error": 3}\n']
)
def test_a_listener_that_talks_nonsense_ends_its_own_channel_with_a_sentence(line: bytes, run: Run) -> None:
    """It must neither crash the I/O thread nor leave a launch waiting for ever."""
    lost: list[errors.ProvisionerError] = []

    async def talk() -> None:
        control = Control("host9", lambda event: None, lost.append)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        control._waiting[1] = answer
        control._received(b"noise\n" + control._marker.encode() + b"\n" + line)
        with pytest.raises(errors.ProtocolError, match="host9 said something that makes no sense"):
            await asyncio.wait_for(answer, 1)
        with pytest.raises(errors.ProtocolError):
            await control.request("ping", {})

    run(talk())
    assert len(lost) == 1


def test_replies_to_nobody_and_unknown_events_are_ignored(run: Run) -> None:
    """A newer listener may say more than this version knows."""

    async def talk() -> None:
        events: list[Any] = []
        control = Control("host9", events.append, lambda failure: pytest.fail(str(failure)))
        marker = b"\n" + control._marker.encode() + b"\n"
        control._received(marker + b'{"id": 99, "result": {}}\n{"event": "new-fangled"}\n')
        assert events == [{"event": "new-fangled"}]
        assert control.failure is None

    run(talk())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "setup"}, errors.HostSetupError),
        ({"type": "resources"}, errors.HostSetupError),
        ({"type": "bad-request"}, errors.ProtocolError),
        ({"type": "unknown-op"}, errors.ProtocolError),
        ({"type": "interpreter-not-found"}, errors.InterpreterNotFoundError),
        ({"type": "timeout", "log_tail": "the end"}, errors.LaunchTimeoutError),
        ({"type": "ports-exhausted"}, errors.PortRangeExhaustedError),
        ({"type": "too-large"}, errors.TooLargeError),
        ({"type": "cancelled"}, errors.LaunchError),
        ({"type": "superseded"}, errors.LaunchError),
        ({"type": "of tomorrow"}, errors.LaunchError),
        ({}, errors.LaunchError),
    ],
)
def test_each_kind_of_error_has_its_class(error: dict[str, str], kind: type[errors.ProvisionerError]) -> None:
    """Whether another host is tried depends on it."""
    made = exception_of({**error, "message": "as the host said it"}, "host9")
    assert isinstance(made, kind)
    assert "as the host said it" in str(made)
    assert made.host == "host9"


def test_a_launcher_that_exits_brings_its_status_and_its_log() -> None:
    """Programs read the fields, people the text."""
    made = exception_of(
        {"type": "launcher-exited", "message": "gone", "exit_status": -9, "log_tail": "tail"}, "host9"
    )
    assert isinstance(made, errors.LauncherExitedError)
    assert (made.exit_status, made.log_tail, str(made)) == (-9, "tail", "gone")
