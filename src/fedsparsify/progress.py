"""What a person sees while a federation trains: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from .federation.engine import Record
from .state import ServerState

__all__ = ["ProgressDisplay", "describe_bytes", "describe_ratio", "describe_seconds"]


class ProgressDisplay:
    """An observer that shows round, accuracy, sparsity, bytes and time left.

    Args:
        rounds: T, the last round.
        console: where to print; a terminal gets a live bar, anything else one line a round.

    Use it as a context manager.
    """

    def __init__(self, rounds: int, console: Console) -> None:
        self._rounds = rounds
        self._console = console
        self._live = console.is_terminal
        self._started = time.monotonic()
        self._rounds_timed = 0
        self._bytes: dict[int, int] = {}
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # the one to give way where columns are few
            TextColumn("{task.fields[status]}"),
            console=console,
            expand=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("rounds", total=rounds, status="starting")

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def client_done(self, round: int, done: int, total: int) -> None:
        """Advance the bar by a part of a round."""
        if self._live:
            self._progress.update(self._task, completed=round - 1 + done / (total + 1))  # the last part is the merge

    def recall(self, record: Record) -> None:
        """Count in a round that was finished before the run was resumed; the same round may come again."""
        self._bytes[record["round"]] = record["bytes_down"] + record["bytes_up"]

    def round_done(self, state: ServerState, record: Record) -> None:
        """Show a finished round."""
        self.recall(record)
        self._rounds_timed += state.round > 0
        status = _status(record, sum(self._bytes.values()))
        if state.round == 0:
            self._started = time.monotonic()
        elif state.round < self._rounds:
            left = (time.monotonic() - self._started) / self._rounds_timed * (self._rounds - state.round)
            status += f"  {describe_seconds(left)} left"
        for failure in record["failures"]:
            # The reason may come from a peer: no markup, and one line.
            reason = " ".join(str(failure["reason"]).split())[:300]
            self._console.print(
                f"round {state.round}: left out client {failure['client']}: {reason}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if clipped := record.get("encryption", {}).get("clipped", 0):
            self._console.print(
                f"round {state.round}: {clipped} encrypted values were clipped to the bound: a larger encryption.bound"
                " keeps them",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if self._live:
            self._progress.update(self._task, completed=state.round, status=status)
        else:
            self._console.print(
                f"round {state.round}/{self._rounds}  {status}", markup=False, highlight=False, soft_wrap=True
            )


def _status(record: dict[str, Any], sent: int) -> str:
    name = "accuracy" if "accuracy" in record else "mae"
    score = "-" if record[name] is None else f"{record[name]:.4f}"  # None where it is not finite
    return f"{name} {score}  sparsity {record['sparsity']:.4f}  {describe_bytes(sent)} sent"


def describe_bytes(count: int) -> str:
    """Return a byte count in decimal units.

    >>> describe_bytes(1_234_567)
    '1.2 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def describe_ratio(part: int, whole: int) -> str:
    """Return how large a part is: in words that suit small ones, else in per cent.

    >>> describe_ratio(10, 200), describe_ratio(150, 200)
    ('1/20.0', '75%')
    """
    return f"1/{whole / part:.1f}" if 2 * part <= whole else f"{part / whole:.0%}"


def describe_seconds(seconds: float) -> str:
    """Return a duration in minutes and seconds.

    >>> describe_seconds(75.2)
    '1m15s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
