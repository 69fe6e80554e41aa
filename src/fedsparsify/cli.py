"""The command line: ``fedsparsify run | resume | sweep | deploy | keys | report | pack | export | ...``.

A user's mistake ends in one sentence on standard error and exit code 2; Ctrl-C in the command that goes on, and 130.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .config import Settings, load_settings
from .deploy_cli import deploy
from .errors import ArgumentError, ConfigError, FedSparsifyError, RunError
from .export_cli import benchmark, export, predict
from .files import check_run
from .inspect_cli import inspect
from .keys_cli import keys
from .sweep_cli import sweep
from .terminal import PLAIN, new_console, own_command, terminable
from .version import __version__

if TYPE_CHECKING:
    from .experiment import Split
    from .progress import ProgressDisplay

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train one sparse network over many clients that keep their data: [bold](Purge, Merge, Tune)+[/bold].\n\n"
    "Start with [bold]fedsparsify run configs/fashion-mnist/demo.toml[/bold], then open the report it names.",
)

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Replace a setting, e.g. [bold]--set schedule.final=0.9[/bold]; may be given several times.",
    ),
]
Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML configuration, such as those in configs/.", show_default=False)
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder with the data files; the same as --set data.dir=DIR.", show_default=False),
]
NoReport = Annotated[
    bool, typer.Option("--no-report", help="Write no report.html; [bold]fedsparsify report[/bold] makes one later.")
]


@app.command()
def run(
    config: Config,
    out: Annotated[
        Path | None,
        typer.Option(help="New directory for the run; by default runs/NAME, numbered if taken.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    no_report: NoReport = False,
) -> None:
    """Run a federation and write its records, final model and report.

    [bold]fedsparsify run configs/fashion-mnist/fedsparsify-global-iid.toml --out runs/global[/bold]

    Tables and keys of a configuration are explained in docs/configuration.md. Ctrl-C stops after saving;
    [bold]fedsparsify resume[/bold] goes on bit for bit.
    """
    from . import experiment, runs

    settings = load_settings(config, _overrides(overrides, data_dir))
    prepared = experiment.prepare(settings, _place(config, overrides))
    folder = out or runs.default_directory(settings.run.name)
    _watch(folder, settings, lambda observers: runs.start(prepared, folder, observers), no_report)


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The run directory.", show_default=False)],
    workers: Annotated[
        int | None,
        typer.Option(
            help="Clients to train at once, 0 for one a core; changes no result.", min=0, max=1024, show_default=False
        ),
    ] = None,
    no_report: NoReport = False,
) -> None:
    """Go on with a run that was stopped or killed; the result is the same bit for bit."""
    from . import runs

    check_run(directory)
    settings = load_settings(directory / "config.toml")
    finished = any((directory / name).is_file() for name in ("model.fsp", "model.locked"))
    _watch(directory, settings, lambda observers: runs.resume(directory, observers, workers), no_report)
    if finished:
        new_console().print(
            f"{directory} was finished: nothing was left to do", markup=False, highlight=False, soft_wrap=True
        )


app.command()(sweep)
app.add_typer(deploy, name="deploy")
app.add_typer(keys, name="keys")


@app.command()
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Run directories, or one sweep (packed or not).", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; by default DIR/report.html, or report.html for several.", show_default=False),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Of a sweep: the score whose first round is counted; by default 99% of the dense reference's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one HTML page over one run, several side by side, or a sweep; it works offline.

    Over a sweep it compares methods, with means and deviations over seeds, and writes its tables as Markdown, LaTeX and
    CSV beside the page.
    """
    from .report import is_sweep, write_report

    sweeps = [path for path in directories if is_sweep(path)]
    if sweeps and len(directories) > 1:
        raise RunError(f"{sweeps[0]} is a sweep: report on it alone, or name some of the runs in it")
    if sweeps:
        _compare(sweeps[0], out, target)
        return
    if target is not None:
        raise RunError("--target is for sweeps: name a sweep's directory, or leave it out")
    default = directories[0] / "report.html" if len(directories) == 1 else Path("report.html")
    page = write_report(directories, out or default)
    _print_headline(directories)
    new_console().print(f"Report: {page}", markup=False, soft_wrap=True)


