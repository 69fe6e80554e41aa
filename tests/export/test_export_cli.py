"""export, predict, inspect and benchmark from end to end, and every wrong input that a user can give them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify.export import SparseModel
from fedsparsify.export.artifact import Artifact, load_artifact, save_artifact
from fedsparsify.export.graph import Graph, Node
from fedsparsify.recipe import Recipe
from tests.commands import CONFIG, Outcome, call, contents, write_config
from tests.export.cases import ARTIFACTS

datasets = pytest.importorskip("sklearn.datasets")
Image = pytest.importorskip("PIL.Image")

KEPT = 5  # examples in the files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, models of every kind, and files of examples."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_config(folder, CONFIG)
        assert call("run", "tiny.toml", "--out", "run", "--no-report").code == 0
        assert call("export", "run").code == 0
    for name, artifact in ARTIFACTS.items():
        save_artifact(artifact, folder / f"{name}.fsz")
    weight = np.eye(12, dtype=np.float32)[:2]
    save_artifact(
        Artifact(
            Graph((3, 2, 2), "float32", (Node("flatten", (0,)), Node("linear", (1,), {}, {"weight": weight}))),
            Recipe("picture", (3, 2, 2), ("a", "b"), brightest=255),
        ),
        folder / "colour.fsz",
    )
    images = datasets.load_digits().images[:KEPT]
    np.save(folder / "digits.npy", images)
    np.save(folder / "one.npy", images[0])
    Image.fromarray(np.rint(images[0] * 255 / 16).astype(np.uint8)).save(folder / "digit.png")
    Image.fromarray(np.zeros((9, 30, 3), np.uint8)).save(folder / "wide.jpg")
    np.savetxt(folder / "digits.csv", images.reshape(KEPT, -1), "%g", delimiter=",")
    (folder / "people.csv").write_text("name,c,b,a,sex\nx,3,2,1,0\ny,4,3,2,1\n")
    (folder / "films.txt").write_text("a film\n\nit's süß\n")
    (folder / "films.csv").write_text('stars,text\n3,"a film, it\'s"\n')
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, as the current directory."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def good(outcome: Outcome) -> str:
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


# export ---------------------------------------------------------------------------------------------------------------


def test_a_sparse_file_predicts_what_the_run_recorded(here: Path) -> None:
    out = good(call("export", "run", "--out", "model.fsz"))
    last = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"accuracy {last['accuracy']:.4f} on the 360 examples of the test set; nothing is rounded" in out
    assert (here / "model.fsz").read_bytes() == (here / "run" / "model.fsz").read_bytes()
    model = SparseModel.load(here / "model.fsz")
    bundle = datasets.load_digits()
    for_test = np.zeros(len(bundle.target), np.bool_)
    for_test[np.argsort(bundle.target, kind="stable")[::5]] = True
    found = model.predict(bundle.images[for_test])
    assert np.mean(found.classes == bundle.target[for_test]) == pytest.approx(last["accuracy"])
    assert model.provenance["accuracy"] == last["accuracy"] and model.provenance["data set"] == "digits"
    assert len(str(model.provenance["configuration"])) == 64 and model.graph.nonzero == last["nonzero"]


def test_each_variant_has_a_file_of_its_own(here: Path) -> None:
    for arguments in (
        ("--format", "onnx"),
        ("--format", "onnx", "--compact"),
        ("--format", "safetensors"),
        ("--format", "safetensors", "--compact"),
        ("--values", "int8"),
        ("--out", "elsewhere.onnx"),
    ):
        good(call("export", "run", *arguments))
    names = {path.name for path in (here / "run").glob("model*")} - {"model.fsp"}
    stems = ("model", "model-compact")
    dense = {f"{stem}{ending}" for stem in stems for ending in (".onnx", ".safetensors")}
    assert names == dense | {"model.fsz", "model-int8.fsz"}
    assert (here / "elsewhere.onnx").read_bytes() == (here / "run" / "model.onnx").read_bytes()


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_the_price_of_rounding_is_shown(here: Path, values: str) -> None:
    out = good(call("export", "run", "--values", values, "--out", "small.fsz"))
    assert f"with {values} values" in out and "without rounding (" in out
    assert (here / "small.fsz").stat().st_size < (here / "run" / "model.fsz").stat().st_size


def test_a_state_dict_goes_back_into_the_network(here: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from fedsparsify.models import build

    good(call("export", "run", "--format", "safetensors"))
    network = build("2-fc", 1, inputs=64, hidden=8)
    network.load_state_dict(load_file(here / "run" / "model.safetensors"))
    model = SparseModel.load(here / "run" / "model.fsz")
    x = model.recipe.prepare(np.load("digits.npy"), (1, 8, 8))
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), model.forward(x), atol=1e-5)


def test_onnx_files_agree_with_the_sparse_one(here: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    good(call("export", "run", "--format", "onnx"))
    good(call("export", "run", "--format", "onnx", "--compact", "--out", "compact.onnx"))
    good(call("export", "run", "--format", "safetensors", "--compact", "--out", "compact.safetensors"))
    assert (here / "compact.onnx").stat().st_size < (here / "run" / "model.onnx").stat().st_size
    model = SparseModel.load(here / "run" / "model.fsz")
    x = model.recipe.prepare(np.load("digits.npy"), (1, 8, 8))
    for path in ("run/model.onnx", "compact.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"input": x})[0], model.forward(x), atol=1e-5)


# predict --------------------------------------------------------------------------------------------------------------


def test_pictures_arrays_and_tables_give_the_same_answers(here: Path) -> None:
    out = good(call("predict", "run/model.fsz", "digits.npy", "digits.csv", "one.npy", "digit.png", "--format", "csv"))
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["file"] for row in rows] == ["digits.npy"] * KEPT + ["digits.csv"] * KEPT + ["one.npy", "digit.png"]
    assert [row["example"] for row in rows] == [*map(str, range(KEPT)), *map(str, range(KEPT)), "0", "0"]
    labels = [row["label"] for row in rows]
    assert labels[:KEPT] == labels[KEPT : 2 * KEPT] and labels[-2:] == [labels[0]] * 2
    expected = SparseModel.load("run/model.fsz").predict(np.load("digits.npy"))
    assert labels[:KEPT] == expected.labels


def with_hole(picture: Any) -> Any:
    picture.info["transparency"] = 3
    return picture


def test_a_photograph_is_turned_as_its_camera_says(here: Path) -> None:
    pixels = np.load("one.npy").reshape(8, 8).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, it is turned by 90 degrees clockwise
    Image.fromarray(np.rot90(pixels)).save("turned.png", exif=exif)
    Image.fromarray(pixels).save("upright.png")
    turned, upright = good(
        call("predict", "run/model.fsz", "turned.png", "upright.png", "--format", "csv")
    ).splitlines()[1:]
    assert turned.split(",")[1:] == upright.split(",")[1:]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x0c\0\0\0\x01\xff\xff\xff\xff"]
)
def test_what_cannot_be_read_of_a_photographs_position_is_left_aside(exif: bytes, here: Path) -> None:
    pixels = np.load("one.npy").reshape(8, 8).astype(np.uint8)
    Image.fromarray(pixels).save("odd.jpg", exif=exif, quality=100)
    assert good(call("predict", "run/model.fsz", "odd.jpg")).count("odd.jpg") == 1


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "more than 8 bits a pixel"),
        (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "is transparent in places"),
        (with_hole(Image.new("L", (8, 8), 3).convert("P")), "is transparent in places"),
        (with_hole(Image.new("L", (8, 8), 3)), "is transparent in places"),
    ],
    ids=["16 bits", "transparent", "transparent colour of a palette", "transparent grey"],
)
def test_a_picture_that_would_be_changed_silently_is_refused(picture: Any, says: str, here: Path) -> None:
    picture.save("odd.png", **picture.info)
    outcome = call("predict", "run/model.fsz", "odd.png")
    assert outcome.code == 2 and says in outcome.err


def test_names_that_look_like_markup_are_shown_as_they_are(here: Path) -> None:
    artifact = load_artifact("run/model.fsz")
    nodes = (replace(artifact.graph.nodes[0], name="[/red]"), *artifact.graph.nodes[1:])
    labels = tuple(f"\\[/red]{name}" for name in artifact.recipe.labels)
    odd = replace(artifact, graph=replace(artifact.graph, nodes=nodes), recipe=replace(artifact.recipe, labels=labels))
    save_artifact(odd, Path("odd.fsz"))
    assert "[/red]" in good(call("inspect", "odd.fsz"))
    assert "\\[/red]" in good(call("predict", "odd.fsz", "one.npy"))


def test_json_holds_the_best_classes_in_order(here: Path) -> None:
    found = json.loads(good(call("predict", "run/model.fsz", "one.npy", "--format", "json", "--top", "3")))
    assert [sorted(entry) for entry in found] == [["classes", "example", "file"]]
    assert len(found[0]["classes"]) == 3
    probabilities = [c["probability"] for c in found[0]["classes"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_columns_are_found_by_their_names(here: Path) -> None:
    found = json.loads(good(call("predict", "table.fsz", "people.csv", "--format", "json")))
    expected = SparseModel(ARTIFACTS["table"]).predict([[0, 1, 2, 3], [1, 2, 3, 4]]).scores
    np.testing.assert_allclose([entry["values"] for entry in found], expected, rtol=1e-5)
    assert "value" in good(call("predict", "table.fsz", "people.csv"))


@pytest.mark.parametrize("header", ["c,b,a,sex", " C,B , A,Sex"])
def test_columns_are_found_however_their_names_are_written(header: str, here: Path) -> None:
    (here / "a.csv").write_text(f"{header}\n3,2,1,0\n")
    (found,) = json.loads(good(call("predict", "table.fsz", "a.csv", "--format", "json")))
    np.testing.assert_allclose(found["values"], SparseModel(ARTIFACTS["table"]).predict([[0, 1, 2, 3]]).scores[0])


def test_a_file_name_that_is_no_text_is_shown_all_the_same(here: Path) -> None:
    name = os.fsdecode(b"\xff.npy")
    os.rename("one.npy", name)
    assert json.loads(good(call("predict", "run/model.fsz", name, "--format", "json")))[0]["file"] == "\ufffd.npy"


def test_texts_are_read_line_by_line_or_from_their_column(here: Path) -> None:
    out = good(call("predict", "text.fsz", "films.txt", "films.csv", "--format", "csv"))
    labels = [row["label"] for row in csv.DictReader(io.StringIO(out))]
    assert labels == SparseModel(ARTIFACTS["text"]).predict(["a film", "it's süß", "a film, it's"]).labels


def test_colours_keep_their_order_and_sizes_may_be_changed(here: Path) -> None:
    Image.fromarray(np.array([[[200, 0, 0], [0, 100, 0]]] * 2, np.uint8)).save("small.png")
    (entry,) = json.loads(good(call("predict", "colour.fsz", "small.png", "--format", "json", "--top", "2")))
    assert [c["label"] for c in entry["classes"]] == ["a", "b"]  # red of the first pixel, then of the second
    assert good(call("predict", "colour.fsz", "wide.jpg", "--resize", "--format", "csv")).count("\n") == 2


# inspect and benchmark ------------------------------------------------------------------------------------------------


def test_inspect_shows_layers_and_sections_and_draws_the_masks(here: Path) -> None:
    out = good(call("inspect", "run/model.fsz", "--picture", "masks.svg"))
    for word in (
        "fc1",
        "density",
        "dead units",
        "mask",
        "values",
        "checksum",
        "data set digits",
        "10 classes out",
        "runs in NumPy, because" if SparseModel.load("run/model.fsz").why else "runs on the sparse kernels",
    ):
        assert word in out
    assert "runs in NumPy, because its input is words" in good(call("inspect", "text.fsz"))
    svg = (here / "masks.svg").read_text()
    assert svg.startswith("<svg") and svg.count("<image") == 3 and "fc2.weight [8, 8]" in svg


def test_inspect_still_explains_messages(here: Path) -> None:
    out = good(call("inspect", "run/model.fsz", "run/model.fsp"))
    assert "model of round 3 from server" in out


def test_benchmark_compares_with_the_dense_network(here: Path) -> None:
    out = good(call("benchmark", "picture.fsz", "--batches", "1,4", "--seconds", "0.01"))
    assert out.count("sparse engine") == 2 and "times dense" in out and "1.00" in out


# What a user gets wrong -----------------------------------------------------------------------------------------------

CASES: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[Path], object]]] = [
    (("export", "none"), ("none is no run directory",), lambda f: None),
    (("export", "run/model.fsz"), ("is no run directory",), lambda f: None),
    (("export", "run"), ("run is not finished", "fedsparsify resume run"), lambda f: (f / "run/model.fsp").unlink()),
    (
        ("export", "run"),
        ("run/model.fsp cannot be used", "checksum"),
        lambda f: (f / "run/model.fsp").write_bytes((f / "run/model.fsp").read_bytes()[:-9]),
    ),
    (
        ("export", "run"),
        ("another network",),
        lambda f: replace_text(f / "run/config.toml", "hidden = 8", "hidden = 9"),
    ),
    (
        ("export", "run"),
        ("was started from Python",),
        lambda f: replace_text(f / "run/config.toml", "digits", "<given in Python>"),
    ),
    (("export", "run", "--out", "."), ("is a directory",), lambda f: None),
    (("export", "run", "--out", "run/model.fsp"), ("run/model.fsp is a run's own",), lambda f: None),
    (("export", "run", "--out", "run/checkpoint.fsp"), ("checkpoint.fsp is a run's own",), lambda f: None),
    (("export", "run", "--out", "run/config.toml"), ("run/config.toml is a run's own",), lambda f: None),
    (("export", "run", "--out", "pipe"), ("pipe is no ordinary file",), lambda f: os.mkfifo(f / "pipe")),
    (("export", "run", "--format", "sparse", "--out", "m.onnx"), ("m.onnx is named like onnx",), lambda f: None),
    (
        ("export", "run"),
        ("run is not finished", "records only: run its config.toml again"),
        lambda f: (f / "run/model.fsp").unlink() or (f / "run/checkpoint.fsp").unlink(),  # type: ignore[func-returns-value]
    ),
    (("export", "run", "--out", "no/where.fsz"), ("no/where.fsz cannot be written", "--out"), lambda f: None),
    (("export", "run", "--compact"), ("--compact is for onnx",), lambda f: None),
    (("export", "run", "--format", "onnx", "--values", "int8"), ("--values int8 is for sparse",), lambda f: None),
    (("export", "run", "--format", "pickle"), ("pickle",), lambda f: None),
    (("export", "run", "--values", "int4"), ("int4",), lambda f: None),
    (("predict", "none.fsz", "one.npy"), ("none.fsz cannot be read",), lambda f: None),
    (("predict", "run", "one.npy"), ("run cannot be read",), lambda f: None),
    (("predict", "run/model.fsp", "one.npy"), ("is a message of a run", "fedsparsify export"), lambda f: None),
    (("predict", "films.txt", "one.npy"), ("films.txt cannot be used", "no FedSparsify model"), lambda f: None),
    (
        ("predict", "run/model.fsz", "one.npy"),
        ("run/model.fsz cannot be used", "checksum"),
        lambda f: (f / "run/model.fsz").write_bytes((f / "run/model.fsz").read_bytes()[:-1]),
    ),
    (("predict", "run/model.fsz", "none.png"), ("none.png is no file",), lambda f: None),
    (("predict", "run/model.fsz", "run"), ("run is no file",), lambda f: None),
    (("predict", "run/model.fsz", "films.txt"), ("films.txt is of no known type",), lambda f: None),
    (("predict", "run/model.fsz", "wide.jpg"), ("30 x 9 pixels", "takes 8 x 8", "--resize"), lambda f: None),
    (("predict", "run/model.fsz", "bad.png"), ("bad.png cannot be read",), lambda f: (f / "bad.png").write_text("x")),
    (
        ("predict", "run/model.fsz", "cut.png"),
        ("cut.png cannot be read",),
        lambda f: (f / "cut.png").write_bytes((f / "digit.png").read_bytes()[:60]),
    ),
    (("predict", "table.fsz", "digit.png"), ("digit.png is a picture", "[4]"), lambda f: None),
    (("predict", "run/model.fsz", "bad.npy"), ("bad.npy cannot be read",), lambda f: (f / "bad.npy").write_text("x")),
    (("predict", "run/model.fsz", "empty.npy"), ("empty.npy cannot",), lambda f: (f / "empty.npy").write_bytes(b"")),
    (("predict", "run/model.fsz", "a.npy"), ("shape [2, 9, 9]", "[8, 8]"), lambda f: save(f, np.zeros((2, 9, 9)))),
    (("predict", "run/model.fsz", "a.npy"), ("a.npy holds no examples",), lambda f: save(f, np.zeros((0, 8, 8)))),
    (("predict", "run/model.fsz", "a.npy"), ("array of <U1",), lambda f: save(f, np.full((1, 8, 8), "x"))),
    (
        ("predict", "run/model.fsz", "a.npy"),
        ("a.npy cannot be read",),
        lambda f: np.save(f / "a.npy", np.array([{}], object), allow_pickle=True),
    ),
    (
        ("predict", "run/model.fsz", "a.npy"),
        ("a.npy: example 0 holds NaN",),
        lambda f: save(f, np.full((8, 8), np.nan)),
    ),
    (("predict", "run/model.fsz", "a.npy"), ("a.npy cannot be read",), lambda f: promise(f / "a.npy")),
    (("predict", "text.fsz", "one.npy"), ("holds numbers", "takes texts"), lambda f: None),
    (("predict", "text.fsz", "people.csv"), ('no column "text"',), lambda f: None),
    (("predict", "text.fsz", "a.txt"), ("a.txt holds no examples",), lambda f: (f / "a.txt").write_text("\n\n")),
    (
        ("predict", "text.fsz", "a.txt"),
        ("no text in UTF-8|as text in UTF-8",),
        lambda f: (f / "a.txt").write_bytes(b"\xff"),
    ),
    (("predict", "table.fsz", "a.csv"), ("a.csv is empty",), lambda f: (f / "a.csv").write_text("")),
    (("predict", "table.fsz", "a.csv"), ('no column "c"',), lambda f: (f / "a.csv").write_text("sex,a,b\n1,2,3\n")),
    (("predict", "table.fsz", "a.csv"), ("a.csv holds no",), lambda f: (f / "a.csv").write_text("sex,a,b,c\n")),
    (
        ("predict", "table.fsz", "a.csv"),
        ('no column "sex"', "(4 are missing)"),
        lambda f: (f / "a.csv").write_text("w,x,y,z\n1,2,3,4\n"),
    ),
    (
        ("predict", "table.fsz", "a.csv"),
        ('has column "a" 2 times',),
        lambda f: (f / "a.csv").write_text("sex,a,b,c,a\n0,1,2,3,99\n"),
    ),
    (
        ("predict", "table.fsz", "a.csv"),
        ("a.csv, line 1", "nan"),
        lambda f: (f / "a.csv").write_text("nan,1,2,3\n1,2,3,4\n"),
    ),
    (
        ("predict", "table.fsz", "a.csv"),
        ("a.csv, line 1", 'cell 1 = ""'),
        lambda f: (f / "a.csv").write_text(",1,2,3\n1,2,3,4\n"),
    ),
    (
        ("predict", "table.fsz", "a.csv", "--format", "json"),
        ("a.csv: example 0", "scores are no numbers"),
        lambda f: (f / "a.csv").write_text("1e38,1e38,1e38,3e38\n"),
    ),
    (("predict", "text.fsz", "digit.png"), ("takes texts: name a file of texts",), lambda f: None),
    (
        ("predict", "table.fsz", "a.csv"),
        ("a.csv, line 2", 'b = "much"'),
        lambda f: (f / "a.csv").write_text("sex,a,b,c\n1,2,much,3\n"),
    ),
    (
        ("predict", "table.fsz", "a.csv"),
        ("line 1: 3 cells", "4 numbers"),
        lambda f: (f / "a.csv").write_text("1,2,3\n"),
    ),
    (
        ("predict", "table.fsz", "a.csv"),
        ("a.csv, line 2", "nan"),
        lambda f: (f / "a.csv").write_text("sex,a,b,c\n1,2,nan,3\n"),
    ),
    (("predict", "table.fsz", "a.csv"), ("no CSV file",), lambda f: (f / "a.csv").write_text('sex,a,b,c\n"1,2\n')),
    (("inspect", "none.fsz"), ("none.fsz cannot be read",), lambda f: None),
    (("inspect", "films.txt"), ("films.txt cannot be explained",), lambda f: None),
    (
        ("inspect", "run/model.fsz"),
        ("run/model.fsz cannot be explained", "checksum"),
        lambda f: (f / "run/model.fsz").write_bytes((f / "run/model.fsz").read_bytes()[:-1]),
    ),
    (("inspect", "run/model.fsp", "--picture", "a.svg"), ("--picture is of one exported model",), lambda f: None),
    (("inspect", "run/model.fsz", "--picture", "run/model.fsz"), ("the file that it would be made",), lambda f: None),
    (("inspect", "run/model.fsz", "--picture", "run/model.fsp"), ("run/model.fsp is a run's own",), lambda f: None),
    (
        ("inspect", "run/model.fsz", "--picture", "kept.key"),
        ("kept.key is a key, or a model or checkpoint",),
        lambda f: (f / "kept.key").write_bytes(b"FSK1 and so on"),
    ),
    (
        ("inspect", "run/model.fsz", "--picture", "kept.fsp"),
        ("kept.fsp is a key, or a model or checkpoint",),
        lambda f: shutil.copy(f / "run/checkpoint.fsp", f / "kept.fsp"),
    ),
    (("inspect", "run/model.fsz", "--picture", "no/a.svg"), ("no/a.svg cannot be written",), lambda f: None),
    (("benchmark", "none.fsz"), ("none.fsz cannot be read",), lambda f: None),
    (("benchmark", "run/model.fsz", "--batches", "1,many"), ("--batches",), lambda f: None),
    (("benchmark", "run/model.fsz", "--batches", "0"), ("from 1 to 65536",), lambda f: None),
]


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def save(folder: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    np.save(folder / "a.npy", array)


def promise(path: Path) -> None:
    """Write a NPY file whose header promises a terabyte."""
    np.save(path, np.zeros((1, 8, 8)))
    content = path.read_bytes()
    assert b"(1, 8, 8), }        " in content
    path.write_bytes(content.replace(b"(1, 8, 8), }        ", b"(999999999, 8, 8), }"))


@pytest.mark.parametrize(("arguments", "says", "arrange"), CASES, ids=[" ".join(c[0]) for c in CASES])
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(
    arguments: tuple[str, ...], says: tuple[str, ...], arrange: Callable[[Path], object], here: Path
) -> None:
    arrange(here)
    before = contents(here)
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    for part in says:
        assert any(choice in " ".join(outcome.err.split()) for choice in part.split("|")), outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert contents(here) == before


def test_a_file_that_cannot_be_read_is_refused(here: Path) -> None:
    if os.geteuid() == 0 or sys.platform == "win32":
        pytest.skip("root reads everything")
    (here / "run" / "model.fsz").chmod(0)
    assert call("inspect", "run/model.fsz").code == 2
