"""The sparse artifact gives back what was put in, and refuses everything else in one sentence."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify.errors import ArgumentError, DataError, WireError
from fedsparsify.export.artifact import (
    SECTIONS,
    Artifact,
    Values,
    decode_artifact,
    encode_artifact,
    load_artifact,
    rounded,
    save_artifact,
    section_sizes,
)
from fedsparsify.export.graph import Graph, Node
from fedsparsify.recipe import Recipe
from fedsparsify.wire.varint import pack_varint
from tests.export.cases import ARTIFACTS
from tests.export.sections import join, split
from tests.fuzz.artifact_files import fuzz


def tensors(graph: Graph) -> list[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    return [(f"{i}.{name}", t) for i, node in enumerate(graph.nodes) for name, t in node.tensors.items()]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_everything_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    artifact = ARTIFACTS[name]
    path = tmp_path / "model.fsz"
    assert save_artifact(artifact, path) == path.stat().st_size
    found = load_artifact(path)
    assert found.recipe == artifact.recipe and found.provenance == artifact.provenance
    assert (found.graph.input_shape, found.graph.input_dtype) == (
        artifact.graph.input_shape,
        artifact.graph.input_dtype,
    )
    for a, b in zip(found.graph.nodes, artifact.graph.nodes, strict=True):
        assert (a.op, a.inputs, a.attributes, a.name) == (b.op, b.inputs, b.attributes, b.name)
    for (key, got), (other, put) in zip(tensors(found.graph), tensors(artifact.graph), strict=True):
        assert key == other and got.dtype == np.float32 and got.tobytes() == put.tobytes(), key
    sizes = section_sizes(path.read_bytes())
    assert list(sizes) == ["header", *SECTIONS, "checksum"] and sum(sizes.values()) == path.stat().st_size


@pytest.mark.parametrize(("values", "error"), [("float16", 2**-11), ("int8", 1 / 254)])
@pytest.mark.parametrize("name", ARTIFACTS)
def test_rounded_values_are_as_near_as_their_coding_allows(name: str, values: Values, error: float) -> None:
    graph = ARTIFACTS[name].graph
    near = rounded(graph, values)
    for (key, a), (_, b) in zip(tensors(near), tensors(graph), strict=True):
        if "running" in key:
            assert np.array_equal(a, b)
        else:
            assert np.array_equal(a != 0, b != 0) or values == "int8"  # a step may be 0
            of = np.abs(b) if values == "float16" else np.abs(b).max(initial=0)
            assert (np.abs(a - b) <= error * 1.001 * of).all(), key
            if values == "int8" and b.ndim == 1:
                assert np.array_equal(a, b), "one-dimensional tensors are not rounded"


def test_int8_keeps_a_scale_for_each_row_where_that_pays() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 64)).astype(np.float32) * np.array([[1], [10], [100], [1000]], np.float32)
    graph = Graph((64,), "float32", (Node("linear", (0,), {}, {"weight": weight}),))
    near = rounded(graph, "int8").nodes[0].tensors["weight"]
    assert (np.abs(near - weight).max(1) <= np.abs(weight).max(1) / 253).all()


def test_a_value_beyond_float16_is_refused() -> None:
    graph = Graph((1,), "float32", (Node("linear", (0,), {}, {"weight": np.full((1, 1), 1e5, np.float32)}),))
    with pytest.raises(ArgumentError, match="beyond float16"):
        rounded(graph, "float16")
    assert rounded(graph, "int8").nodes[0].tensors["weight"] == pytest.approx(1e5)


def test_rounding_makes_the_file_smaller() -> None:
    sizes = [len(encode_artifact(large(), values)) for values in ("float32", "float16", "int8")]
    assert sizes[0] > 1.5 * sizes[1] and sizes[1] > 1.2 * sizes[2]


def large() -> Artifact:
    weight = np.random.default_rng(0).normal(scale=0.1, size=(100, 784)).astype(np.float32)
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.95)] = 0
    return Artifact(Graph((784,), "float32", (Node("linear", (0,), {}, {"weight": weight}),)), Recipe(shape=(784,)))


def test_a_sparse_network_takes_an_eighteenth_of_its_dense_size() -> None:
    assert len(encode_artifact(large())) * 18 <= 4 * 78400


# What is refused ------------------------------------------------------------------------------------------------------


def inflated(part: bytes) -> bytes:
    return zlib.decompress(part[1 + (2 if part[1] > 127 else 1) :], -15) if part[0] else part[1:]


def change_json(section: str, change: Callable[[Any], Any], name: str = "picture") -> bytes:
    parts = split(encode_artifact(ARTIFACTS[name]))
    found = json.loads(inflated(parts[section]))
    changed = change(found)
    parts[section] = b"\0" + json.dumps(found if changed is None else changed).encode()
    return join(parts)


def change_part(section: str, change: Callable[[bytes], bytes], name: str = "picture") -> bytes:
    parts = split(encode_artifact(ARTIFACTS[name]))
    parts[section] = change(parts[section])
    return join(parts)


def test_a_file_that_is_put_together_again_is_the_same() -> None:
    for artifact in ARTIFACTS.values():
        data = encode_artifact(artifact)
        assert join(split(data)) == data


SOUND = encode_artifact(ARTIFACTS["picture"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are fewer"),
        (b"PK\3\4" + SOUND[4:], "this is no FedSparsify model"),
        (SOUND[:4] + b"\2" + SOUND[5:], "version 2 is not supported"),
        (SOUND[:-1], "checksum"),
        (SOUND[:40] + bytes([SOUND[40] ^ 1]) + SOUND[41:], "checksum"),
        (join(split(SOUND), tail=b"\0"), "1 bytes follow the last section"),
        (join({k: v for k, v in split(SOUND).items() if k != "buffers"}), "ends|are there"),
        (change_part("graph", lambda p: b"\0{"), "graph: it is no JSON"),
        (change_part("graph", lambda p: b"\0" + b"[" * 100_000), "graph: it is no JSON"),
        (change_part("graph", lambda p: b"\0" + b"9" * 5000), "graph: it is no JSON"),
        (change_part("graph", lambda p: b"\2"), "graph: encoding 2 is unknown"),
        (change_part("graph", lambda p: b"\1" + pack_varint(1 << 40) + p[3:]), "are more than 1048576"),
        (change_part("graph", lambda p: b"\1" + pack_varint(7) + p[3:]), "graph: .*the 7 bytes"),
        (change_part("graph", lambda p: b"\1" + pack_varint(9) + b"\xff" * 9), "graph: .*damaged"),
        (change_part("provenance", lambda p: b'\0{"a": NaN}'), "NaN is no number"),
        (change_part("words", lambda p: b"\0a\nb"), "words: 2 are more than the 0 that the network knows"),
        (change_part("words", lambda p: b"\0\xff", "text"), "no text in UTF-8"),
        (change_part("words", lambda p: b"\0a\x1b[2J", "text"), "words: some have characters that cannot be printed"),
        (change_part("words", lambda p: b"\0" + b"\n" * 12, "text"), "words: 13 are more than the 10"),
        (change_part("mask", lambda p: b"\1"), "mask: it refers to a model"),
        (change_part("mask", lambda p: b"\2" + p[1:]), "mask: .* bytes are there where"),
        (change_part("values", lambda p: b"\5" + p[1:]), "values: encoding 5 is unknown"),
        (change_part("values", lambda p: b"\3" + p[1:]), "values: encoding 3 is unknown"),
        (change_part("values", lambda p: b"\x10" + p[1:]), "values: "),
        (change_part("values", lambda p: b"\x11"), "values: their kinds"),
        (change_part("values", lambda p: b"\x11" + b"\2" * 8), "values: 8 bytes are too few"),
        (change_part("values", lambda p: b"\x11" + b"\3" * 8), "values: their kinds"),
        (
            change_part("buffers", lambda p: b"\0" + struct.pack("<12f", *[-1.0] * 12)),
            "a variance of node 1 is negative",
        ),
        (change_part("buffers", lambda p: b"\0" + struct.pack("<12f", *[np.nan] * 12)), "buffers: element 0 is nan"),
        (change_part("buffers", lambda p: b"\3" + p[1:]), "buffers: encoding 3"),
        (change_json("graph", lambda g: [g]), "it is no object"),
        (change_json("graph", lambda g: g | {"more": 1}), "its fields are"),
        (change_json("graph", lambda g: g["nodes"].clear()), "0 nodes"),
        (change_json("graph", lambda g: g["nodes"][0].update(op="system")), "the operation is unknown"),
        (change_json("graph", lambda g: g["nodes"][0].update(op="x" * 2000)), "no text of at most 1024"),
        (change_json("graph", lambda g: g["nodes"][0].update(inputs=[7])), r"its inputs \(7,\)"),
        (change_json("graph", lambda g: g["nodes"][0].update(inputs=["0"])), "no whole number"),
        (change_json("graph", lambda g: g["nodes"][0].update(inputs=[True])), "no whole number"),
        (change_json("graph", lambda g: g["nodes"][0]["attributes"].update(groups=1.0)), "groups = 1.0"),
        (change_json("graph", lambda g: g["nodes"][0]["attributes"].update(groups=10**30)), "no whole number"),
        (change_json("graph", lambda g: g["nodes"][0]["attributes"].update(groups=None)), "a number is none"),
        (change_json("graph", lambda g: g["nodes"][5]["tensors"][0].append(1)), "no pair"),
        (change_json("graph", lambda g: g["nodes"][5]["tensors"].append(["bias", [40]])), "two tensors"),
        (change_json("graph", lambda g: g["nodes"][5]["tensors"][0][1].append(-1)), "positive sizes"),
        (change_json("graph", lambda g: g["input"].update(shape=[1 << 20, 1 << 20])), "more than"),
        (change_json("graph", lambda g: g["input"].update(type="pickle")), "neither float32 nor int64"),
        (
            change_json("graph", lambda g: g["nodes"].__setitem__(slice(0, None), [{"op": "relu", "inputs": [0]}])),
            "no parameters",
        ),
        (change_json("graph", lambda g: g["nodes"][7]["tensors"][0][1].__setitem__(0, 1 << 26)), "more than 134217728"),
        (
            change_json(
                "graph", lambda g: g["nodes"][7]["tensors"].__setitem__(slice(0, None), [["weight", [1 << 21, 40]]])
            ),
            "labels are there|are allowed",
        ),
        (change_json("recipe", lambda r: r.update(kind="program")), "recipe: kind = program"),
        (change_json("recipe", lambda r: r.update(kind="text", length=5, shape=[])), "do not make an input of float32"),
        (
            change_json("recipe", lambda r: r.update(shape=[8, 9])),
            "its examples make 72 numbers, but the network takes 64",
        ),
        (change_json("recipe", lambda r: r.update(shape=[-8, -8])), "shape"),
        (change_json("recipe", lambda r: r.update(downsample=3)), "downsample = 3"),
        (change_json("recipe", lambda r: r.update(divisor=0)), "divisor = 0"),
        (change_json("recipe", lambda r: r.update(deviation=[0])), "deviation"),
        (change_json("recipe", lambda r: r.update(mean=[1, 2])), "mean"),
        (
            change_json("recipe", lambda r: r.update(labels=["a", "b"])),
            r"2 labels are there for outputs of shape \(3,\)",
        ),
        (change_json("recipe", lambda r: r.update(labels=[1, 2, 3])), "no text"),
        (change_json("recipe", lambda r: r.update(exact=1)), "neither true nor false"),
        (change_json("recipe", lambda r: r.update(lengths=1)), "its fields are"),
        (change_json("recipe", lambda r: r.update(length=1 << 40), "text"), "length"),
        (change_json("provenance", lambda p: p.update({str(i): i for i in range(99)})), "are more than 64"),
        (
            change_json("provenance", lambda p: p.update(method="x" * 2000)),
            "method is no text of at most 1024 printable",
        ),
        (change_json("provenance", lambda p: p.update(method=[1])), "a number is none"),
        (change_json("provenance", lambda p: p.update({"x" * 65: 1})), "at most 64 characters"),
    ],
)
def test_a_malformed_artifact_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message) as caught:
        decode_artifact(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_network_larger_than_allowed_is_refused_before_it_is_made() -> None:
    with pytest.raises(WireError, match="parameters are more than the 1000 that are allowed"):
        decode_artifact(SOUND, most_parameters=1000)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_artifact(tmp_path / "none.fsz")
    with pytest.raises(DataError, match="cannot be read"):
        load_artifact(tmp_path)
    (tmp_path / "text.fsz").write_text("hello, world")
    with pytest.raises(WireError, match=r"text\.fsz cannot be used \(header: magic"):
        load_artifact(tmp_path / "text.fsz")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(ARTIFACTS["picture"], recipe=Recipe(shape=(3,))), "make 3 numbers"),
        (replace(ARTIFACTS["picture"], provenance={"accuracy": float("nan")}), "NaN"),
        (replace(ARTIFACTS["table"], graph=Graph((4,), "float32", ())), "0 nodes"),
        (
            replace(
                ARTIFACTS["table"],
                graph=Graph(
                    (4,), "float32", (Node("linear", (0,), {}, {"weight": np.full((1, 4), np.inf, np.float32)}),)
                ),
            ),
            "NaN or infinity",
        ),
    ],
)
def test_a_model_that_could_not_be_read_back_is_not_written(broken: Artifact, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        encode_artifact(broken)


def test_damaged_files_are_read_or_refused_quickly_and_in_bounded_memory() -> None:
    failures: list[str] = []
    figures = fuzz(2000, seed=7, fail=lambda number, data, why: failures.append(f"{number}: {why}"))
    assert failures == []
    assert figures.accepted > 50  # else it would try the checksum alone
    assert set(figures.refused) >= {"header", "graph", "recipe", "mask", "values", "buffers", "checksum"}


def test_the_specification_names_every_section_field_and_encoding() -> None:
    import fedsparsify.export.artifact as module

    text = (Path(module.__file__).parent / "FORMAT.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row in SECTIONS] == list(SECTIONS)
    named = {name for row in rows for name in row.replace(",", " ").split()}
    assert {f.name for f in fields(Recipe)} - {"words"} <= named
    assert {"16", "17"} <= named
