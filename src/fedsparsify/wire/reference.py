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
        model: the model.
        layout: its network's layout.
        drift: float32[k], how the survivors are expected to move until the next message; None if nothing is known.
            For a broadcast it is the step that led to ``model``, for an update the mean of the client's own last steps.
    """

    def __init__(self, model: ModelState, layout: ParameterLayout, drift: Floats | None = None) -> None:
        self.model = model
        self.drift = drift
        self._layout = layout
        self._predictions: dict[int, tuple[Floats, Classes]] = {}
        self._without: Reference | None = None

    @cached_property
    def without_drift(self) -> Reference:
        """The same model alone."""
        if self.drift is None:
            return self
        return self._without or Reference(self.model, self._layout)

    def with_trend(self, trend: ModelState | None) -> Reference:
        """Return the same model with a drift, given at any mask's survivors; what is known of the model is shared."""
        if trend is None:
            return self
        reference = Reference(self.model, self._layout, trend.at(self.model.mask))
        reference._without = self
        return reference

    @cached_property
    def survivors(self) -> NDArray[np.intp]:
        """intp[k], their positions, ascending."""
        return self.model.survivors

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of the mask, the values, the buffers and the drift; never 0."""
        crc = self._model_crc if self._without is None else self._without._model_crc
        if self.drift is not None:
            crc = zlib.crc32(self.drift.astype("<f4", copy=False).tobytes(), crc)
        return crc or 1

    @cached_property
    def _model_crc(self) -> int:
        crc = zlib.crc32(np.packbits(self.model.mask, bitorder="little").tobytes())
        for vector in (self.model.values, self.model.buffers):
            crc = zlib.crc32(vector.astype("<f4", copy=False).tobytes(), crc)
        return crc

    @cached_property
    def _grid(self) -> list[tuple[slice, NDArray[np.intp] | None, NDArray[np.intp] | None]]:
        """For each tensor the slice of its survivors; their rows and columns where it has two dimensions or more."""
        if self._without is not None:
            return self._without._grid
        slots = self._layout.parameters
        ends = [0, *np.searchsorted(self.survivors, [slot.offset + slot.size for slot in slots]).tolist()]
        grid: list[tuple[slice, NDArray[np.intp] | None, NDArray[np.intp] | None]] = []
        for slot, begin, end in zip(slots, ends[:-1], ends[1:], strict=True):
            rows = columns = None
            if len(slot.shape) > 1 and end > begin:
                rows, columns = np.divmod(self.survivors[begin:end] - slot.offset, slot.size // slot.shape[0])
            grid.append((slice(begin, end), rows, columns))
        return grid

    def predict(self, lean: int) -> tuple[Floats, Classes]:
        """Return the predicted values of the survivors, and their classes; computed once for each ``lean``."""
        known = self._predictions.get(lean)
        if known is None:
            values = self.model.values
            if self.drift is not None and lean:
                with np.errstate(over="ignore", invalid="ignore"):  # infinite is as good a prediction as any
                    values = values + np.float32(lean / 8) * self.drift
            known = self._predictions[lean] = (values, Classes(rank_classes(self._scale, values)))
        return known

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

    @cached_property
    def _scale(self) -> Floats:
        """float32[k], the change that is expected of each survivor; 1 where nothing is known.

        A gradient of a layer is a sum of outer products, so its size at (r, c) is about row r's times column c's.
        """
        if self.drift is None:
            return np.ones(len(self.survivors), np.float32)
        size = np.abs(self.drift).astype(np.float64)
        scale = np.empty(len(size), np.float64)
        for at, rows, columns in self._grid:
            if at.stop == at.start:
                continue
            mean = np.cumsum(size[at])[-1] / (at.stop - at.start)  # not np.sum: its order is not the format's
            if rows is None or columns is None or mean == 0:
                scale[at] = mean
                continue
            with np.errstate(invalid="ignore"):
                scale[at] = _means(rows, size[at])[rows] * _means(columns, size[at])[columns] / mean
        with np.errstate(over="ignore"):
            return scale.astype(np.float32)


def _means(group: NDArray[np.intp], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean size by group."""
    means: NDArray[np.float64] = np.bincount(group, size) / np.maximum(np.bincount(group), 1)
    return means
