"""The near ends of all kernels on a host, which are there until closed, also while the host is away."""

from __future__ import annotations

from ..models import KernelIdentity, RemoteProcess
from .forward import Attachment, attach_remote
from .line import Line
from .relay_channel import attach_relay


class Attachments:
    """Those of one host, over all lines to it."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._attachments: set[Attachment] = set()

    async def add(self, process: RemoteProcess, local_prefix: str, identity: KernelIdentity) -> Attachment:
        """Near ends that no line serves yet. Raises as `attach_remote` does."""
        attachment: Attachment
        if process.relay:
            attachment = await attach_relay(process, local_prefix, identity)
        else:
            attachment = await attach_remote(process, local_prefix, self._host)
        attachment.on_close = self._attachments.discard
        self._attachments.add(attachment)
        return attachment

    def __len__(self) -> int:
        return len(self._attachments)

    def resume(self, line: Line) -> None:
        for attachment in self._attachments:
            attachment.resume(line)

    def suspend(self) -> None:
        for attachment in self._attachments:
            attachment.suspend()

    @property
    def in_use(self) -> bool:
        """Whether somebody is connected to a kernel."""
        return any(attachment.count for attachment in self._attachments)

    async def close(self) -> None:
        for attachment in list(self._attachments):
            await attachment.close()
