"""The sparse artifact: one file with all that a finished model needs to be used (``FORMAT.md`` beside this file)."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..errors import ArgumentError, DataError, WireError
from ..files import replace_file
from ..layout import ParameterLayout, Slot
from ..recipe import Recipe
from ..state import Floats, Mask
from ..wire.coder import deflate, inflate
from ..wire.floats import decode_floats, encode_floats
from ..wire.masks import decode_mask, encode_mask
from ..wire.reader import Reader
from ..wire.varint import pack_varint, unpack_varint
from .descriptions import Facts, facts_json, graph_json, parse, read_facts, read_graph, read_recipe, recipe_json
from .graph import BUFFERS, Graph
from .operations import check_graph, shapes_of
from .rounding import decode_float16, decode_int8, encode_float16, encode_int8

__all__ = [
    "MAGIC",
    "MOST_PARAMETERS",
    "SECTIONS",
    "Artifact",
    "Values",
    "decode_artifact",
    "encode_artifact",
    "load_artifact",
    "rounded",
    "save_artifact",
    "section_sizes",
]

MAGIC = b"FSPZ"
"""The first four bytes of an artifact."""

SECTIONS = ("graph", "recipe", "words", "provenance", "mask", "values", "buffers")
"""Names of its sections, in order."""

MOST_PARAMETERS = 1 << 27
"""Most parameters and buffer elements of a network that is loaded unless told otherwise: 512 MiB in float32."""

Values = Literal["float32", "float16", "int8"]
"""How values are kept: without loss, or rounded."""

_VERSION = 1
_HEADER = struct.Struct("<4sB")
_CHECKSUM = struct.Struct("<I")
_PLAIN, _DEFLATED = range(2)
_LOSSLESS = (0, 1, 2)  # encodings of the wire's vectors
_FLOAT16, _INT8 = 16, 17
_MOST_BYTES = {"graph": 1 << 20, "recipe": 1 << 20, "words": 1 << 24, "provenance": 1 << 17}


@dataclass(frozen=True, eq=False)
class Artifact:
    """What the file holds.

    Attributes:
        graph: the network.
        recipe: how raw examples become its inputs, and what its outputs mean.
        provenance: where it comes from: version, configuration, data set, method, metrics, by name.
    """

    graph: Graph
    recipe: Recipe
    provenance: Facts = field(default_factory=dict)


def save_artifact(artifact: Artifact, path: Path, values: Values = "float32") -> int:
    """Write an artifact as a whole or not at all, and return its size in bytes.

    Raises:
        ArgumentError: it breaks a rule of the format.
        OSError: the file cannot be written.
    """
    data = encode_artifact(artifact, values)
    replace_file(path, data)
    return len(data)


def load_artifact(path: str | Path, most_parameters: int = MOST_PARAMETERS) -> Artifact:
    """Read and check an artifact; the file is trusted in nothing.

    Args:
        path: the file.
        most_parameters: networks of more parameters are refused before anything of their size is allocated.

    Raises:
        DataError: there is no such file.
        WireError: it is no artifact, or malformed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name a file that fedsparsify export has made"
        ) from error
    if data.startswith(b"FSPM"):
        raise WireError(f"{path} is a message of a run, not an exported model: make one with fedsparsify export RUN")
    try:
        return decode_artifact(data, most_parameters)
    except WireError as error:
        raise WireError(f"{path} cannot be used ({error}): name a whole *.fsz file, or export it again") from error


def rounded(graph: Graph, values: Values) -> Graph:
    """Return the graph that its artifact with such values holds."""
    if values == "float32":
        return graph
    recipe = Recipe(shape=graph.input_shape)
    if graph.input_dtype == "int64":
        recipe = Recipe("text", length=graph.input_shape[0])
    artifact = Artifact(graph, recipe)
    return decode_artifact(encode_artifact(artifact, values)).graph


