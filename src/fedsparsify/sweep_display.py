"""What a person sees while a sweep goes on: a live table on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .progress import describe_seconds
from .sweep import Failed, Status

__all__ = ["SweepDisplay"]

MOST_SHOWN = 20
"""Running runs in the live table; a terminal has few lines."""


class SweepDisplay:
    """An observer of a sweep that shows what is done, running and waiting, and how long the rest may take.

    The estimate takes the rounds left by the pace of all rounds since the start, so it is rough while methods of
    different cost take turns.

    Args:
        statuses: all runs of the sweep that are to be done, and those that are.
        console: where to print.

    Use it as a context manager.
    """

    def __init__(self, statuses: Sequence[Status], console: Console) -> None:
        self._rounds = {status.run.name: status.round or 0 for status in statuses}
        self._at_start = sum(self._rounds.values())
        self._wanted = {status.run.name: status.rounds for status in statuses}
        self._total = len(statuses)
        self._done = {status.run.name for status in statuses if status.state == "done"}
        self._failed: set[str] = set()
        self._running: list[Status] = []
        self._begun = time.monotonic()
        self._console = console
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> SweepDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, status: Status) -> None:
        """Say so."""
        name = status.run.name
        if status.state == "running":
            self._say(f"{name}: is being run by another process; it is waited for")
        else:
            self._say(
                f"{name}: {'starts' if status.state == 'missing' else f'goes on after round {status.round or 0}'}"
            )

    def ended(self, status: Status, failed: Failed | None) -> None:
        """Say so, and how long the rest may take."""
        name = status.run.name
        if failed:
            self._failed.add(name)
            self._say(f"{name}: failed: {failed.reason}")
        else:
            self._rounds[name] = status.rounds
            self._done.add(name)
            self._say(f"{name}: done, {len(self._done)} of {self._total}{self._left()}")

    def watched(self, running: Sequence[Status]) -> None:
        """Show the rounds that the running ones are in."""
        self._running = list(running)
        for status in running:
            self._rounds[status.run.name] = max(self._rounds[status.run.name], status.round or 0)
        if self._console.is_terminal:
            self._live.update(self._table())

    def _left(self) -> str:
        passed = sum(self._rounds.values()) - self._at_start
        left = sum(self._wanted[name] - rounds for name, rounds in self._rounds.items() if name not in self._failed)
        if not passed or not left:
            return ""
        return f", about {describe_seconds((time.monotonic() - self._begun) / passed * left)} left"

    def _table(self) -> Group:
        waiting = self._total - len(self._done) - len(self._failed) - len(self._running)
        counts = f"{len(self._done)} done, {len(self._running)} running, {waiting} waiting"
        if self._failed:
            counts += f", {len(self._failed)} failed"
        table = Table.grid(padding=(0, 2))
        for status in self._running[:MOST_SHOWN]:
            number = status.round or 0
            table.add_row(
                Text(status.run.name, overflow="fold"),
                ProgressBar(total=status.rounds, completed=number, width=20),
                Text(f"round {number}/{status.rounds}"),
            )
        bar = ProgressBar(total=sum(self._wanted.values()), completed=sum(self._rounds.values()), width=40)
        return Group(Text(f"{counts}{self._left()}"), bar, table)

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)
