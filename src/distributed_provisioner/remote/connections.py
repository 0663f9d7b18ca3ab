"""A server's line to the listener: requests in, replies and events out; frames of channels between them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct

from channels import FRAME, Channels
from kernels import OpError
from processes import release_memory
from server_listener import remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from listener import Listener

MAX_LINE = 8 << 20
"""Bytes of a request; no program can be given an environment and arguments of more than 6 MB."""
LARGE = 1 << 20
"""Bytes of a request after which memory is given back to the system."""
BEFORE_HELLO = ("hello", "retire", "ping")


class Connection:
    """One server, through its bridge. Rubbish ends this connection and harms no other."""

    def __init__(
        self, listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.listener, self.reader, self.writer = listener, reader, writer
        self.owner: str | None = None
        """Which server this is, over its restarts; None before `hello`."""
        self.client = ""
        """Which process of that server."""
        self.tasks: set[asyncio.Future[None]] = set()
        self.partial: dict[str, str] = {}
        """bundle -> directory in which it is put together"""
        self.channels = Channels(writer)

    async def serve(self) -> None:
        """Answer until the other end goes away."""
        try:
            while True:
                first = await self.reader.read(1)
                if not first:
                    break
                if first == FRAME:
                    await self.channels.receive(self.reader)
                else:
                    self.receive(first + await self.reader.readline())
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # gone, or rubbish
        finally:
            for task in self.tasks:
                task.cancel()
            self.channels.close()
            for partial in self.partial.values():
                remove(partial)
            self.writer.close()
            asyncio.get_event_loop().call_later(
                0.5, release_memory
            )  # of what may have been half a large request

    def receive(self, line: bytes) -> None:
        """Start on a request. Raises for a line that is none."""
        message = json.loads(line)
        number, name = message.pop("id"), str(message.pop("op"))
        operation = getattr(self.listener.operations, "op_" + name, None)
        if operation is None or (self.owner is None and name not in BEFORE_HELLO):
            self.refuse(number, "unknown-op", f"the listener knows no operation {name[:50]!r} here")
            return
        task = asyncio.ensure_future(self.answer(number, operation, message))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if len(line) > LARGE:
            task.add_done_callback(lambda _: asyncio.get_event_loop().call_later(0.1, release_memory))

    async def answer(self, number: Any, operation: Callable[..., Any], parameters: dict[str, Any]) -> None:
        """Each request has an answer, whatever goes wrong."""
        try:
            result = operation(self, **parameters)
            if asyncio.iscoroutine(result):
                result = await result
            self.send({"id": number, "result": result})
        except OpError as error:
            self.send({"id": number, "error": error.reply})
        except OSError as error:
            self.refuse(number, "resources", f"{error.strerror}: {error.filename}")
        except Exception as error:
            # The text of such an error may quote the request, and requests carry secrets: the kind of the error has to do.
            self.refuse(
                number, "bad-request", f"{operation.__name__[3:]} was refused ({type(error).__name__})"
            )

    def refuse(self, number: Any, kind: str, message: str) -> None:
        self.send({"id": number, "error": {"type": kind, "message": message}})

    def send(self, message: dict[str, Any]) -> None:
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")


def same_user(sock: socket.socket) -> bool:
    """Whether the other end of a Unix socket is our user (or root); True where the system cannot say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid in (0, os.getuid())
