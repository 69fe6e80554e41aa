"""Predictions from raw examples, by any number of threads, without torch."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify.errors import ArgumentError
from fedsparsify.export import SparseModel
from fedsparsify.export.artifact import encode_artifact, save_artifact
from fedsparsify.export.reference import run
from tests.export.cases import ARTIFACTS

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 8, 8)).astype(np.uint8)


def test_pictures_become_classes_with_probabilities() -> None:
    artifact = ARTIFACTS["picture"]
    found = SparseModel(artifact).predict(PIXELS)
    x = ((PIXELS * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.2)).reshape(-1, 1, 8, 8)
    expected = run(artifact.graph, x.astype(np.float32))
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    assert np.array_equal(found.classes, expected.argmax(1)) and len(found) == 300
    assert set(found.labels) <= {"cat", "dog", "übrig"} and found.labels[0] == found.top(1)[0][0][0]
    best = found.top(9)[7]
    assert len(best) == 3 and [p for _, p in best] == sorted((p for _, p in best), reverse=True)


def test_a_model_says_what_computes_it_and_refuses_fewer_than_one_class() -> None:
    model = SparseModel(ARTIFACTS["picture"])
    assert (model.backend == "native") == (model.why == "")
    assert SparseModel(ARTIFACTS["text"]).backend == "numpy" and "words" in SparseModel(ARTIFACTS["text"]).why
    with pytest.raises(ArgumentError, match="k = 0 must be at least 1"):
        model.predict(PIXELS[:1]).top(0)


def test_inputs_of_several_shapes_are_refused_in_a_sentence() -> None:
    ragged: Any = [[1.0], [1.0, 2.0]]
    with pytest.raises(ArgumentError, match="the inputs are of several shapes"):
        SparseModel(ARTIFACTS["table"]).forward(ragged)


def test_a_batch_is_its_examples_one_by_one() -> None:
    model = SparseModel(ARTIFACTS["picture"])
    whole = model.predict(PIXELS[:9]).scores
    single = np.concatenate([model.predict(PIXELS[i : i + 1]).scores for i in range(9)])
    np.testing.assert_allclose(whole, single, atol=1e-5)


def test_no_examples_give_no_answers() -> None:
    found = SparseModel(ARTIFACTS["picture"]).predict(PIXELS[:0])
    assert len(found) == 0 and found.scores.shape == (0, 3) and found.labels == [] and found.top(2) == []


def test_what_numpy_can_read_is_as_good_as_an_array() -> None:
    import torch

    model = SparseModel(ARTIFACTS["picture"])
    tensor: Any = torch.from_numpy(PIXELS[:3])
    assert np.array_equal(model.predict(tensor).scores, model.predict(PIXELS[:3]).scores)
    nothing: Any = []
    assert model.prepare(nothing).shape == (0, 1, 8, 8)
    assert len(model.predict(nothing)) == len(SparseModel(ARTIFACTS["text"]).predict(nothing)) == 0


@pytest.mark.parametrize("name", ARTIFACTS)
def test_copies_say_the_same(name: str) -> None:
    examples: dict[str, Any] = {"picture": PIXELS[:2], "text": ["a film"], "table": [[1, 2, 3, 4]]}
    model: SparseModel = SparseModel(ARTIFACTS[name])
    given: Any = examples[name]
    expected = model.predict(given).scores
    for other in (copy.deepcopy(model), SparseModel.from_bytes(encode_artifact(ARTIFACTS[name]))):
        assert np.array_equal(other.predict(given).scores, expected) and other.provenance == model.provenance


def test_inputs_are_prepared_as_onnx_programs_need_them() -> None:
    texts = SparseModel(ARTIFACTS["text"])
    assert texts.prepare(["A film!"]).tolist() == [[0, 0, 0, 2, 3]] and texts.prepare(["A film!"]).dtype == np.int64
    pictures = SparseModel(ARTIFACTS["picture"])
    assert pictures.prepare(PIXELS[:2]).shape == (2, 1, 8, 8)
    assert np.array_equal(pictures.forward(pictures.prepare(PIXELS[:2])), pictures.predict(PIXELS[:2]).scores)


def test_scores_that_are_no_numbers_are_refused() -> None:
    vast = np.array([[1, 2, 3, 4], [3e38, 3e38, 3e38, 3e38]])
    with pytest.raises(ArgumentError, match="example 1 has values so large"):
        SparseModel(ARTIFACTS["table"]).predict(vast)


def test_long_inputs_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SparseModel(ARTIFACTS["picture"])
    sizes: list[int] = []
    forward = model.forward

    def counted(x: Any) -> Any:
        sizes.append(len(x))
        return forward(x)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr("fedsparsify.export.model._NUMBERS", 1000)
    model.predict(PIXELS[:40])
    assert max(sizes) == 1000 // 64


def test_texts_become_classes() -> None:
    artifact = ARTIFACTS["text"]
    found = SparseModel(artifact).predict(["A film!", "süß, it's unknown", ""])
    numbers = np.array([[0, 0, 0, 2, 3], [0, 0, 5, 4, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_allclose(found.scores, run(artifact.graph, numbers), atol=1e-5)
    assert set(found.labels) <= {"bad", "good"}


def test_a_regression_answers_in_the_unit_of_its_target() -> None:
    artifact = ARTIFACTS["table"]
    found = SparseModel(artifact).predict([[1, 2, 3, 4]])
    x = (np.array([[1.0, 2, 3, 4]]) - [0, 1, 2, 3]) / [1, 2, 1, 4]
    np.testing.assert_allclose(found.scores, run(artifact.graph, x.astype(np.float32)) * 12 + 30, rtol=1e-5)
    assert found.probabilities is None
    for ask in (lambda: found.labels, lambda: found.top(1)):
        with pytest.raises(ArgumentError, match="is a regression"):
            ask()


class Unwilling:
    """Like a tensor that requires its gradient."""

    def __array__(self, *_: object) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (np.zeros((2, 28, 28)), r"shape \[2, 28, 28\], but must have \[N, 8, 8\]"),
        (PIXELS[0], r"one example is x\[np.newaxis\]"),
        (np.full((1, 8, 8), np.nan), "NaN"),
        (np.full((1, 8, 8), "x"), "real numbers"),
        (7, "must be an array or a list"),
        (np.float32(3), "must be an array or a list"),
        (["a text"], "real numbers"),
        (Unwilling(), "a Unwilling that is no array: not today"),
    ],
)
def test_wrong_examples_are_refused(examples: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseModel(ARTIFACTS["picture"]).predict(examples)


def test_threads_get_their_own_answers() -> None:
    model = SparseModel(ARTIFACTS["picture"])
    parts = [PIXELS[i : i + 1 + i % 7] for i in range(64)]
    alone = [model.predict(part).scores for part in parts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for a, b in zip(pool.map(lambda part: model.predict(part).scores, parts), alone, strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_loading_and_predicting_needs_no_torch(name: str, tmp_path: Path) -> None:
    save_artifact(ARTIFACTS[name], tmp_path / "model.fsz")
    given = {"picture": "np.zeros((2, 8, 8), np.uint8)", "text": "['a film']", "table": "[[1, 2, 3, 4]]"}[name]
    program = (
        "import sys, numpy as np\n"
        "from fedsparsify.export import SparseModel\n"
        f"print(len(SparseModel.load(sys.argv[1]).predict({given})))\n"
        "assert not {'torch', 'scipy', 'onnx', 'pydantic', 'typer'} & set(sys.modules), 'too much is imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.fsz")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_says_what_it_is() -> None:
    assert repr(SparseModel(ARTIFACTS["table"])) == "SparseModel(a network: 5 of 5 parameters)"
