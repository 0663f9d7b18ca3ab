"""Large pieces are handed on while they come; when the stream breaks within one, what was handed on of it is not handed on again."""

from __future__ import annotations

from .shared import relay_wire as wire

Lane = tuple[int, bytes]


class Parts:
    """The piece that is under way, over all streams of one relay."""

    def __init__(self) -> None:
        self._number = 0
        self._lane: Lane = (0, b"")
        self._handed = self._position = 0
        """Bytes that were handed on of it; where the present stream is in it."""

    def stream_begins(self) -> None:
        self._position = 0

    def abandoned(self, number: int) -> Lane | None:
        """The lane of a piece that was handed on in part and will not be completed, as `number` comes instead."""
        if not self._handed or number == self._number:
            return None
        self._handed = 0
        return self._lane

    def take(self, kind: int, flags: int, number: int, identity: bytes, size: int) -> tuple[int, int]:
        """(bytes to leave out of this part, the flags to hand it on with)."""
        if number != self._number:
            self._number, self._lane, self._handed, self._position = number, (kind, identity), 0, 0
        before, self._position = self._position, self._position + size
        handed, left_out = self._handed, 0
        if handed and not flags & wire.PART and self._position < handed:
            flags |= wire.VOID  # it was dropped meanwhile: this is what stands for it
        elif handed:
            left_out = max(0, min(size, handed - before))
            flags &= ~wire.VOID
        self._handed = max(handed, self._position) if flags & wire.PART else 0
        return left_out, flags & ~wire.PART
