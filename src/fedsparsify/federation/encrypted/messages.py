"""What server and clients say to each other in an encrypted federation.

A message is, in little-endian order::

    4  "FSX1"
    4  H, bytes of the head, at most 2**22
    H  the head, JSON: an Order from the server, an Answer from a client
       the parts that the head's ``parts`` names, in that order, of the sizes it says
    4  CRC-32 of all before

Parts are of other formats: ``values`` and ``sum`` of ``secure/messages.py``, ``model`` is a checkpoint of the wire
format, locked by ``secure/locked.py``, ``mask`` is one byte, the number of the encoding, and a mask in it as
``wire/FORMAT.md`` has it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import ArgumentError, WireError
from ..transport import clean

__all__ = ["Answer", "AnswerKind", "Kept", "Metric", "Order", "Verdict", "figure", "read", "value_of", "write"]

_MAGIC = b"FSX1"
_HEAD = struct.Struct("<4sI")
_LARGEST_HEAD = 1 << 22

Count = Annotated[int, Field(ge=0, lt=1 << 32)]
Figure = Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
"""A measured float32 in hexadecimal digits; in decimal ones, times would make messages of changing length."""
KeyName = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Size = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Head(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    round: Count
    """The round that it belongs to."""
    parts: dict[Literal["values", "sum", "model", "mask"], Size] = {}
    """Names and sizes of what follows the head; set by :func:`write`."""


class Order(_Head):
    """What the server asks of clients; all are sent the same bytes."""

    kind: Literal["begin", "train", "merge"]
    """``begin``: who are you; ``train`` on the last round's model; ``merge``: make this round's model of the sum."""
    run: Digest
    """Tells runs apart."""
    state: Digest | None = None
    """Digest of the model that the round starts from; of a first ``begin``, nothing."""
    examples: list[tuple[Count, Count]] = []
    """Client and number of examples of each that is asked in this round, ascending."""
    attempt: Digest | None = None
    """Tells the sum that a ``train`` order asks for, and the ``merge`` order after it brings, from any other."""
    judge: Count | None = None
    """Index of the client that evaluates the model, and sends it back locked."""


AnswerKind = Literal["ready", "update", "merged", "lacking", "changed", "refused"]
Metric = Literal["accuracy", "mae"]
Score = float | None


class Verdict(BaseModel):
    """What a judge found; a figure that is not a finite number is None."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    metric: Metric
    score: Score
    loss: Score
    groups: Annotated[dict[Annotated[str, Field(max_length=80)], Score], Field(max_length=10_000)] = {}

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Verdict:
        """Make it of what :data:`~fedsparsify.federation.engine.Evaluate` returned, not finite numbers as None."""
        metric: Metric = "mae" if "mae" in figures else "accuracy"
        return cls(metric=metric, score=figures[metric], loss=figures["loss"], groups=dict(figures.get("groups", {})))

    def record(self) -> dict[str, Any]:
        """Return the figures as records have them."""
        groups = {clean(name): score for name, score in self.groups.items()}
        return {self.metric: self.score, "loss": self.loss, **({"groups": groups} if groups else {})}


class Answer(_Head):
    """What a client answers."""

    client: Count
    """Its index."""
    kind: AnswerKind
    """``lacking``: the model that the order starts from; ``changed``: the number of examples that it names is not mine;
    ``refused``: the sum was not what clients have encrypted."""
    key: KeyName | None = None
    """Identifier of the client's key."""
    examples: Count = 0
    """How many the client has."""
    state: Digest | None = None
    """Digest of the model that the client now has."""
    layers: list[Count] = []
    """Parameters left in each layer of it."""
    test: Verdict | None = None
    """What the client found as the judge."""
    training: Annotated[dict[Literal["loss", "native", "seconds"], Figure], Field(max_length=3)] = {}
    """Figures of local training, as an update carries them."""
    clipped: Count = 0
    """Values that were beyond the bound."""
    seconds: Figure = "00000000"
    """Processor time that encrypting, or decrypting, took."""


class Kept(_Head):
    """A checkpoint's head: what the server knows after a round."""

    run: Digest
    """Tells runs apart."""
    key: KeyName
    """Identifier of the clients' key."""
    state: Digest
    """Digest of the merged model."""
    layers: list[Count]
    """Parameters left in each layer."""
    examples: list[tuple[Count, Count]]
    """Client and number of its examples, of all who have been asked."""


Head = TypeVar("Head", Order, Answer, Kept)


def figure(value: float) -> str:
    """Return a measured figure as messages have it."""
    return struct.pack(">f", value).hex()


def value_of(figure: str) -> float:
    """Return a measured figure, 0 where it is not a finite number.

    >>> value_of(figure(0.25))
    0.25
    """
    value = float(struct.unpack(">f", bytes.fromhex(figure))[0])
    return value if math.isfinite(value) else 0.0


def write(head: Order | Answer | Kept, parts: Mapping[str, bytes] | None = None) -> bytes:
    """Return a message's bytes.

    Raises:
        ArgumentError: the head is too long to be read: there are too many clients.
    """
    parts = parts or {}
    complete = head.model_copy(update={"parts": {name: len(part) for name, part in parts.items()}})
    text = complete.model_dump_json(exclude_defaults=True).encode()
    if len(text) > _LARGEST_HEAD:
        raise ArgumentError(
            f"{len(text)} bytes about all clients are more than the {_LARGEST_HEAD} of a message's head"
        )
    body = _HEAD.pack(_MAGIC, len(text)) + text + b"".join(parts.values())
    return body + struct.pack("<I", zlib.crc32(body))


def read(data: bytes, kind: type[Head]) -> tuple[Head, dict[str, bytes]]:
    """Take a message apart, of which nothing is believed.

    Args:
        data: from a peer.
        kind: :class:`Order`, :class:`Answer` or :class:`Kept`.

    Raises:
        WireError: it is malformed.
    """
    if len(data) < _HEAD.size + 4 or data[:4] != _MAGIC:
        raise WireError('message: it does not begin with "FSX1"; is [encryption] the same at both ends?')
    size = _HEAD.unpack_from(data)[1]
    if size > min(_LARGEST_HEAD, len(data) - _HEAD.size - 4):
        raise WireError(f"message: a head of {size} bytes is too long")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise WireError("message: it was damaged on its way")
    at = _HEAD.size + size
    try:
        head = kind.model_validate_json(data[_HEAD.size : at])
    except ValidationError as error:
        first: Any = error.errors(include_input=False, include_url=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        where = where if where in kind.model_fields else "head"  # names within may be of the peer's making
        raise WireError(f"message: {where}: {first['msg']}") from error
    parts: dict[str, bytes] = {}
    for name, length in head.parts.items():
        if length > len(data) - 4 - at:
            raise WireError(f"message: part {name} of {length} bytes is cut off")
        parts[name] = data[at : at + length]
        at += length
    if at != len(data) - 4:
        raise WireError(f"message: {len(data) - 4 - at} bytes too many")
    return head, parts
