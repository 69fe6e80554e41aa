"""The choice of backends: by measurement, cached, and a plain value that reproduces itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedsparsify.errors import ArgumentError
from fedsparsify.sparse import Calibration, LayerTimes, Trainer, calibrate, calibration, choose, native
from tests.sparse.networks import planned, state_of

needs_native = pytest.mark.skipif(not native.available(), reason="the native kernels are not built")

# Linear: sparse wins below density 0.5. Convolution: below 0.25, and torch beats the native dense kernels.
KNOWN = Calibration(
    "test", (0.0, 1.0), LayerTimes(200.0, 100.0, (1.0, 200.0)), LayerTimes(50.0, 100.0, (1.0, 400.0)), 0.0
)  # fmt: skip
CNN = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))


def density_mask(n: int, first: int, densities: tuple[float, float]) -> np.ndarray:
    mask = np.zeros(n, bool)
    mask[: int(first * densities[0])] = True
    mask[first : first + int((n - first) * densities[1])] = True
    return mask


@needs_native
@pytest.mark.parametrize(
    ("densities", "layers"),
    [((0.1, 0.4), ("sparse", "sparse")), ((0.3, 0.4), ("dense", "sparse")), ((0.1, 0.6), ("sparse", "dense"))],
)
def test_each_layer_gets_what_is_faster_at_its_density(densities: tuple[float, float], layers: tuple[str, str]) -> None:
    plan = planned(CNN, (1, 8, 8))
    mask = density_mask(plan.n, 40, densities)  # 36 weights and 4 biases first
    assert choose(plan, mask, 32, calibration=KNOWN).layers == layers


@needs_native
def test_torch_is_chosen_where_it_is_faster_over_all() -> None:
    plan = planned(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)), (1, 8, 8))
    assert choose(plan, np.ones(plan.n, bool), 32, calibration=KNOWN).backend == "torch"
    assert choose(plan, np.zeros(plan.n, bool), 32, calibration=replace(KNOWN, torch_step=1.0)).backend == "native"


@needs_native
def test_a_choice_passed_back_in_gives_the_same_bits() -> None:
    module = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    plan = planned(module, (20,))
    state = state_of(module, 0.3)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 20)).astype(np.float32), rng.integers(0, 4, 40)

    def run(**options: object) -> np.ndarray:
        trainer = Trainer(plan, *state, lr=0.1, batch_size=8, **options)  # type: ignore[arg-type]
        trainer.epoch(x, y)
        return trainer.weights()

    choice = choose(plan, state[1], 8, calibration=KNOWN)
    np.testing.assert_array_equal(run(calibration=KNOWN), run(backends=choice.layers))


def test_without_the_extension_torch_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(CNN, (1, 8, 8))
    monkeypatch.setattr(native, "_native", None)
    choice = choose(plan, np.ones(plan.n, bool), 32)
    assert choice.backend == "torch" and choice.ratio == 1.0
    with pytest.raises(ArgumentError, match="not built"):
        calibrate()


def test_a_mask_of_another_network_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"mask has the shape \(3,\)"):
        choose(planned(CNN, (1, 8, 8)), np.ones(3, bool), 32, calibration=KNOWN)


@needs_native
def test_measurements_are_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def measured(key: str) -> Calibration:
        runs.append(key)
        return replace(KNOWN, key=key)

    monkeypatch.setattr(calibration, "_measure", measured)
    monkeypatch.setattr(calibration, "_measured", {})
    cache = tmp_path / "deep" / "calibration.json"
    first = calibrate(cache=cache)
    assert calibrate(cache=cache) is first
    monkeypatch.setattr(calibration, "_measured", {})
    assert calibrate(cache=cache) == first and len(runs) == 1
    cache.write_text(json.dumps(asdict(replace(first, key="another machine"))))
    monkeypatch.setattr(calibration, "_measured", {})
    assert calibrate(cache=cache) == first and len(runs) == 2
    cache.write_text("{broken")
    assert calibrate(cache=cache, refresh=True) == first and len(runs) == 3
    assert json.loads(cache.read_text())["key"] == first.key


@needs_native
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_measure", lambda key: replace(KNOWN, key=key))
    (tmp_path / "file").write_text("")
    calibrate(cache=tmp_path / "file" / "calibration.json", refresh=True)


@pytest.mark.parametrize(
    "change",
    [{"linear": None}, {"densities": []}, {"densities": [0.0]}, {"conv": {"torch": -1, "dense": 1, "sparse": [1, 1]}}],
)
def test_a_damaged_calibration_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="not a calibration"):
        Calibration.from_json({**asdict(replace(KNOWN, linear=LayerTimes(1, 1, (1, 1)))), **change})


@needs_native
def test_a_real_measurement_finds_that_sparse_pays_at_one_percent(tmp_path: Path) -> None:
    measured = calibrate(refresh=True, cache=tmp_path / "c.json")
    for times in (measured.linear, measured.conv):
        assert times.sparse[0] < times.dense
