"""What both halves of the relay read and write with, from the files that are shipped to hosts: those are no package there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import relay_wire
    import zmtp
else:
    from ..remote import relay_wire, zmtp

__all__ = ["relay_wire", "zmtp"]
