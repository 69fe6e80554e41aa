"""What the server of an encrypted federation keeps from round to round, and how a checkpoint has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import WireError
from ...layout import ParameterLayout
from ...state import Mask
from .client import read_mask, write_mask
from .messages import Kept, read, write

__all__ = ["LockedState", "LockedStates"]


@dataclass(frozen=True, eq=False)
class LockedState:
    """All that the server carries from one round to the next.

    Attributes:
        round: the last finished round.
        run: tells this run from others under the same key.
        key: identifier of the clients' key.
        state: digest of the merged model, which only the key's holders can compute.
        layers: parameters left in each layer.
        model: the merged model, locked.
        examples: client -> number of its examples, as far as they have been asked.
        mask: bool[n], where the method makes masks public, else None.
    """

    round: int
    run: str
    key: str
    state: str
    layers: tuple[int, ...]
    model: bytes
    examples: Mapping[int, int]
    mask: Mask | None = None

    @property
    def nonzero(self) -> int:
        """Number of surviving parameters."""
        return sum(self.layers)


class LockedStates:
    """How such states are written, see :class:`~fedsparsify.federation.checkpoint.Form`.

    Args:
        layout: the network that they are of.
    """

    def __init__(self, layout: ParameterLayout) -> None:
        self._layout = layout
        self._everywhere = np.ones(layout.n, np.bool_)

    def write(self, state: LockedState) -> bytes:
        """Return a state's bytes."""
        head = Kept(
            round=state.round,
            run=state.run,
            key=state.key,
            state=state.state,
            layers=list(state.layers),
            examples=sorted(state.examples.items()),
        )
        parts = {"model": state.model}
        if state.mask is not None:
            parts["mask"] = write_mask(state.mask, self._everywhere, self._layout)
        return write(head, parts)

    def read(self, data: bytes) -> LockedState:
        """Return the state.

        Raises:
            WireError: the bytes are malformed, or of another network.
        """
        head, parts = read(data, Kept)
        mask = read_mask(parts["mask"], self._everywhere, self._layout) if "mask" in parts else None
        if len(head.layers) != len(self._layout.parameters) or "model" not in parts:
            raise WireError("message: it is of another network")
        known = (head.round, head.run, head.key, head.state, tuple(head.layers), parts["model"])
        return LockedState(*known, dict(head.examples), mask)
