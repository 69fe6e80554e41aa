"""The same figures for TensorBoard (extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsparsify.errors import MissingExtraError

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """An observer that writes every number of a round's record as a scalar.

    Args:
        folder: where the event files go; made with the first round.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("logging to TensorBoard", "tensorboard") from error
        self._make = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def client_done(self, round: int, done: int, total: int) -> None:
        """Nothing is logged within a round."""

    def round_done(self, state: object, record: Mapping[str, Any]) -> None:
        """Log one round."""
        if self._writer is None:
            self._writer = self._make(str(self._folder))
        for name, figure in record.items():
            if name != "round" and isinstance(figure, int | float):
                self._writer.add_scalar(name, figure, record["round"])
        self._writer.flush()
