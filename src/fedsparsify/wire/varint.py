"""Whole numbers of any size in as few bytes as they need: seven bits a byte, lowest first, the last below 128."""

from __future__ import annotations

from ..errors import ArgumentError, WireError

__all__ = ["pack_varint", "unpack_varint"]

_MOST_BYTES = 9


def pack_varint(number: int) -> bytes:
    """Encode a number from 0 to 2^63 - 1.

    Raises:
        ArgumentError: it is outside that range.

    >>> pack_varint(300).hex()
    'ac02'
    """
    if not 0 <= number < 1 << 7 * _MOST_BYTES:
        raise ArgumentError(f"{number} is not from 0 to 2^63 - 1")
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def unpack_varint(data: bytes, at: int, section: str) -> tuple[int, int]:
    """Return the number that starts at ``at``, and where the next byte lies.

    Raises:
        WireError: the bytes end within it, or it is longer than it need be.
    """
    number = 0
    for i in range(_MOST_BYTES):
        if at + i >= len(data):
            raise WireError(f"{section}: the message ends within a number")
        byte = data[at + i]
        number |= (byte & 127) << 7 * i
        if byte < 128:
            if byte == 0 and i:
                raise WireError(f"{section}: a number is longer than it need be")
            return number, at + i + 1
    raise WireError(f"{section}: a number has more than {_MOST_BYTES} bytes")
