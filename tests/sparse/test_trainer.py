"""The compiled trainer against its NumPy twin and against torch, and what it promises beside the numbers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout
from fedsparsify.sparse import Trainer, available, predict, reference, targets
from tests.sparse.networks import SMALL_CNN_INPUT, State, examples, fc2, planned, seeded, small_cnn, state_of

pytestmark = pytest.mark.skipif(not available(), reason="the native kernels are not built")

OPTIMISERS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.75},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    {"proximal": 0.5, "weight_decay": 1e-2},
]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) + 1e-12))


def torch_epoch(
    module: nn.Module, state: State, x: np.ndarray, y: np.ndarray, batch_size: int, lr: float,
    proximal: float = 0.0, **sgd: Any,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
    """Masked training as anyone would write it with ``torch.optim.SGD``."""
    layout = ParameterLayout.of(module)
    w, mask, buffers = state
    layout.write(module, w, buffers)
    module.train()
    parameters = list(module.parameters())
    anchor = [p.detach().clone() for p in parameters]
    keep = [torch.from_numpy(m.copy()) for m in layout.split(mask).values()]
    optimiser = torch.optim.SGD(parameters, lr=lr, **sgd)
    total = 0.0
    for begin in range(0, len(x), batch_size):
        xs, ys = torch.from_numpy(x[begin : begin + batch_size]), torch.from_numpy(y[begin : begin + batch_size])
        loss = F.cross_entropy(module(xs), ys)
        total += loss.item() * len(xs)
        drift = sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchor, strict=True))
        optimiser.zero_grad()
        (loss + proximal / 2 * drift).backward()  # type: ignore[no-untyped-call]
        for p, k in zip(parameters, keep, strict=True):
            assert p.grad is not None
            p.grad.mul_(k)
        optimiser.step()
        for p, k in zip(parameters, keep, strict=True):
            p.data.mul_(k)
    return *layout.read(module), total / len(x)


@pytest.mark.parametrize("settings_", OPTIMISERS, ids=str)
@pytest.mark.parametrize("backends", ["sparse", "dense"])
def test_an_epoch_of_2fc_equals_masked_torch(settings_: dict[str, Any], backends: str) -> None:
    module = seeded(fc2)
    state = state_of(module, 0.2)
    x, y = examples((1, 28, 28), 200, 10)
    w, _, loss = torch_epoch(module, state, x, y, 32, 0.05, **settings_)
    trainer = Trainer(planned(module, (1, 28, 28)), *state, lr=0.05, batch_size=32, backends=backends, **settings_)  # type: ignore[arg-type]
    assert trainer.epoch(x, y) == pytest.approx(loss, rel=1e-5)
    assert relative(trainer.weights(), w) < 1e-5


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("backends", ["sparse", "dense"])
@pytest.mark.parametrize("batch_size", [1, 6, 8, 19, 64])
def test_every_layer_equals_its_twin(target: str, backends: str, batch_size: int) -> None:
    module = seeded(small_cnn)
    state = state_of(module, 0.6)
    x, y = examples(SMALL_CNN_INPUT, 2 * batch_size + 3, 4)
    if batch_size == 1:  # batch norm over features needs two examples
        layers = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(910, 4)
        module = nn.Sequential(*layers)
        state = state_of(module, 0.6)
    plan = planned(module, SMALL_CNN_INPUT)
    w64, b64 = state[0].astype(np.float64), state[2].astype(np.float64)
    settings_: dict[str, Any] = {"lr": 0.02, "momentum": 0.75, "batch_size": batch_size}
    w, buffers, loss = reference.train_epoch(plan, w64, state[1], b64, x.astype(np.float64), y, **settings_)
    trainer = Trainer(plan, *state, backends=backends, target=target, **settings_)  # type: ignore[arg-type]
    assert trainer.epoch(x, y) == pytest.approx(loss, rel=1e-4)
    assert relative(trainer.weights(), w) < 1e-4
    assert relative(trainer.buffers(), buffers) < 1e-4


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_chains_equal_their_twin(data: st.DataObject) -> None:
    """Random depth, widths, kernels, strides, densities and backends; squared error, whose twin has no branches."""
    draw = data.draw
    channels, height, width = draw(st.integers(1, 4)), draw(st.integers(3, 12)), draw(st.integers(3, 18))
    shape = (channels, height, width)
    layers: list[nn.Module] = []
    torch.manual_seed(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(0, 3))):
        out, k = draw(st.integers(1, 9)), draw(st.integers(1, 3))
        s, p = draw(st.integers(1, 2)), draw(st.integers(0, 2))
        if min(height, width) + 2 * p < k:
            break
        layers.append(nn.Conv2d(channels, out, k, s, p, bias=draw(st.booleans())))
        channels, height, width = out, (height + 2 * p - k) // s + 1, (width + 2 * p - k) // s + 1
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels))
        if draw(st.booleans()) and min(height, width) >= 2:
            layers.append(nn.AvgPool2d(2, 1))
            height, width = height - 1, width - 1
    layers.append(nn.Flatten())
    features = channels * height * width
    for _ in range(draw(st.integers(0, 2))):
        out = draw(st.integers(1, 20))
        layers.append(nn.Linear(features, out))
        features = out
    module = nn.Sequential(*layers, nn.Linear(features, 3))
    plan = planned(module, shape, "squared-error")
    state = state_of(module, draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, *shape)).astype(np.float32)  # no batch of one: batch norm needs two values
    y = rng.standard_normal((12, 3)).astype(np.float32)
    backends = [draw(st.sampled_from(["sparse", "dense"])) for _ in plan.weighted]
    settings_: dict[str, Any] = {"lr": 0.01, "momentum": 0.5, "batch_size": draw(st.integers(2, 9))}
    w, buffers, loss = reference.train_epoch(
        plan, state[0].astype(np.float64), state[1], state[2].astype(np.float64), x.astype(np.float64), y, **settings_
    )
    trainer = Trainer(plan, *state, backends=backends, **settings_)  # type: ignore[arg-type]
    assert trainer.epoch(x, y) == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert relative(trainer.weights(), w) < 2e-3
    np.testing.assert_allclose(trainer.buffers(), buffers, rtol=1e-3, atol=1e-4)


def test_prediction_uses_running_statistics_and_no_dropout() -> None:
    module = seeded(lambda: small_cnn(dropout=0.5))
    w, mask, buffers = state_of(module, 0.5)
    buffers = buffers + np.random.default_rng(0).random(buffers.size).astype(np.float32)
    ParameterLayout.of(module).write(module, w, buffers)
    x, _ = examples(SMALL_CNN_INPUT, 21, 4)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    for backends in ("sparse", "dense"):
        actual = predict(planned(module, SMALL_CNN_INPUT), w, mask, buffers, x, backends=backends, batch_size=8)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("backends", ["sparse", "dense"])
def test_pruned_positions_stay_exactly_zero_whatever_is_given(backends: str) -> None:
    """Also where the caller's vector is not zero there, and with every term of the update switched on."""
    module = seeded(small_cnn)
    w, mask, buffers = state_of(module, 0.3)
    w = w + np.float32(1.0)
    plan = planned(module, SMALL_CNN_INPUT)
    trainer = Trainer(
        plan, w, mask, buffers, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, proximal=0.1, batch_size=8,
        backends=backends,  # type: ignore[arg-type]
    )  # fmt: skip
    x, y = examples(SMALL_CNN_INPUT, 40, 4)
    for _ in range(3):
        trainer.epoch(x, y)
    weights = trainer.weights()
    assert not weights[~mask].any() and weights[mask].all()