@app.command()
def pack(
    directory: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep's directory.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, *.tar.xz.", show_default=False)],
) -> None:
    """Put the records of a sweep's finished runs into one small file, which a report can be made of."""
    from .progress import describe_bytes
    from .report import pack as write_packed

    packed = write_packed(directory, out)
    left_out = f"; not finished and left out: {', '.join(packed.unfinished)}" if packed.unfinished else ""
    new_console().print(
        f"{out}: {packed.runs} runs in {describe_bytes(packed.size)}{left_out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def partition(config: Config, overrides: Overrides = None, data_dir: DataDir = None) -> None:
    """Show how a configuration deals examples to clients, without training."""
    from . import experiment

    settings = load_settings(config, _overrides(overrides, data_dir))
    try:
        split = experiment.deal(settings)
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(f"{_place(config, overrides)}: {error}") from error
    new_console().print(_partition_table(split, settings.run.name))


app.command()(export)
app.command()(predict)
app.command()(inspect)
app.command()(benchmark)


def _partition_table(split: Split, name: str) -> Table:
    # Numbers head the columns where there are several classes: names would not fit.
    shown = range(len(split.class_names)) if len(split.class_names) <= 20 else range(0)
    named = [f"{label} {split.class_names[label]}" for label in shown if split.class_names[label] != str(label)]
    table = Table(title=f"{name}: examples by client and class", caption=", ".join(named), **PLAIN)
    for heading in ("client", *map(str, shown), "examples", "classes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for client, counts in enumerate(split.counts):
        cells = [str(counts[label] or "·") for label in shown]
        table.add_row(str(client), *cells, str(sum(counts)), str(sum(count > 0 for count in counts)))
    return table


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 a user's mistake, 130 interrupted."""
    code = None
    try:
        code = app(
            args=list(arguments) if arguments is not None else None, prog_name="fedsparsify", standalone_mode=False
        )
    except _Misuse as error:
        _misused(error)
    except FedSparsifyError as error:
        _fail(str(error))
    except MemoryError as error:
        said = str(error) or "no more is said"
        _fail(f"there is not enough memory ({said}): give less at once, or use a larger machine")
    except OSError as error:
        _fail(f"{error.filename or 'a file'} cannot be used ({error.strerror}): choose another path, or mend this one")
    sys.exit(code or 0)


_Misuse: Any = typer.BadParameter.__base__  # Click's UsageError, wherever typer has Click from


def _misused(error: Any) -> NoReturn:
    """Say in one sentence how a command cannot be given, or show the help where nothing is given at all."""
    words = error.format_message().replace(" (env var: 'None')", "").replace(" Did you", "; did you").rstrip(".")
    if not words:
        error.show()
        sys.exit(2)
    place = error.ctx.command_path if error.ctx else "fedsparsify"
    _fail(f"{words} (see {place} --help)")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"fedsparsify {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _watch(folder: Path, settings: Settings, work: Callable[[Sequence[Any]], Path], no_report: bool = False) -> None:
    """Run with progress; on Ctrl-C or SIGTERM say how to go on; at the end show a table and the report's path."""
    from . import progress, sparse
    from .report import write_report

    console = new_console()
    if settings.train.backend == "auto" and not sparse.available():
        console.print("Training with dense torch: the compiled trainer is not built (reinstall with a C++ compiler).")
    display = progress.ProgressDisplay(settings.run.rounds, console)
    _recall(folder, display)
    observers: list[Any] = [display]
    if settings.run.tensorboard:
        from .report.tensorboard import TensorBoardLog

        observers.append(TensorBoardLog(folder / "tensorboard"))
    gc.freeze()  # what was imported lives on: without this the collector walks through all of PyTorch in every round
    try:
        with terminable(), display:
            work(observers)
    except KeyboardInterrupt:
        going_on = ""
        if (folder / "config.toml").exists():
            going_on = f" All finished rounds are saved; go on with: {own_command('resume', str(folder))}"
        console.print(f"Stopped.{going_on}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(130)
    _print_headline([folder])
    if not no_report:
        page = write_report([folder], folder / "report.html")
        console.print(f"Report: {page}", markup=False, soft_wrap=True)


def _print_headline(directories: Sequence[Path]) -> None:
    from .progress import describe_bytes, describe_seconds
    from .report import headline, load_run

    rows = headline([load_run(directory) for directory in directories])
    figures: dict[str, Callable[[Any], str]] = {
        "run": lambda row: row.name,
        "rounds": lambda row: f"{row.rounds_done}/{row.rounds_total}",
        rows[0].metric: lambda row: f"{row.final:.4f}",
        "last ten": lambda row: f"{row.last_ten:.4f}",
        "left": lambda row: f"{row.parameters_left:,}",
        "sparsity": lambda row: f"{row.sparsity:.4f}",
        "sent": lambda row: describe_bytes(round(row.megabytes * 1e6)),
        "of dense": lambda row: "-" if row.dense_ratio is None else f"{row.dense_ratio:.0%}",
        "training": lambda row: describe_seconds(row.seconds_train),
    }
    table = Table(**PLAIN)
    table.add_column("run", overflow="fold")
    for title in list(figures)[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(show(row) for show in figures.values()))
    new_console().print(table)


def _compare(sweep: Path, out: Path | None, target: float | None) -> None:
    """Write the report on a sweep and show its first table."""
    from .report import default_page, write_comparison

    written = write_comparison(sweep, out or default_page(sweep), target)
    console = new_console()
    for first, *_ in written.tables:
        title = f"{first.problem}: {first.title}" if len(written.tables) > 1 else first.title
        table = Table(title=escape(title), **PLAIN)
        for index, head in enumerate(first.heads):
            table.add_column(escape(head), justify="left" if index == 0 else "right", no_wrap=index > 0)
        for name, entries in first.rows:
            marks = {"bold": "[bold]{}[/bold]", "dagger": "{}†"}
            table.add_row(escape(name), *(marks.get(e.mark, "{}").format(escape(e.text)) for e in entries))
        console.print(table)
    if written.unfinished:
        runs = "1 run is" if len(written.unfinished) == 1 else f"{len(written.unfinished)} runs are"
        console.print(f"{runs} not finished and left out.")
    console.print(f"Report: {written.page}", markup=False, soft_wrap=True)
    console.print(f"Tables: {', '.join(map(str, written.others))}", markup=False, soft_wrap=True)


def _overrides(overrides: list[str] | None, data_dir: Path | None) -> list[str]:
    quoted = json.dumps(
        str(data_dir and data_dir.resolve()), ensure_ascii=False
    )  # JSON's quotes and escapes are TOML's
    return [*(overrides or []), *([f"data.dir={quoted}"] if data_dir else [])]


def _place(config: Path, overrides: list[str] | None) -> str:
    """Return where settings come from, for messages."""
    return f"{config} with --set" if overrides else str(config)


def _recall(folder: Path, display: ProgressDisplay) -> None:
    """Tell the display of the rounds of a run that is to go on; whether they are sound is for others to say."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            display.recall(json.loads(line))


def _fail(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(2)
