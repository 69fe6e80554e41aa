"""Takes bytes off the front of a message, and never past its end."""

from __future__ import annotations

from ..errors import WireError
from .varint import unpack_varint

__all__ = ["Reader"]


class Reader:
    """A cursor over the bytes from ``start`` to ``end``."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data, self.at, self._end = data[:end], start, end

    @property
    def left(self) -> int:
        """Number of bytes that are left."""
        return self._end - self.at

    def take(self, section: str, size: int) -> bytes:
        """Return the next ``size`` bytes.

        Raises:
            WireError: fewer are left.
        """
        if size > self.left:
            raise WireError(f"{section}: {size} bytes are declared, {self.left} are there")
        self.at += size
        return self._data[self.at - size : self.at]

    def varint(self, section: str) -> int:
        """Return the next number."""
        number, self.at = unpack_varint(self._data, self.at, section)
        return number

    def section(self, section: str) -> tuple[int, bytes]:
        """Return the next section's encoding and bytes."""
        encoding = self.take(section, 1)[0]
        return encoding, self.take(section, self.varint(section))

    def name(self, section: str) -> str:
        """Return the next name."""
        raw = self.take(section, self.take(section, 1)[0])
        if not 1 <= len(raw) <= 64 or not raw.isascii():
            raise WireError(f"{section}: a name of {len(raw)} bytes is not 1 to 64 ASCII characters")
        return raw.decode("ascii")
