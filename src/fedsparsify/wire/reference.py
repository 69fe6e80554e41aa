"""What the receiver of a message holds already: a model, and how it has been moving."""

from __future__ import annotations

import zlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..layout import ParameterLayout
from ..state import Floats, Mask, ModelState
from .floats import Classes, rank_classes

__all__ = ["LEANS", "Reference"]

LEANS = (0, 2, 4, 6, 8)
"""How many eighths of the drift a prediction may add."""


class Reference:
    """A model that both ends of a link hold, against which the next message is coded.

    Args:
        model: the model, a broadcast.
        layout: its network's layout.
        drift: float32[k], how the survivors are expected to move until the next message; None if nothing is known.
            Here it is the step that led to ``model``; :meth:`with_trend` puts a client's own in its place.
    """

    def __init__(self, model: ModelState, layout: ParameterLayout, drift: Floats | None = None) -> None:
        self.model = model
        self.drift = drift
        self._layout = layout
        self._predictions: dict[int, Floats] = {}
        self._base = self

    def with_trend(self, trend: ModelState | None) -> Reference:
        """Return the reference of a client's update: the same, but for a drift of its own at any mask's survivors."""
        if trend is None:
            return self
        reference = Reference(self.model, self._layout, trend.at(self.model.mask))
        reference._base = self
        return reference

    def release(self) -> None:
        """Let go of all that can be computed again."""
        self._predictions.clear()
        for name in ("_classes", "checksum"):
            self.__dict__.pop(name, None)

    @property
    def survivors(self) -> NDArray[np.intp]:
        """intp[k], their positions, ascending."""
        return self.model.survivors

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of the mask, the values, the buffers, the step that led to them and a client's drift; never 0."""
        if self._base is self:
            crc = zlib.crc32(np.packbits(self.model.mask, bitorder="little").tobytes())
            for vector in (self.model.values, self.model.buffers):
                crc = zlib.crc32(vector.astype("<f4", copy=False).tobytes(), crc)
        else:
            crc = self._base.checksum
        if self.drift is not None:
            crc = zlib.crc32(self.drift.astype("<f4", copy=False).tobytes(), crc)
        return crc or 1

    def predict(self, lean: int) -> tuple[Floats, Classes]:
        """Return the predicted values of the survivors, computed once for each ``lean``, and their classes."""
        known = self._predictions.get(lean)
        if known is None:
            known = self.model.values
            if self.drift is not None and lean:
                with np.errstate(over="ignore", invalid="ignore"):  # infinite is as good a prediction as any
                    known = known + np.float32(lean / 8) * self.drift
            self._predictions[lean] = known
        return known, self._base._classes

    @cached_property
    def _classes(self) -> Classes:
        return Classes(rank_classes(self._scale(), self.model.values))

    def predict_at(self, mask: Mask, lean: int) -> tuple[Floats, Classes]:
        """Return what :meth:`predict` says for the survivors of ``mask``, and 0 for those that are none of ours."""
        prediction, classes = self.predict(lean)
        if mask is self.model.mask:
            return prediction, classes
        within = mask[self.survivors]
        if np.count_nonzero(within) == np.count_nonzero(mask):
            return prediction[within], Classes(classes.of[within])
        everywhere = np.zeros(mask.shape, np.float32)
        everywhere[self.survivors] = prediction
        of = np.zeros(mask.shape, np.uint8)
        of[self.survivors] = classes.of
        return everywhere[mask], Classes(of[mask])

    def _scale(self) -> Floats:
        """float32[k], the change that is expected of each survivor; 1 where nothing is known.

        A gradient of a layer is a sum of outer products, so its size at (r, c) is about row r's times column c's.
        """
        if self.drift is None:
            return np.ones(len(self.survivors), np.float32)
        size = np.abs(self.drift).astype(np.float64)
        scale = np.empty(len(size), np.float64)
        slots = self._layout.parameters
        ends = [0, *np.searchsorted(self.survivors, [slot.offset + slot.size for slot in slots]).tolist()]
        for slot, begin, end in zip(slots, ends[:-1], ends[1:], strict=True):
            if end == begin:
                continue
            at = slice(begin, end)
            mean = np.cumsum(size[at])[-1] / (end - begin)  # not np.sum: its order is not the format's
            if len(slot.shape) < 2 or mean == 0:
                scale[at] = mean
                continue
            rows, columns = np.divmod(self.survivors[at] - slot.offset, slot.size // slot.shape[0])
            with np.errstate(invalid="ignore"):
                scale[at] = _means(rows, size[at])[rows] * _means(columns, size[at])[columns] / mean
        with np.errstate(over="ignore"):
            return scale.astype(np.float32)


def _means(group: NDArray[np.intp], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean size by group."""
    means: NDArray[np.float64] = np.bincount(group, size) / np.maximum(np.bincount(group), 1)
    return means
