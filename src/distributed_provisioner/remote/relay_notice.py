"""What a relay understands of Jupyter's messages: which may be dropped first, and the notice that takes their place."""

from __future__ import annotations

import json
import os
import re
import time

import zmtp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional

STREAM, DISPLAY, OTHER, NEVER = range(4)
"""Classes of messages: earlier ones are dropped first."""
CLASSES = {
    "stream": STREAM,
    "display_data": DISPLAY,
    "update_display_data": DISPLAY,
    "execute_result": DISPLAY,
    "status": NEVER,
    "execute_reply": NEVER,
    "error": NEVER,
    "iopub_welcome": NEVER,
}
DELIMITER = b"<IDS|MSG>"
SMALL = 4096
STATE = re.compile(rb'"execution_state"\s*:\s*"([a-z_]{1,20})"')


class Glance:
    """The outer parts of a message, from its first piece: frames before the delimiter, header, parent header."""

    def __init__(self, piece: bytes) -> None:
        frames = first_frames(piece)
        at = frames.index(DELIMITER)
        self.topic = frames[:at]
        header = json.loads(frames[at + 2])
        self.kind = str(header.get("msg_type", ""))
        self.session = str(header.get("session", ""))
        self.parent_text = frames[at + 3]
        self.parent = str(json.loads(self.parent_text).get("msg_id", ""))
        """The id of the request that this message belongs to."""


def first_frames(piece: bytes) -> List[bytes]:
    """The frames that are whole in a message's first piece, at most eight."""
    frames: List[bytes] = []
    at = 0
    while at < len(piece) and len(frames) < 8:
        head = 9 if piece[at] & zmtp.LONG else 2
        end = at + head + int.from_bytes(piece[at + 1 : at + head], "big")
        if end > len(piece):
            break
        frames.append(piece[at + head : end])
        at = end
    return frames


def glance(piece: bytes) -> Optional[Glance]:
    """None for what is no message of Jupyter's, or has more than a piece before its content."""
    try:
        return Glance(piece)
    except (ValueError, IndexError, AttributeError, RecursionError):
        return None


def class_of(piece: bytes) -> int:
    """When a message on iopub may be dropped."""
    found = glance(piece)
    return CLASSES.get(found.kind, OTHER) if found else OTHER


def execution_state(piece: bytes) -> str:
    """The state that a small message tells, "" where it tells none."""
    found = STATE.search(piece)
    if found is None:
        return ""
    message = glance(piece)
    return found.group(1).decode() if message is not None and message.kind == "status" else ""


class Notice:
    """What was dropped of one cell's output."""

    def __init__(self, message: Optional[Glance]) -> None:
        self.topic = message.topic if message else [b"stream"]
        self.session = message.session if message else ""
        self.parent_text = message.parent_text if message else b"{}"
        self.messages = self.bytes = 0
        self.told = False

    def text(self) -> str:
        noun = "message" if self.messages == 1 else "messages"
        return (
            f"[{self.messages:,} {noun} ({size(self.bytes)}) of this cell's output could not be kept "
            "while nobody was connected, or for want of disk space, and are missing here]\n"
        )

    def encode(self, key: bytes, scheme: str) -> bytes:
        """The notice as wire bytes: a stream message on stderr, signed with the kernel's key."""
        self.told = True
        now = time.time()
        header = {
            "msg_id": os.urandom(16).hex(),
            "session": self.session,
            "username": "kernel",
            "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z",
            "msg_type": "stream",
            "version": "5.3",
        }
        content = {"name": "stderr", "text": self.text()}
        parts = [json.dumps(header).encode(), self.parent_text, b"{}", json.dumps(content).encode()]
        pieces = zmtp.encode([*self.topic, DELIMITER, sign(parts, key, scheme), *parts])
        return b"".join(pieces)


def sign(parts: List[bytes], key: bytes, scheme: str) -> bytes:
    """Jupyter's signature of a message; empty where there is no key, or no such scheme here."""
    if not key:
        return b""
    import hmac  # only when something was dropped

    try:
        made = hmac.new(key, digestmod=scheme.partition("-")[2] or "sha256")
    except ValueError:
        return b""
    for part in parts:
        made.update(part)
    return made.hexdigest().encode()


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