def test_pruned_positions_stay_zero_even_when_training_diverges() -> None:
    module = seeded(fc2)
    w, mask, buffers = state_of(module, 0.5)
    x, y = examples((1, 28, 28), 64, 10)
    for backends in ("sparse", "dense"):
        trainer = Trainer(planned(module, (1, 28, 28)), w, mask, buffers, lr=1e20, batch_size=32, backends=backends)
        for _ in range(3):
            trainer.epoch(x, y)
        weights = trainer.weights()
        assert not np.isfinite(weights).all()
        assert (weights[~mask] == 0).all()


def test_an_empty_mask_trains_nothing_and_predicts_zero() -> None:
    module = seeded(small_cnn)
    w, mask, buffers = state_of(module, 0.0)
    plan = planned(module, SMALL_CNN_INPUT)
    x, y = examples(SMALL_CNN_INPUT, 9, 4)
    trainer = Trainer(plan, w, mask, buffers, lr=0.1, batch_size=4, backends="sparse")
    assert trainer.epoch(x[:8], y[:8]) == pytest.approx(np.log(4), rel=1e-6)
    assert not trainer.weights().any()
    assert not predict(plan, w, mask, buffers, x, backends="sparse").any()


def test_an_order_visits_the_rows_it_names_without_a_copy() -> None:
    module = seeded(fc2)
    state = state_of(module, 0.1)
    plan = planned(module, (1, 28, 28))
    x, y = examples((1, 28, 28), 100, 10)
    order = np.random.default_rng(3).permutation(100)[:75]
    by_order = Trainer(plan, *state, lr=0.05, batch_size=32, backends="sparse")
    copied = Trainer(plan, *state, lr=0.05, batch_size=32, backends="sparse")
    assert by_order.epoch(x, y, order) == copied.epoch(x[order], y[order])
    np.testing.assert_array_equal(by_order.weights(), copied.weights())


