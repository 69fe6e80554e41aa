"""The few records that travel between server and clients; nothing in them is ever changed.

All vectors are flat and follow one :class:`~fedsparsify.layout.ParameterLayout`: position i of ``w`` and of ``mask``
is the same parameter on the server and on every client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClientUpdate", "Floats", "Mask", "ModelState", "ServerState"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_NO_BUFFERS: Floats = np.zeros(0, np.float32)


class ModelState:
    """A network at one moment: parameters, which of them survive, and batch-norm statistics.

    It may be made from the survivors alone (:meth:`of_values`); whichever of ``w`` and ``values`` is missing is made
    when it is asked for. Nothing in it may be changed.

    Args:
        w: float32[n], all trainable parameters; exactly 0 where ``mask`` is False.
        mask: bool[n], True for a surviving parameter.
        buffers: float32[b], the floating-point buffers (batch-norm running statistics), never pruned.
    """

    def __init__(self, w: Floats, mask: Mask, buffers: Floats) -> None:
        self._w: Floats | None = w
        self._values: Floats | None = None
        self._survivors: NDArray[np.intp] | None = None
        self.mask = mask
        self.buffers = buffers

    @classmethod
    def of_values(cls, values: Floats, mask: Mask, buffers: Floats = _NO_BUFFERS) -> ModelState:
        """Make a model, or any vector of a mask's positions, from float32[k] in ascending order of position."""
        model = cls.__new__(cls)
        model._w, model._values, model._survivors, model.mask, model.buffers = None, values, None, mask, buffers
        return model

    def __repr__(self) -> str:
        return f"ModelState({self.nonzero} of {self.mask.size} parameters, {self.buffers.size} buffers)"

    @property
    def w(self) -> Floats:
        """float32[n], all trainable parameters."""
        if self._w is None:
            self._w = self._spread()
        return self._w

    @property
    def values(self) -> Floats:
        """float32[k], the survivors in ascending order of position."""
        if self._values is None:
            assert self._w is not None
            self._values = self._w if self.mask.all() else self._w[self.mask]
        return self._values

    @property
    def survivors(self) -> NDArray[np.intp]:
        """intp[k], their positions, ascending."""
        if self._survivors is None:
            self._survivors = np.flatnonzero(self.mask)
        return self._survivors

    def at(self, mask: Mask) -> Floats:
        """Return the parameters at the positions of bool[n]; nothing of size n is kept."""
        if mask is self.mask:
            return self.values
        if self._w is not None:
            return self._w[mask]
        within = mask[self.survivors]
        if np.count_nonzero(within) == np.count_nonzero(mask):
            return self.values[within]
        return self._spread()[mask]

    def under(self, mask: Mask) -> ModelState:
        """Return this model with another mask bool[n]: what is outside becomes 0, what comes back is 0 too."""
        return ModelState(np.where(mask, self.w, np.float32(0)), mask, self.buffers)

    def _spread(self) -> Floats:
        assert self._values is not None
        w = np.zeros(self.mask.shape, np.float32)
        w[self.mask] = self._values
        return w

    @property
    def nonzero(self) -> int:
        """Number of surviving parameters."""
        return int(np.count_nonzero(self.mask))

    @property
    def sparsity(self) -> float:
        """Fraction of parameters that are pruned."""
        return 1.0 - self.nonzero / self.mask.size


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client returns from one round.

    Attributes:
        client: index of the client.
        round: the round it trained in, from 1.
        model: the client's parameters, mask and buffers after local training (and, for local purging, pruning).
        num_examples: size n_k of the client's data, its weight in the merge.
        metrics: figures measured by the client, e.g. ``loss`` (mean training loss) and ``seconds`` (local training).
        vectors: float32[n] by name that the method sends beside the model, such as scores of all parameters.
    """

    client: int
    round: int
    model: ModelState
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    vectors: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ServerState:
    """All that the server carries from one round to the next, and all that a checkpoint holds.

    Attributes:
        round: the last finished round; 0 before training.
        model: the merged model that the next round starts from.
        memory: named float32 vectors that a method keeps between rounds (empty for the paper's methods).
    """

    round: int
    model: ModelState
    memory: Mapping[str, Floats] = field(default_factory=dict)
