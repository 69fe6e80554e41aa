"""``fedsparsify inspect``: what is in a file of ours, messages and exported models alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .errors import ArgumentError, RunError, WireError
from .files import check_target, replace_file
from .terminal import PLAIN, new_console

if TYPE_CHECKING:
    from .export.artifact import Artifact
    from .wire import Explanation

__all__ = ["inspect"]


def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Exported models (*.fsz), messages, final models or checkpoints (*.fsp).",
            show_default=False,
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of one exported model: draw its layers' masks, *.svg.", show_default=False),
    ] = None,
) -> None:
    """Explain an exported model, a message, a final model or a checkpoint: what it is, and what takes how many bytes.

    [bold]fedsparsify inspect runs/global/model.fsz --picture masks.svg[/bold]
    """
    from .export.artifact import MAGIC
    from .federation.checkpoint import message_in

    contents = {path: _read(path) for path in files}
    if picture is not None and not (len(files) == 1 and contents[files[0]].startswith(MAGIC)):
        raise ArgumentError("--picture is of one exported model (*.fsz): name one alone, or leave it out")
    for path, content in contents.items():
        if content.startswith(MAGIC):
            _explain_model(path, content, picture)
        elif message_in(content).startswith(b"FSX1"):
            _explain_locked(path, message_in(content))
        else:
            _explain_message(path, content)


def _explain_locked(path: Path, message: bytes) -> None:
    from .federation.encrypted.messages import Kept, read

    try:
        head, parts = read(message, Kept)
    except WireError as error:
        raise WireError(f"{path} cannot be explained ({error}): name a checkpoint or a model.locked") from error
    for line in (
        f"{path}: round {head.round} of an encrypted run; {len(parts.get('model', b'')):,} bytes of locked model",
        f"{sum(head.layers):,} parameters left, by layer {', '.join(f'{n:,}' for n in head.layers)}",
        f"{len(head.examples)} clients with {sum(n for _, n in head.examples):,} examples; their key is {head.key}",
        "Only that key opens the model: fedsparsify keys open",
    ):
        new_console().print(line, markup=False, highlight=False, soft_wrap=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): name a file such as runs/NAME/model.fsp") from error


def _explain_message(path: Path, content: bytes) -> None:
    from .federation.checkpoint import message_in
    from .wire import explain

    try:
        explained = explain(message_in(content))
    except WireError as error:
        raise WireError(f"{path} cannot be explained ({error}): name a whole *.fsp file of this version") from error
    _print_explanation(path, len(content), explained)


def _explain_model(path: Path, content: bytes, picture: Path | None) -> None:
    from .export.artifact import decode_artifact, section_sizes
    from .export.engine import Engine
    from .export.safetensors_file import dense_size
    from .progress import describe_bytes, describe_ratio

    if picture is not None:
        check_target(picture, path)
    try:
        artifact = decode_artifact(content)
    except WireError as error:
        raise WireError(f"{path} cannot be explained ({error}): export it again") from error
    graph, recipe = artifact.graph, artifact.recipe
    whole = dense_size(graph)
    answer = f"{len(recipe.labels)} classes" if recipe.labels else "numbers"
    engine = Engine(graph)
    size, left, n = describe_bytes(len(content)), graph.nonzero, graph.parameters
    facts = (
        f"{path}: {size}, {describe_ratio(len(content), whole)} of {describe_bytes(whole)} as dense safetensors",
        f"{left:,} of {n:,} parameters left (sparsity {1 - left / n:.4f})",
        f"{recipe.kind} of shape {list(recipe.shape)} in, {answer} out",
        "runs on the sparse kernels" if engine.backend == "native" else f"runs in NumPy, because {engine.why}",
        *(["; ".join(f"{name} {value}" for name, value in artifact.provenance.items())] if artifact.provenance else []),
    )
    if picture is not None:
        from .export.picture import mask_picture

        drawn = mask_picture(graph, f"{path.name}: {left:,} of {n:,} parameters left")
        try:
            replace_file(picture, drawn.encode())
        except OSError as error:
            raise RunError(f"{picture} cannot be written ({error.strerror}): name another file") from error
    console = new_console()
    for fact in facts:
        console.print(fact, markup=False, highlight=False, soft_wrap=True)
    console.print(_layers(artifact))
    console.print(
        _sections({name: ("", size) for name, size in section_sizes(content).items()}, graph.parameters, graph.nonzero)
    )
    if picture is not None:
        console.print(f"Picture: {picture}", markup=False, highlight=False, soft_wrap=True)


def _layers(artifact: Artifact) -> Table:
    """Return a table of the layers: density, and outputs that are constant or that nobody reads."""
    from .export.graph import BUFFERS
    from .export.operations import check_graph
    from .export.passes import dead_units

    graph = artifact.graph
    shapes = check_graph(graph)
    dead = dead_units(graph)
    table = Table(**PLAIN)
    for head in ("layer", "operation"):
        table.add_column(head)
    for head in ("output", "parameters", "left", "density", "dead units"):
        table.add_column(head, justify="right", no_wrap=True)
    for index, node in enumerate(graph.nodes):
        tensors = [t for name, t in node.tensors.items() if name not in BUFFERS]
        size = sum(t.size for t in tensors)
        left = sum(int((t != 0).sum()) for t in tensors)
        own = [f"{size:,}", f"{left:,}", f"{left / size:.2%}"] if size else ["", "", ""]
        shape = shapes[index + 1]
        by_unit = node.op.startswith("conv") or (node.op == "linear" and len(shape) == 1)
        units = f"{dead[index]} of {shape[0]}" if by_unit else ""
        table.add_row(Text(node.name or str(index)), node.op, "x".join(map(str, shape)), *own, units)
    return table


def _sections(sizes: dict[str, tuple[str, int]], parameters: int, survivors: int | None = None) -> Table:
    """Return a table of sections: name -> encoding and bytes."""
    table = Table(**PLAIN)
    table.add_column("section")
    table.add_column("encoding")
    for title in ("bytes", "share", "bits a parameter", "bits a survivor"):
        table.add_column(title, justify="right", no_wrap=True)
    total = sum(size for _, size in sizes.values())
    for name, (encoding, size) in {**sizes, "all": ("", total)}.items():
        left = f"{8 * size / survivors:.3f}" if survivors else "-"
        table.add_row(name, encoding, f"{size:,}", f"{size / total:.1%}", f"{8 * size / parameters:.3f}", left)
    return table


def _print_explanation(path: Path, size: int, message: Explanation) -> None:
    from .progress import describe_bytes

    survivors = message.survivors
    facts = [f"{message.kind} of round {message.round} from {message.sender}"]
    facts.append(f"network {message.layout} with {message.parameters:,} parameters")
    if survivors is not None:
        facts.append(f"{survivors:,} left (sparsity {1 - survivors / message.parameters:.4f})")
    if message.num_examples:
        facts.append(f"trained on {message.num_examples:,} examples")
    facts.append(f"coded against {message.reference}" if message.reference else "coded against nothing")
    console = new_console()
    console.print(f"{path}: {describe_bytes(size)}", markup=False, highlight=False, soft_wrap=True)
    console.print("; ".join(facts), markup=False, highlight=False, soft_wrap=True)
    sections = {section.name: (section.encoding, section.size) for section in message.sections}
    console.print(_sections(sections, message.parameters, survivors))
