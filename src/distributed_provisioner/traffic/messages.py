"""The few of a kernel's messages that are looked at on the way, and messages of our own in its name."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from .shared import zmtp

DELIMITER = b"<IDS|MSG>"
LOOKED_AT = 16 << 10
"""Bytes; a status or a welcome is never longer, and what is longer is not looked at."""
MARKS = (b'"execution_state"', b'"iopub_welcome"')


@dataclass(frozen=True)
class Message:
    """A message that was taken apart."""

    topic: bytes
    header: Mapping[str, Any]
    parent: Mapping[str, Any]
    content: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.header.get("msg_type", ""))


def look(wire: bytes) -> Message | None:
    """A status or welcome message, from the wire bytes of a whole message; None for any other, and for rubbish."""
    if len(wire) > LOOKED_AT or not any(mark in wire for mark in MARKS):
        return None
    try:
        parts = zmtp.split(wire)
        start = parts.index(DELIMITER)
        header, parent, _, content = (json.loads(part) for part in parts[start + 2 : start + 6])
        message = Message(parts[0] if start else b"", header, parent, content)
        return message if message.kind in ("status", "iopub_welcome") else None
    except (zmtp.ProtocolError, ValueError, IndexError, AttributeError, TypeError):
        return None


def asked(piece: bytes) -> Mapping[str, Any] | None:
    """The header of an execute request, from its first piece; None for anything else."""
    header = _part(piece, b'"execute_request"', 0)
    return header if header.get("msg_type") == "execute_request" else None


def answered(piece: bytes) -> str | None:
    """The message id of the execute request that is answered, from the first piece of the reply; None for anything else."""
    parent = _part(piece, b'"execute_reply"', 1)
    return str(parent["msg_id"]) if "msg_id" in parent else None


def implementation(piece: bytes) -> str:
    """Of a whole kernel_info reply; empty for anything else."""
    return str(_part(piece, b'"kernel_info_reply"', 3).get("implementation", ""))


def _part(piece: bytes, mark: bytes, which: int) -> Mapping[str, Any]:
    """The header, parent header, metadata or content (0 to 3) of a message that begins with `piece` and has `mark` in it, or {}."""
    if mark not in piece:
        return {}
    try:
        frames = list(_first_frames(piece))
        part = json.loads(frames[frames.index(DELIMITER) + 2 + which])
        return part if isinstance(part, dict) else {}
    except (ValueError, IndexError):
        return {}


def _first_frames(piece: bytes) -> Iterator[bytes]:
    """Those that are whole."""
    at = 0
    while at < len(piece):
        head = 9 if piece[at] & zmtp.LONG else 2
        end = at + head + int.from_bytes(piece[at + 1 : at + head], "big")
        if end > len(piece):
            return
        yield piece[at + head : end]
        at = end


class Own(NamedTuple):
    """A message of our own."""

    topic: bytes
    wire: bytes


class Author:
    """Writes messages in a kernel's name, signed as its own are; writes none where the key is not known."""

    def __init__(self, key: str, signature_scheme: str = "hmac-sha256") -> None:
        self._key = key.encode()
        self._digest = signature_scheme.partition("-")[2] or "sha256"
        self._session = uuid.uuid4().hex
        self._version = "5.3"
        self._topic = b""

    def learn(self, status: Message) -> None:
        """What this kernel's messages look like."""
        self._version = str(status.header.get("version") or self._version)
        # Lab drops a message when one of another session has come just behind it.
        self._session = str(status.header.get("session") or self._session)
        before, found, _ = status.topic.rpartition(b"status")
        if found:
            self._topic = before

    def error_text(self, text: str, parent: Mapping[str, Any]) -> Own:
        """A line on standard error, in the cell whose request has the header `parent`."""
        return self._write(
            "stream", {"name": "stderr", "text": f"{text}\n"}, parent, self._topic + b"stream.stderr"
        )

    def status(self, execution_state: str, parent: Mapping[str, Any]) -> Own:
        return self._write("status", {"execution_state": execution_state}, parent, self._topic + b"status")

    def welcome(self, subscription: bytes) -> Own:
        """The greeting for a subscriber. It has to be another one each time: clients raise on a signature that they have seen."""
        text = subscription.decode(errors="replace")
        return self._write("iopub_welcome", {"subscription": text}, {}, subscription)

    def reply(self, text: str, parent: Mapping[str, Any]) -> bytes:
        """Wire bytes for the client whose execute request has the header `parent`: it failed."""
        content: dict[str, Any] = {
            "status": "error",
            "ename": "RelayLost",
            "evalue": text,
            "traceback": [],
            "execution_count": None,
        }
        return b"".join(zmtp.encode(self._frames("execute_reply", content, parent)))

    def question(self) -> bytes:
        """Wire bytes for the kernel: who are you?"""
        return b"".join(zmtp.encode(self._frames("kernel_info_request", {}, {})))

    def _write(self, kind: str, content: Mapping[str, Any], parent: Mapping[str, Any], topic: bytes) -> Own:
        return Own(topic, b"".join(zmtp.encode([topic, *self._frames(kind, content, parent)])))

    def _frames(self, kind: str, content: Mapping[str, Any], parent: Mapping[str, Any]) -> list[bytes]:
        header = {
            "msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "distributed-provisioner", "session": self._session,
            "date": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"), "version": self._version,
        }  # fmt: skip
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        signature = b""
        if self._key:
            signing = hmac.new(self._key, digestmod=getattr(hashlib, self._digest))
            for part in parts:
                signing.update(part)
            signature = signing.hexdigest().encode()
        return [DELIMITER, signature, *parts]


class Activity:
    """What the kernel does, as its own status messages say."""

    def __init__(self) -> None:
        self.state = ""
        self.running: dict[str, Mapping[str, Any]] = {}
        """Headers of the execute requests that are being worked on, by message id."""
        self.listeners: list[Callable[[Message], None]] = []
        """Told of each status."""

    def note(self, status: Message) -> None:
        for listener in self.listeners:
            listener(status)
        state, parent = str(status.content.get("execution_state", "")), status.parent
        asks = parent.get("msg_type") == "execute_request"
        if asks or not self.state or state in ("starting", "restarting") or not self.running:
            self.state = state
        if not asks:
            return
        if state == "busy":
            self.running[str(parent.get("msg_id"))] = parent
        elif state == "idle":
            self.running.pop(str(parent.get("msg_id")), None)