def encode_artifact(artifact: Artifact, values: Values = "float32") -> bytes:
    """Return an artifact's bytes.

    Args:
        artifact: what to keep; a parameter that is +0 is pruned.
        values: how; ``float32`` loses nothing.

    Raises:
        ArgumentError: the graph or recipe breaks a rule, a value is not finite, or beyond float16 in that coding.
    """
    if values not in get_args(Values):
        raise ArgumentError(f"values = {values!r} must be one of {', '.join(get_args(Values))}")
    graph, recipe = artifact.graph, artifact.recipe
    check_graph(graph)
    layout = _layout([{name: t.shape for name, t in node.tensors.items()} for node in graph.nodes])
    w, buffers = _flat(graph, layout, False), _flat(graph, layout, True)
    if not (np.isfinite(w).all() and np.isfinite(buffers).all()):
        raise ArgumentError("the network holds NaN or infinity: it cannot be exported")
    mask = w.view(np.int32) != 0  # all but +0
    if values == "float16":
        coded = _FLOAT16, encode_float16(w[mask])
    elif values == "int8":
        coded = _INT8, encode_int8(w[mask], mask, layout)
    else:
        coded = encode_floats(w[mask])
    body = b"".join(
        (
            _HEADER.pack(MAGIC, _VERSION),
            *(_section(*_text(_dump(item))) for item in (graph_json(graph), recipe_json(recipe))),
            _section(*_text("\n".join(recipe.words).encode())),
            _section(*_text(_dump(facts_json(artifact.provenance)))),
            _section(*encode_mask(mask, layout)),
            _section(*coded),
            _section(*encode_floats(buffers)),
        )
    )
    data = body + _CHECKSUM.pack(zlib.crc32(body))
    try:
        decode_artifact(data, max(layout.n + layout.b, 1))
    except WireError as error:
        raise ArgumentError(f"the model cannot be exported: {error}") from error
    return data


def decode_artifact(data: bytes, most_parameters: int = MOST_PARAMETERS) -> Artifact:
    """Return the artifact that bytes hold.

    Raises:
        WireError: they are malformed; the message names the section.
    """
    reader = _open(data)
    texts = {name: _read_text(reader, name) for name in SECTIONS[:4]}
    shape, dtype, nodes, tensors = read_graph(parse(texts["graph"], "graph"))
    try:
        shapes = shapes_of(shape, dtype, nodes, tensors)
    except ArgumentError as error:
        raise WireError(f"graph: {error}") from None
    layout = _layout(tensors)
    if not layout.n:
        raise WireError("graph: it has no parameters")
    if layout.n + layout.b > most_parameters:
        raise WireError(f"graph: {layout.n + layout.b} parameters are more than the {most_parameters} that are allowed")
    rows = tensors[0]["weight"][0] if nodes[0].op == "embedding" else 0
    most = max(rows - 2, 0)  # 0 is padding, 1 any other word
    recipe = read_recipe(parse(texts["recipe"], "recipe"), _words(texts["words"], most))
    _check_recipe(recipe, shapes[0], shapes[-1], dtype)
    facts = read_facts(parse(texts["provenance"], "provenance"))
    mask = decode_mask(*reader.section("mask"), layout)
    values = _decode_values(*reader.section("values"), mask, layout)
    encoding, coded = reader.section("buffers")
    if encoding not in _LOSSLESS:
        raise WireError(f"buffers: encoding {encoding} is unknown")
    buffers = decode_floats(encoding, coded, layout.b, None, None, "buffers")
    if reader.left:
        raise WireError(f"artifact: {reader.left} bytes follow the last section")
    w = np.zeros(layout.n, np.float32)
    w[mask] = values
    filled = []
    taken = {slot.name: w[slot.span].reshape(slot.shape) for slot in layout.parameters}
    taken |= {slot.name: buffers[slot.span].reshape(slot.shape) for slot in layout.buffers}
    for index, (node, own) in enumerate(zip(nodes, tensors, strict=True)):
        filled.append(replace(node, tensors={name: taken[f"{index}.{name}"] for name in own}))
        if "running_var" in own and filled[-1].tensors["running_var"].min() < 0:
            raise WireError(f"buffers: a variance of node {index} is negative")
    return Artifact(Graph(shape, "int64" if dtype == "int64" else "float32", tuple(filled)), recipe, facts)


def section_sizes(data: bytes) -> Mapping[str, int]:
    """Return how many bytes each section takes, ``header`` and ``checksum`` included; they add up to all.

    Raises:
        WireError: it is no artifact.
    """
    reader = _open(data)
    sizes = {"header": reader.at}
    for name in SECTIONS:
        begin = reader.at
        reader.section(name)
        sizes[name] = reader.at - begin
    return {**sizes, "checksum": len(data) - reader.at}


