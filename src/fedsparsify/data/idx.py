"""The IDX file format of the MNIST family: a small header, then unsigned bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

__all__ = ["parse_idx"]

_UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the array that an IDX file of unsigned bytes holds, as a read-only view.

    Header: two zero bytes, the type (8 for unsigned bytes), the number d of dimensions, then d big-endian 32-bit
    sizes; after it exactly as many bytes as the sizes' product. Source: http://yann.lecun.com/exdb/mnist/.

    Args:
        content: the uncompressed file.
        name: the file's name, for messages.

    Raises:
        DataError: the header is not such a one, or does not fit the file's length.

    >>> parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]), "tiny")
    array([[7, 8, 9]], dtype=uint8)
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{name} is no IDX file (it starts with {content[:4].hex(' ') or 'nothing'}): get it again")
    kind, dimensions = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(
            f"{name} is an IDX file of type 0x{kind:02x} instead of 0x08, unsigned bytes: get the right one"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{name} ends inside its IDX header ({len(content)} of {start} bytes): get it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{name} has {len(content) - start} bytes after its IDX header, which promises {list(shape)}, "
            f"{math.prod(shape)} in all: get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
