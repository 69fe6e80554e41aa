"""``fedsparsify sweep``: all runs of a grid, several at once, resumable."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .errors import ConfigError, RunError
from .terminal import PLAIN, new_console, own_command, terminable

if TYPE_CHECKING:
    from .sweep import Status

__all__ = ["sweep"]


def sweep(
    grid: Annotated[
        Path,
        typer.Argument(metavar="GRID", help="A TOML configuration with [[\\[sweep]] blocks.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The sweep's directory, new or to go on with; by default runs/GRID.", show_default=False),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(help="Runs at once, 0 for one a core; changes no result.", min=0, max=1024),
    ] = 0,
    only: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only runs whose name holds TEXT, or fits a pattern such as '*_seed-[12]'."),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", "--dry-run", help="Show the runs and how far each is, and do nothing.")
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Folder with the data files, instead of data.dir.", show_default=False),
    ] = None,
) -> None:
    """Run all of a grid: methods x sparsities x partitions x seeds, several runs at once.

    [bold]fedsparsify sweep configs/fashion-mnist/comparison.toml --out runs/comparison[/bold]

    The same command goes on after any interruption: what is done is skipped, what was begun is resumed. docs/sweeps.md
    explains how to write a grid; [bold]fedsparsify report[/bold] on the directory compares the methods.
    """
    from .sweep import strays, survey
    from .sweep_grid import load_grid

    place = {("data", "dir"): str(data_dir.resolve())} if data_dir else None
    plan = load_grid(grid, place)
    folder = out or Path("runs") / grid.stem
    statuses = _choose(survey(plan, folder), only, grid)
    if listing:
        _print(statuses, strays(plan, folder))
        return
    todo = [status for status in statuses if status.state != "done"]
    console = new_console()
    if todo or not (folder / "sweep.toml").is_file():  # by which a report knows it, whoever made the runs
        from . import experiment
        from .sweep import run_sweep
        from .sweep_display import SweepDisplay

        experiment.check_all((status.run.settings, f"{status.run.place}, {status.run.name}") for status in todo)
        try:
            with terminable(), SweepDisplay(statuses, console) as display:
                failures = run_sweep(plan, folder, todo, jobs or os.cpu_count() or 1, display)
        except KeyboardInterrupt:
            console.print(
                f"Stopped. All finished rounds are saved; go on with: {own_command(*sys.argv[1:])}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            sys.exit(130)
        if failures:
            named = "; ".join(f"{failed.name} ({failed.reason}; see {failed.log})" for failed in failures)
            raise RunError(
                f"{len(failures)} of {len(todo)} runs failed, the others are done; mend the cause and give the same"
                f" command again: {named}"
            )
    console.print(
        f"All {len(statuses)} runs are done. Compare them with: {own_command('report', str(folder))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _choose(statuses: Sequence[Status], only: str | None, grid: Path) -> list[Status]:
    if only is None:
        return list(statuses)
    pattern = only if any(character in only for character in "*?[") else f"*{only}*"
    chosen = [status for status in statuses if fnmatch.fnmatchcase(status.run.name, pattern)]
    if not chosen:
        raise ConfigError(f'--only "{only}" fits none of the {len(statuses)} runs of {grid}: --list shows their names')
    return chosen


def _print(statuses: Sequence[Status], strays: Sequence[str]) -> None:
    table = Table(**PLAIN)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    table.add_column("round", justify="right", no_wrap=True)
    for status in statuses:
        table.add_row(status.run.name, status.state, f"{'-' if status.round is None else status.round}/{status.rounds}")
    console = new_console()
    console.print(table)
    counts = Counter(status.state for status in statuses)
    console.print(f"{len(statuses)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if strays:
        names = ", ".join(strays[:5]) + (", ..." if len(strays) > 5 else "")
        console.print(
            f"{len(strays)} more in this directory are of no run in the grid; a report shows them too: {names}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
