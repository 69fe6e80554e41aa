"""A picture of a network's masks: each layer's weights as a map, darker where more of them are left."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np
from numpy.typing import NDArray

from .graph import BUFFERS, Graph

__all__ = ["mask_picture"]

_WIDEST, _HIGHEST = 480, 240
_DARK = np.array([16, 42, 92], np.float64)


def mask_picture(graph: Graph, title: str) -> str:
    """Return an SVG with one map a weight tensor: rows are outputs, columns inputs (and positions of a kernel).

    Tensors of more than 240 rows or 480 columns are shown by the density of blocks, its square root as darkness.
    """
    parts: list[str] = []
    y = 40
    for index, node in enumerate(graph.nodes):
        for name, tensor in node.tensors.items():
            if tensor.ndim < 2 or name in BUFFERS:
                continue
            mask = (tensor != 0).reshape(len(tensor), -1)
            density = _blocks(mask)
            height, width = density.shape
            scale = max(1, min(_WIDEST // width, _HIGHEST // height, 8))
            layer = node.name or f"{node.op} {index}"
            label = f"{layer}.{name} {list(tensor.shape)}: {mask.sum():,} of {mask.size:,} ({mask.mean():.2%})"
            parts.append(f'<text x="16" y="{y}">{escape(label)}</text>')
            parts.append(
                f'<image x="16" y="{y + 8}" width="{width * scale}" height="{height * scale}"'
                f' style="image-rendering:pixelated;outline:1px solid #ccc"'
                f' href="data:image/png;base64,{_png(density)}"/>'
            )
            y += height * scale + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDEST + 160}" height="{y}" font-family="sans-serif"'
        f' font-size="13"><rect width="100%" height="100%" fill="white"/><text x="16" y="20" font-weight="bold">'
        f"{escape(title)}</text>{''.join(parts)}</svg>\n"
    )


def _blocks(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the density of blocks that are as small as the picture allows."""
    rows, columns = (-(-size // most) for size, most in zip(mask.shape, (_HIGHEST, _WIDEST), strict=True))
    sums = np.add.reduceat(mask.astype(np.float64), range(0, mask.shape[0], rows), axis=0)
    sums = np.add.reduceat(sums, range(0, mask.shape[1], columns), axis=1)
    heights = np.diff([*range(0, mask.shape[0], rows), mask.shape[0]])
    widths = np.diff([*range(0, mask.shape[1], columns), mask.shape[1]])
    return np.asarray(sums / np.outer(heights, widths), np.float64)


def _png(density: NDArray[np.float64]) -> str:
    """Return a PNG in base64."""
    shade = np.sqrt(density)[..., np.newaxis]
    pixels = np.rint(255 * (1 - shade) + _DARK * shade).astype(np.uint8)
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()