def _open(data: bytes) -> Reader:
    least = _HEADER.size + _CHECKSUM.size
    if len(data) < least:
        raise WireError(f"artifact: {len(data)} bytes are fewer than the {least} of an empty one")
    magic, version = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"header: magic {magic!r} is not {MAGIC!r}; this is no FedSparsify model")
    if version != _VERSION:
        raise WireError(f"header: version {version} is not supported; this reader knows version {_VERSION}")
    end = len(data) - _CHECKSUM.size
    if zlib.crc32(memoryview(data)[:end]) != _CHECKSUM.unpack_from(data, end)[0]:
        raise WireError("checksum: the file was damaged or cut on its way")
    return Reader(data, _HEADER.size, end)


def _check_recipe(recipe: Recipe, given: tuple[int, ...], answer: tuple[int, ...], dtype: str) -> None:
    if (recipe.kind == "text") != (dtype == "int64"):
        raise WireError(f"recipe: examples of kind {recipe.kind} do not make an input of {dtype}")
    made = recipe.length if recipe.kind == "text" else math.prod(recipe.shape) // recipe.downsample ** len(recipe.shape)
    if made != math.prod(given):
        raise WireError(f"recipe: its examples make {made} numbers, but the network takes {math.prod(given)}")
    if recipe.labels and answer != (len(recipe.labels),):
        raise WireError(f"recipe: {len(recipe.labels)} labels are there for outputs of shape {answer}")


def _decode_values(encoding: int, data: bytes, mask: Mask, layout: ParameterLayout) -> Floats:
    count = int(np.count_nonzero(mask))
    if encoding in _LOSSLESS:
        return decode_floats(encoding, data, count, None, None, "values")
    if encoding == _FLOAT16:
        try:
            values = decode_float16(data, count)
        except WireError as error:
            raise WireError(f"values: {error}") from None
    elif encoding == _INT8:
        try:
            values = decode_int8(data, mask, layout)
        except WireError as error:
            raise WireError(f"values: {error}") from None
    else:
        raise WireError(f"values: encoding {encoding} is unknown")
    if not np.isfinite(values).all():
        raise WireError("values: one of them is not a finite number")
    return values


def _layout(tensors: list[dict[str, tuple[int, ...]]]) -> ParameterLayout:
    """Return where each node's tensors lie in the flat vectors of parameters and buffers."""
    slots: tuple[list[Slot], list[Slot]] = [], []
    ends = [0, 0]
    for index, own in enumerate(tensors):
        for name, shape in own.items():
            which = int(name in BUFFERS)
            slots[which].append(Slot(f"{index}.{name}", tuple(shape), ends[which]))
            ends[which] += math.prod(shape)
    return ParameterLayout(tuple(slots[0]), tuple(slots[1]))


def _flat(graph: Graph, layout: ParameterLayout, buffers: bool) -> Floats:
    flat = np.zeros(layout.b if buffers else layout.n, np.float32)
    for slot in layout.buffers if buffers else layout.parameters:
        index, _, name = slot.name.partition(".")
        flat[slot.span] = graph.nodes[int(index)].tensors[name].reshape(-1)
    return flat


def _words(data: bytes, most: int) -> tuple[str, ...]:
    if not data:
        return ()
    count = data.count(b"\n") + 1
    if count > most:  # before so many are made
        raise WireError(f"words: {count} are more than the {most} that the network knows")
    try:
        words = tuple(data.decode("utf-8").split("\n"))
    except UnicodeDecodeError:
        raise WireError("words: they are no text in UTF-8") from None
    if not all(word.isprintable() for word in words):
        raise WireError("words: some have characters that cannot be printed")
    return words


def _dump(item: Any) -> bytes:
    return json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode()


def _text(data: bytes) -> tuple[int, bytes]:
    packed = pack_varint(len(data)) + deflate(data)
    return (_DEFLATED, packed) if len(packed) < len(data) else (_PLAIN, data)


def _read_text(reader: Reader, name: str) -> bytes:
    encoding, data = reader.section(name)
    size, at = len(data), 0
    if encoding == _DEFLATED:
        size, at = unpack_varint(data, 0, name)
    elif encoding != _PLAIN:
        raise WireError(f"{name}: encoding {encoding} is unknown")
    if size > _MOST_BYTES[name]:
        raise WireError(f"{name}: {size} bytes are more than {_MOST_BYTES[name]}")
    if encoding == _PLAIN:
        return data
    try:
        return inflate(data[at:], size)
    except WireError as error:
        raise WireError(f"{name}: {error}") from None


def _section(encoding: int, data: bytes) -> bytes:
    return bytes([encoding]) + pack_varint(len(data)) + data
