"""How a host is reached: one SSH connection for each user and host (a pipe for localhost), its control channel, its forwards."""

from .connection import HostConnection
from .forward import Attachment
from .registry import Connections
from .relay_channel import RelayAttachment
from .watching import KernelEvent, Watch
from .welcome import Welcome

__all__ = [
    "Attachment",
    "Connections",
    "HostConnection",
    "KernelEvent",
    "RelayAttachment",
    "Watch",
    "Welcome",
]