def test_the_same_arguments_give_the_same_bits_on_any_thread() -> None:
    module = seeded(lambda: small_cnn(dropout=0.2))
    state = state_of(module, 0.4)
    plan = planned(module, SMALL_CNN_INPUT)
    x, y = examples(SMALL_CNN_INPUT, 50, 4)

    def run() -> bytes:
        trainer = Trainer(plan, *state, lr=0.05, momentum=0.5, batch_size=16, seed=7, backends="sparse")
        trainer.epoch(x, y)
        trainer.epoch(x, y)
        return trainer.weights().tobytes() + trainer.buffers().tobytes()

    alone = run()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(run())) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [alone] * 6


def test_dropout_drops_about_the_rate_and_keeps_the_mean() -> None:
    """One linear layer after dropout with all weights 1: its mean output in a step shows the mask's mean."""
    module = nn.Sequential(nn.Linear(400, 400), nn.Dropout(0.3), nn.Linear(400, 1))
    plan = planned(module, (400,), "squared-error")
    w = np.zeros(plan.n, np.float32)
    w[plan.layers[0].bias : plan.layers[0].bias + 400] = 1.0
    w[plan.layers[2].weight : plan.layers[2].weight + 400] = 1 / 400
    x, y = np.zeros((512, 400), np.float32), np.zeros((512, 1), np.float32)

    def loss(seed: int) -> float:
        trainer = Trainer(plan, w, np.ones(plan.n, bool), np.zeros(0, np.float32), lr=0.0, batch_size=64, seed=seed)
        return trainer.epoch(x, y)

    # E[mean^2] = 1 + var / 400, where one kept entry is 1 / 0.7 with probability 0.7.
    assert loss(0) == pytest.approx(1 + (0.3 / 0.7) / 400, rel=0.01)
    assert loss(0) == loss(0) != loss(1)


def test_momentum_lasts_between_epochs_of_one_trainer() -> None:
    module = seeded(fc2)
    state = state_of(module, 0.2)
    plan = planned(module, (1, 28, 28))
    x, y = examples((1, 28, 28), 64, 10)
    once = Trainer(plan, *state, lr=0.05, momentum=0.9, batch_size=32, backends="sparse")
    once.epoch(np.concatenate([x, x]), np.concatenate([y, y]))
    twice = Trainer(plan, *state, lr=0.05, momentum=0.9, batch_size=32, backends="sparse")
    twice.epoch(x, y)
    twice.epoch(x, y)
    np.testing.assert_array_equal(once.weights(), twice.weights())


