"""``fedsparsify export | predict | benchmark``: a finished run as a file, and what can be done with it."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from .errors import ArgumentError, DataError, RunError
from .files import check_target, replace_file
from .terminal import PLAIN, new_console

if TYPE_CHECKING:
    from .export.model import Prediction
    from .finished import Finished

__all__ = ["benchmark", "export", "predict"]

Format = Literal["sparse", "onnx", "safetensors"]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A file of fedsparsify export, *.fsz.", show_default=False)
]
_ENDINGS: dict[Format, str] = {"sparse": ".fsz", "onnx": ".onnx", "safetensors": ".safetensors"}


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.", show_default=False)],
    format: Annotated[
        Format | None,
        typer.Option(help="What to write; by default what FILE's ending says, else sparse.", show_default=False),
    ] = None,
    values: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Round the values of a sparse file; the change of its score is measured and shown."),
    ] = "float32",
    compact: Annotated[
        bool, typer.Option("--compact", help="Remove dead units from an ONNX or safetensors file.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file; by default RUN/model.fsz, RUN/model-int8.fsz, RUN/model-compact.onnx and so on.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder with the data files.", show_default=False)
    ] = None,
) -> None:
    """Write a finished run's model as one file for other programs.

    [bold]fedsparsify export runs/global[/bold]

    A sparse file holds all that predictions need and loads without torch (docs/export.md).
    """
    format = _format(format, out)
    if compact and format == "sparse":
        raise ArgumentError(
            "--compact is for onnx and safetensors: a sparse file's engine removes dead units by itself"
        )
    if values != "float32" and format != "sparse":
        raise ArgumentError(f"--values {values} is for sparse files: leave it out with --format {format}")
    from .export.artifact import encode_artifact
    from .export.safetensors_file import dense_size
    from .finished import load_finished
    from .progress import describe_bytes, describe_ratio

    variant = "-compact" if compact else "" if values == "float32" else f"-{values}"
    path = out or run / f"model{variant}{_ENDINGS[format]}"
    check_target(path)
    finished = load_finished(run, data_dir)
    if format == "sparse":
        data = encode_artifact(finished.artifact, values)
    else:
        data = _dense(finished, format, compact)
    try:
        replace_file(path, data)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}): name another file with --out") from error
    graph = finished.artifact.graph
    whole = dense_size(graph)
    console = new_console()
    console.print(
        f"{path}: {describe_bytes(len(data))}, {describe_ratio(len(data), whole)} of the dense safetensors file's"
        f" {describe_bytes(whole)}; {graph.nonzero:,} of {graph.parameters:,} parameters",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if format == "sparse":
        console.print(_scores(finished, values), markup=False, highlight=False, soft_wrap=True)


def _format(format: Format | None, out: Path | None) -> Format:
    """Return the format that is asked for, by name or by a file's ending."""
    named = {ending: name for name, ending in _ENDINGS.items()}.get(out.suffix.lower() if out else "")
    if format is not None and named is not None and format != named:
        raise ArgumentError(f"{out} is named like {named}, but --format says {format}: change one of them")
    return format or named or "sparse"


def _dense(finished: Finished, format: Format, compact: bool) -> bytes:
    from .export.onnx_file import encode_onnx
    from .export.safetensors_file import encode_compact, encode_state

    facts = {name: str(value) for name, value in finished.artifact.provenance.items()}
    if format == "onnx":
        return encode_onnx(finished.artifact.graph, compact)
    return encode_compact(finished.artifact.graph, facts) if compact else encode_state(finished.state, facts)


def _scores(finished: Finished, values: Any) -> str:
    """Say what the model reaches on the test set, and how rounding has changed that."""
    from .export.artifact import rounded
    from .finished import score

    graph, recipe = finished.artifact.graph, finished.artifact.recipe
    name, before = score(graph, recipe, finished.test)
    examples = f"on the {len(finished.test):,} examples of the test set"
    if values == "float32":
        return f"{name} {before:.4f} {examples}; nothing is rounded"
    _, after = score(rounded(graph, values), recipe, finished.test)
    return f"{name} {after:.4f} with {values} values, {before:.4f} without rounding ({after - before:+.4f}), {examples}"


