"""A log that is followed while it grows and is shortened."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distributed_provisioner

if TYPE_CHECKING:
    import files
else:
    sys.path.insert(0, str(Path(distributed_provisioner.__file__).parent / "remote"))
    import files

    sys.path.pop(0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def follower(log: Path) -> Callable[[], str]:
    """Gives what was added since it was asked last."""
    end = files.added_to(str(log), 1 << 62, 0)[1]

    def more() -> str:
        nonlocal end
        text, end = files.added_to(str(log), end, 1 << 20)
        return text

    return more


def test_each_byte_comes_once_and_characters_stay_whole(log: Path) -> None:
    """Lines would come twice, or umlauts as question marks."""
    log.write_bytes(b"before\n")
    more = follower(log)
    found = []
    for byte in "ein Ümläut, 日本\n".encode():
        with log.open("ab") as file:
            file.write(bytes((byte,)))
        found.append(more())
    assert "".join(found) == "ein Ümläut, 日本\n"
    assert more() == ""


def test_nothing_is_lost_or_doubled_where_the_log_is_shortened(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches a kernel that writes much would see parts of it twice, or gaps."""
    monkeypatch.setattr(files, "KEEP_LOG", 500)
    log.write_text("".join(f"line {n}\n" for n in range(200)))
    more = follower(log)
    with log.open("a") as file:
        file.write("new 1\n")
    files.shorten(str(log))
    with log.open("a") as file:
        file.write("new 2\n")
    assert more() == "new 1\nnew 2\n"
    assert more() == ""


def test_a_log_that_is_gone_is_empty(tmp_path: Path) -> None:
    """The command would end with a traceback."""
    assert files.added_to(str(tmp_path / "none"), 5, 100) == ("", 5)