def bad(**changes: Any) -> Trainer:
    module = nn.Linear(3, 2)
    plan = planned(module, (3,))
    arguments: dict[str, Any] = {
        "w": np.zeros(8, np.float32), "mask": np.ones(8, bool), "buffers": np.zeros(0, np.float32),
        "lr": 0.1, "batch_size": 4, "backends": "sparse", **changes,
    }  # fmt: skip
    return Trainer(plan, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": np.zeros(7, np.float32)}, r"w has the shape \(7,\), but the network needs \(8,\)"),
        ({"w": np.zeros(8)}, "w must be a C-contiguous float32 array, not a float64 array"),
        ({"w": np.zeros(16, np.float32)[::2]}, "w must be a C-contiguous"),
        ({"mask": np.ones(8, np.uint8)}, "mask must be a C-contiguous bool array, not a uint8 array"),
        ({"buffers": np.zeros(1, np.float32)}, r"buffers has the shape \(1,\)"),
        ({"lr": -1.0}, "lr = -1.0 must be at least 0"),
        ({"lr": float("nan")}, "lr = nan must be"),
        ({"momentum": 1.0}, "momentum = 1.0 must be at least 0 and below 1"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"proximal": float("inf")}, "proximal = inf"),
        ({"batch_size": 0}, "batch_size = 0 must be a whole number from 1"),
        ({"batch_size": 2.0}, "batch_size = 2.0 must be a whole number"),
        ({"seed": -1}, "seed = -1 must be a whole number from 0"),
        ({"backends": ["sparse", "dense"]}, "for each of 1 layers"),
        ({"backends": ["fast"]}, "must be 'sparse' or 'dense'"),
        ({"target": "mmx"}, "no 'mmx' kernels"),
    ],
)
def test_a_trainer_says_what_is_wrong_with_an_argument(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        bad(**changes)


@pytest.mark.parametrize(
    ("x", "y", "order", "message"),
    [
        (np.zeros((4, 2), np.float32), np.zeros(4, np.int64), None, r"x of shape \(4, 2\) does not hold examples"),
        (np.zeros((4, 3)), np.zeros(4, np.int64), None, "x must be a C-contiguous float32 array"),
        (np.zeros((3, 4), np.float32).T, np.zeros(4, np.int64), None, "x must be a C-contiguous"),
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), None, "x has no examples"),
        (np.zeros((4, 3), np.float32), np.zeros(3, np.int64), None, r"y has the shape \(3,\), but x has 4"),
        (np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0]), None, "y has label 2, but the network has"),
        (np.zeros((4, 3), np.float32), np.array([0, -1, 1, 0]), None, "y has label -1"),
        (np.zeros((4, 3), np.float32), np.zeros(4, np.int64), np.array([4]), "order has row 4, but x has rows 0 to 3"),
        (np.zeros((4, 3), np.float32), np.zeros(4, np.int64), np.array([-1]), "order has row -1"),
        (np.zeros((4, 3), np.float32), np.zeros(4, np.int64), np.zeros(0, np.int64), "non-empty list"),
        (np.zeros((4, 3), np.float32), np.zeros(4, np.int64), np.zeros(1, np.int32), "order must be a C-contiguous"),
    ],
)
def test_an_epoch_says_what_is_wrong_with_its_data(x: Any, y: Any, order: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        bad().epoch(x, y, order)


def test_batch_norm_refuses_a_single_value_per_channel_as_torch_does() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    state = state_of(module, 1.0)
    trainer = Trainer(planned(module, (3,)), *state, lr=0.1, batch_size=4, backends="sparse")
    with pytest.raises(ArgumentError, match="more than one value per channel"):
        trainer.epoch(np.zeros((5, 3), np.float32), np.zeros(5, np.int64))