def predict(
    model: Model,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Pictures, CSV, NPY or text files, raw as they are.", show_default=False
        ),
    ],
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="How to print.")] = "table",
    top: Annotated[int, typer.Option(help="How many classes to show for each example.", min=1, max=1000)] = 1,
    resize: Annotated[bool, typer.Option("--resize", help="Bring pictures to the model's size.")] = False,
) -> None:
    """Say what a model makes of pictures, tables, arrays or texts.

    [bold]fedsparsify predict model.fsz shoe.png --top 3[/bold]
    """
    from .export import SparseModel
    from .export.examples import read_examples

    loaded = SparseModel.load(model)
    entries: list[dict[str, Any]] = []
    for path in files:
        examples = read_examples(path, loaded.recipe, resize)
        try:
            prediction = loaded.predict(examples)
        except ArgumentError as error:
            raise DataError(f"{path}: {error}") from error
        entries += _entries(path, prediction, top)
    if format == "json":
        sys.stdout.write(json.dumps(entries, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print_rows(_rows(entries), plain=format == "csv")


def _entries(path: Path, prediction: Prediction, top: int) -> list[dict[str, Any]]:
    name = os.fsencode(path).decode(errors="replace")  # names of files may be any bytes
    places: list[dict[str, Any]] = [{"file": name, "example": i} for i in range(len(prediction))]
    if prediction.probabilities is None:
        values = prediction.scores.reshape(len(prediction), -1).astype(float).tolist()
        return [{**place, "values": row} for place, row in zip(places, values, strict=True)]
    best = [[{"label": label, "probability": p} for label, p in row] for row in prediction.top(top)]
    return [{**place, "classes": row} for place, row in zip(places, best, strict=True)]


def _rows(entries: list[dict[str, Any]]) -> list[list[str]]:
    rows: list[list[str]] = []
    for entry in entries:
        cells = [entry["file"], str(entry["example"])]
        if "values" in entry:
            cells += [f"{value:.6g}" for value in entry["values"]]
        else:
            cells += [text for c in entry["classes"] for text in (c["label"], f"{c['probability']:.4f}")]
        rows.append(cells)
    width = max(len(row) for row in rows)
    first = entries[0]
    if "values" in first:
        heads = ["value"] if width == 3 else [f"value {i + 1}" for i in range(width - 2)]
    else:
        count = (width - 2) // 2
        marks = [""] if count == 1 else [f" {i + 1}" for i in range(count)]
        heads = [text for mark in marks for text in (f"label{mark}", f"probability{mark}")]
    return [["file", "example", *heads], *rows]


def _print_rows(rows: list[list[str]], plain: bool) -> None:
    if plain:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    table = Table(**PLAIN)
    for head in rows[0]:
        table.add_column(head, justify="left" if head.startswith(("file", "label")) else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    new_console().print(table)


def benchmark(
    model: Model,
    batches: Annotated[
        str, typer.Option("--batches", metavar="N,N,...", help="How many examples at once, each a row.")
    ] = "1,32,128",
    seconds: Annotated[
        float, typer.Option(help="How long to measure each number of examples.", min=0.01, max=600)
    ] = 2.0,
) -> None:
    """Measure a model against the same network dense, on this machine and one thread.

    Calls of all programs take turns, and the middle of each one's times is shown. ONNX Runtime is measured where it is
    installed (pip install onnx onnxruntime).
    """
    from .export import SparseModel
    from .export.measure import measure

    try:
        sizes = [int(text) for text in batches.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(1 <= size <= 65536 for size in sizes):
        raise ArgumentError(f'--batches "{batches}" must be whole numbers from 1 to 65536, such as 1,32,128')
    loaded = SparseModel.load(model)
    table = Table(**PLAIN)
    table.add_column("examples at once", justify="right")
    table.add_column("program")
    for head in ("a call", "examples a second", "times dense"):
        table.add_column(head, justify="right", no_wrap=True)
    missing = ""
    for size in sizes:
        measured, missing = measure(loaded, size, seconds)
        dense = next(row for row in measured if row.baseline)
        for row in measured:
            call = f"{1e6 * row.seconds:,.1f} µs" if row.seconds < 1e-3 else f"{1e3 * row.seconds:,.2f} ms"
            speed = f"{size / row.seconds:,.0f}"
            table.add_row(str(size), row.program, call, speed, f"{dense.seconds / row.seconds:.2f}")
    console = new_console()
    graph = loaded.graph
    threads = "one thread" if loaded.backend == "native" else "in NumPy with its own threads"
    console.print(
        f"{model}: {graph.nonzero:,} of {graph.parameters:,} parameters, {threads}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    if missing:
        console.print(missing, markup=False, highlight=False, soft_wrap=True)
