"""What travels: a message, and the base that both ends hold already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, WireError
from ..state import Floats, ModelState

__all__ = ["SERVER", "Base", "BaseError", "Kind", "Message", "SparseMessage", "densify"]

SERVER = -1
"""The ``client`` of messages that the server sends."""


class BaseError(WireError):
    """A message refers to a base that the reader does not hold; a full message is what helps."""


class Kind(IntEnum):
    """What a message is for."""

    BROADCAST = 1
    UPDATE = 2
    MODEL = 3
    CHECKPOINT = 4
    NEED_FULL = 5


@dataclass(frozen=True, eq=False)
class Message:
    """A decoded message.

    Attributes:
        kind: what it is for.
        round: the round it belongs to; 0 before training.
        model: float32[n] parameters, bool[n] mask, float32[b] buffers; all pruned in a ``NEED_FULL``.
        client: index of the sending client, or :data:`SERVER`.
        num_examples: size of the client's data in an update, else 0.
        metrics: figures measured by the sender.
        memory: named float32[n] vectors of a checkpoint.
        trend_known: in a broadcast: the server holds the trend of every client it is for, so an update may use it.
    """

    kind: Kind
    round: int
    model: ModelState
    client: int = SERVER
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Floats] = field(default_factory=dict)
    trend_known: bool = False


@dataclass(frozen=True, eq=False)
class SparseMessage:
    """A decoded message whose model was never made dense; costs memory for its survivors only.

    Attributes:
        kind: what it is for.
        round: the round it belongs to.
        size: n, the number of parameters.
        indices: int64[k], the surviving positions in ascending order; shared with the base where they are the same.
        values: float32[k], their values.
        buffers: float32[b].
        client: index of the sending client, or :data:`SERVER`.
        num_examples: size of the client's data in an update, else 0.
        metrics: figures measured by the sender.
        memory: named float32[n] vectors of a checkpoint.
        trend_known: as in :class:`Message`.
        base_round: round of the base that it was coded against, or None for a full message.
    """

    kind: Kind
    round: int
    size: int
    indices: NDArray[np.int64]
    values: Floats
    buffers: Floats
    client: int = SERVER
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Floats] = field(default_factory=dict)
    trend_known: bool = False
    base_round: int | None = None

    @cached_property
    def model(self) -> ModelState:
        """The model as float32[n], bool[n], float32[b]."""
        return densify(self.size, self.indices, self.values, self.buffers)

    def dense(self) -> Message:
        """Return the same message with a dense model."""
        return Message(
            self.kind,
            self.round,
            self.model,
            self.client,
            self.num_examples,
            self.metrics,
            self.memory,
            self.trend_known,
        )


def densify(size: int, indices: NDArray[np.int64], values: Floats, buffers: Floats) -> ModelState:
    """Return the model with float32[k] ``values`` at int64[k] ``indices`` of ``size`` positions."""
    if indices.size == size:  # copying is faster than scattering
        return ModelState(values.copy(), np.ones(size, np.bool_), buffers)
    w = np.zeros(size, np.float32)
    mask = np.zeros(size, np.bool_)
    w[indices] = values
    mask[indices] = True
    return ModelState(w, mask, buffers)


@dataclass(frozen=True, eq=False)
class Base:
    """A model that both ends of a message hold: what it need not say again.

    Attributes:
        round: the round whose broadcast it was.
        size: n, the number of parameters.
        indices: int64[k], the surviving positions in ascending order.
        values: float32[k].
        buffers: float32[b].
        trend: float32[k], where the values are expected to move (a mean of past changes), or None.
    """

    round: int
    size: int
    indices: NDArray[np.int64]
    values: Floats
    buffers: Floats
    trend: Floats | None = None

    @classmethod
    def of(cls, round: int, model: ModelState, trend: Floats | None = None) -> Base:
        """Make a base of a model.

        Args:
            round: the round whose broadcast it was.
            model: the model.
            trend: float32[n], or None.

        Raises:
            ArgumentError: the trend does not fit the model.
        """
        if trend is not None and trend.shape != model.w.shape:
            raise ArgumentError(f"a trend of shape {trend.shape} does not fit a model of {model.w.shape}")
        indices = np.flatnonzero(model.mask)
        moving = None if trend is None else trend[indices]
        return cls(round, model.w.size, indices, model.w[indices], model.buffers, moving)

    @property
    def model(self) -> ModelState:
        """The base as float32[n], bool[n], float32[b]."""
        return densify(self.size, self.indices, self.values, self.buffers)

    @cached_property
    def _checksum(self) -> bytes:
        return _digest(self.indices.astype("<u4"), self.values.astype("<f4"), self.buffers.astype("<f4"))

    @cached_property
    def _trend_checksum(self) -> bytes:
        assert self.trend is not None
        return _digest(np.frombuffer(self._checksum, np.uint8), self.trend.astype("<f4"))

    def reference(self, gain: int) -> bytes:
        """Return eight bytes that two bases share only if positions, values and buffers agree bit for bit.

        Where ``gain`` is not 0, they cover the trend too.
        """
        return self._trend_checksum if gain and self.trend is not None else self._checksum

    def predicted(self, gain: int) -> Floats:
        """Return float32[k], where the values are expected: base + gain / 128 * trend, rounded after each step."""
        if gain == 0 or self.trend is None:
            return self.values
        limit = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            return np.clip(self.values + np.float32(gain / 128) * self.trend, -limit, limit)


def _digest(*arrays: NDArray[np.generic]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(array.size.to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
