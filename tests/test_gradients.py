"""Gradients, the proximal term and a second training in a round, against torch itself and numbers by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsparsify.data import Dataset
from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout
from fedsparsify.randomness import derive
from fedsparsify.sparse import Calibration, LayerTimes, available
from fedsparsify.state import Floats, ModelState
from fedsparsify.tune import GradientOf, Tuner, TuneSettings, epochs_of

native_only = pytest.mark.skipif(not available(), reason="the native kernels are not built")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=native_only)])
kinds = pytest.mark.parametrize("of", ["plain", "squared", "curvature"])

# At a tenth of the parameters: 0.1 + 0.1 * 1.9 = 0.29 for linear layers, 0.2 + 0.1 * 3 = 0.5 for convolutions.
CALIBRATION = Calibration(
    "test", (0.0, 1.0), LayerTimes(10.0, 1.0, (0.1, 2.0)), LayerTimes(10.0, 1.0, (0.2, 3.2)), torch_step=0.01
)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def with_relu() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))


def with_batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def classes(n: int = 13, shape: tuple[int, ...] = (3,)) -> Dataset:
    rng = np.random.default_rng(3)
    return Dataset(rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 3, n))


def settings(backend: str = "torch", **options: Any) -> TuneSettings:
    return TuneSettings(**{"lr": 0.1, "epochs": 2, "batch_size": 5, **options}, backend=backend, device="cpu")


def tuner_for(module: nn.Module, data: Dataset, s: TuneSettings | None = None) -> Tuner:
    return Tuner(copy.deepcopy(module), s or settings(), data, CALIBRATION)


def start_of(module: nn.Module, density: float = 1.0) -> ModelState:
    w, buffers = ParameterLayout.of(module).read(module)
    mask = np.random.default_rng(5).random(w.size) < density
    return ModelState(np.where(mask, w, np.float32(0)), mask, buffers)


def gradient(tuner: Tuner, model: ModelState, data: Dataset, of: GradientOf = "plain", **options: Any) -> Floats:
    return tuner.gradient(model, data, **{"seed": 1, "round": 2, "client": 3, **options}, of=of)


def batches_of(data: Dataset, size: int = 5) -> list[Dataset]:
    """The batches that the calls above go through."""
    ((part, order),) = epochs_of(data, 1, derive(1, "gradient", round=2, client=3))
    return [part.take(order[at : at + size]) for at in range(0, len(order), size)]


def loss_at(module: nn.Module, data: Dataset) -> Callable[[Tensor], Tensor]:
    """The mean loss on some data as a function of the flat parameters."""
    layout = ParameterLayout.of(module)
    x, y = torch.from_numpy(data.x).double(), torch.from_numpy(data.y)

    def loss(flat: Tensor) -> Tensor:
        tensors = {slot.name: flat[slot.span].view(slot.shape) for slot in layout.parameters}
        outputs = functional_call(module, tensors, (x,))
        return F.mse_loss(outputs, y.double()) if y.is_floating_point() else F.cross_entropy(outputs, y)

    return loss


def slope(module: nn.Module, model: ModelState, data: Dataset) -> np.ndarray[Any, np.dtype[np.float64]]:
    flat = torch.from_numpy(model.w).double().requires_grad_()
    (by_torch,) = torch.autograd.grad(loss_at(module, data)(flat), flat)
    return np.asarray(by_torch.numpy(), np.float64)


def close(actual: Floats, expected: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("density", [1.0, 0.4], ids=["dense", "masked"])
def test_the_gradient_over_all_data_is_that_of_the_mean_loss_at_pruned_positions_too(density: float) -> None:
    # 13 examples in batches of 5, 5 and 3: the last one counts for less.
    module, data = small(), classes()
    model = start_of(module, density)
    expected = slope(module, model, data)
    close(gradient(tuner_for(module, data), model, data), expected)
    assert density == 1 or np.abs(expected[~model.mask]).max() > 0.01


def test_some_batches_are_the_first_ones_of_an_epoch_in_random_order() -> None:
    module, data = small(), classes()
    model, (first, second, _) = start_of(module), batches_of(data)
    tuner = tuner_for(module, data)
    close(gradient(tuner, model, data, batches=1), slope(module, model, first))
    both = (slope(module, model, first) + slope(module, model, second)) / 2
    close(gradient(tuner, model, data, batches=2), both)
    everything = gradient(tuner, model, data)
    for batches in (3, 99):
        assert gradient(tuner, model, data, batches=batches).tobytes() == everything.tobytes()


def test_squared_is_the_mean_of_the_batches_squares_not_the_square_of_the_mean() -> None:
    module, data = small(), classes()
    model, parts = start_of(module, 0.4), batches_of(data)
    expected = sum(len(part) * np.square(slope(module, model, part)) for part in parts) / len(data)
    actual = gradient(tuner_for(module, data), model, data, "squared")
    close(actual, np.asarray(expected))
    assert (actual > np.square(slope(module, model, data)) + 1e-7).any()


@pytest.mark.parametrize("density", [1.0, 0.4], ids=["dense", "masked"])
@pytest.mark.parametrize("make", [small, with_relu], ids=["tanh", "relu"])
def test_curvature_is_the_mean_over_batches_of_the_hessian_times_the_gradient(
    make: Callable[[], nn.Module], density: float
) -> None:
    module, data = make(), classes()
    model, total = start_of(module, density), np.zeros(ParameterLayout.of(module).n)
    for part in batches_of(data):
        flat = torch.from_numpy(model.w).double()
        hessian = torch.autograd.functional.hessian(loss_at(module, part), flat)  # type: ignore[no-untyped-call]
        total += len(part) * (hessian.numpy() @ slope(module, model, part))
    close(gradient(tuner_for(module, data), model, data, "curvature"), total / len(data))


def test_all_three_by_hand_for_one_parameter() -> None:
    # Loss (w x)^2 at w = 3 with x = 1 and 2: gradients 2 w x^2 = 6 and 24, second derivatives 2 and 8.
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    data = Dataset(np.array([[1], [2]], np.float32), np.zeros((2, 1), np.float32))
    model = ModelState(np.array([3], np.float32), np.ones(1, np.bool_), np.zeros(0, np.float32))
    tuner = tuner_for(module, data, settings(batch_size=1))
    assert gradient(tuner, model, data).tolist() == [15]  # (6 + 24) / 2
    assert gradient(tuner, model, data, "squared").tolist() == [306]  # (36 + 576) / 2
    assert gradient(tuner, model, data, "curvature").tolist() == [102]  # (2 * 6 + 8 * 24) / 2
    whole = tuner_for(module, data, settings(batch_size=2))
    assert gradient(whole, model, data, "squared").tolist() == [225]  # 15^2
    assert gradient(whole, model, data, "curvature").tolist() == [75]  # 5 * 15


@kinds
def test_a_parameter_that_the_loss_does_not_reach_has_gradient_0(of: GradientOf) -> None:
    class Idle(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 3))
            self.unused = nn.Parameter(torch.ones(2))

    module, data = Idle(), classes()
    unused = ParameterLayout.of(module).split(np.arange(14))["unused"]
    actual = gradient(tuner_for(module, data), start_of(module), data, of)
    assert not actual[unused].any() and actual.any()


@kinds
def test_the_same_arguments_give_the_same_bits_whatever_came_before(of: GradientOf) -> None:
    module, data = with_batch_norm(), classes()
    model, used = start_of(module, 0.5), tuner_for(module, data)
    fresh = gradient(tuner_for(module, data), model, data, of, batches=2)
    used.tune(model, data, seed=1, round=2, client=3)
    gradient(used, start_of(with_batch_norm()), data, "squared")
    torch.rand(7)
    assert gradient(used, model, data, of, batches=2).tobytes() == fresh.tobytes()
    assert gradient(used, model, data, of, batches=2).tobytes() == fresh.tobytes()


@pytest.mark.parametrize("other", [{"seed": 2}, {"round": 3}, {"client": 4}], ids=["seed", "round", "client"])
def test_seeds_rounds_and_clients_have_batches_of_their_own(other: dict[str, Any]) -> None:
    module, data = small(), classes()
    tuner, model = tuner_for(module, data), start_of(module)
    one = gradient(tuner, model, data, batches=1)
    another = gradient(tuner, model, data, batches=1, **other)
    assert np.abs(one - another).max() > 1e-3


@kinds
def test_a_gradient_moves_nothing(of: GradientOf) -> None:
    module, data = with_batch_norm(), classes()
    model, tuner = start_of(module, 0.5), tuner_for(module, data)
    before = [array.tobytes() for array in (model.w, model.mask, model.buffers, data.x, data.y)]
    judged, generator = tuner.evaluate(model, data), torch.get_rng_state()
    trained = tuner.tune(model, data, seed=1, round=2, client=3).model
    gradient(tuner, model, data, of)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [array.tobytes() for array in (model.w, model.mask, model.buffers, data.x, data.y)] == before
    assert tuner.evaluate(model, data) == judged
    again = tuner.tune(model, data, seed=1, round=2, client=3).model
    assert again.w.tobytes() == trained.w.tobytes() and again.buffers.tobytes() == trained.buffers.tobytes()


def test_batch_norm_takes_a_batchs_own_statistics() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    data = classes()
    model = start_of(module)
    other = ModelState(model.w, model.mask, model.buffers + np.float32(5))
    tuner = tuner_for(module, data)
    assert gradient(tuner, model, data).tobytes() == gradient(tuner, other, data).tobytes()
    without = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    close(gradient(tuner, model, data, batches=1), slope(without, model, batches_of(data)[0]))


@kinds
@pytest.mark.parametrize("backend", [pytest.param("native", marks=native_only)])
def test_gradients_are_torchs_whoever_trains(of: GradientOf, backend: str) -> None:
    module, data = with_relu(), classes()
    model = start_of(module, 0.5)
    by_native = gradient(tuner_for(module, data, settings(backend)), model, data, of)
    assert by_native.tobytes() == gradient(tuner_for(module, data), model, data, of).tobytes()


# The proximal term


@backends
def test_the_proximal_term_by_hand(backend: str) -> None:
    # Loss w^2 at w = 1: 1 - 0.1 * 2 = 0.8, where nothing pulls yet; then 0.8 - 0.1 (1.6 + 0.5 (0.8 - 1)) = 0.65.
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    data = Dataset(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))
    model = ModelState(np.array([1], np.float32), np.ones(1, np.bool_), np.zeros(0, np.float32))
    tuner = tuner_for(module, data, settings(backend))
    expected = {(1, 0.5): 0.8, (2, 0.0): 0.64, (2, 0.5): 0.65}
    for (epochs, mu), w in expected.items():
        tuned = tuner.tune(model, data, seed=1, round=1, client=0, changes={"epochs": epochs, "proximal": mu})
        assert tuned.model.w.tolist() == pytest.approx([w], rel=1e-6)
        assert tuned.backend == backend


@native_only
@pytest.mark.parametrize("density", [1.0, 0.4], ids=["dense", "masked"])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.75}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}],
    ids=["plain", "momentum", "all"],
)
def test_the_proximal_term_is_the_same_by_either_backend(options: dict[str, Any], density: float) -> None:
    module, data = with_relu(), classes()
    model = start_of(module, density)
    by, free = {}, {}
    for backend in ("torch", "native"):
        tuner = tuner_for(module, data, settings(backend, epochs=4, **options))
        tuned = tuner.tune(model, data, seed=1, round=1, client=0, changes={"proximal": 2.0})
        by[backend] = tuned.model.w
        free[backend] = tuner.tune(model, data, seed=1, round=1, client=0).model.w
        assert tuned.backend == backend and not tuned.model.w[~model.mask].any()
    np.testing.assert_allclose(by["native"], by["torch"], rtol=1e-5, atol=2e-6)
    # It is felt: the model stays nearer to where it started.
    assert np.linalg.norm(by["torch"] - model.w) < 0.95 * np.linalg.norm(free["torch"] - model.w)


@pytest.mark.parametrize("mu", [-1.0, float("inf"), float("nan")])
def test_a_proximal_term_out_of_its_range_is_refused(mu: float) -> None:
    module, data = small(), classes()
    with pytest.raises(ArgumentError, match="proximal"):
        tuner_for(module, data).tune(start_of(module), data, seed=1, round=1, client=0, changes={"proximal": mu})


# Training again in a round


@backends
def test_changes_hold_for_one_training_only(backend: str) -> None:
    module, data = with_relu(), classes()
    model, tuner = start_of(module), tuner_for(module, data, settings(backend))
    where: dict[str, Any] = {"seed": 1, "round": 1, "client": 0}
    before = tuner.tune(model, data, **where).model.w
    changed = tuner.tune(model, data, **where, changes={"epochs": 1, "momentum": 0.5}).model.w
    as_configured = tuner_for(module, data, settings(backend, epochs=1, momentum=0.5)).tune(model, data, **where)
    assert changed.tobytes() == as_configured.model.w.tobytes() != before.tobytes()
    assert tuner.tune(model, data, **where).model.w.tobytes() == before.tobytes()


@backends
def test_a_second_training_in_a_round_goes_on_in_another_order(backend: str) -> None:
    module, data = with_relu(), classes()
    model, tuner = start_of(module), tuner_for(module, data, settings(backend))
    trained = [tuner.tune(model, data, seed=1, round=1, client=0, again=k).model.w for k in (0, 1, 2, 1, 0)]
    assert len({w.tobytes() for w in trained}) == 3
    assert trained[3].tobytes() == trained[1].tobytes() and trained[4].tobytes() == trained[0].tobytes()


def test_a_second_training_draws_dropout_anew() -> None:
    # One example: there is no order to differ in.
    module, data = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 3)), classes(1)
    model, tuner = start_of(module), tuner_for(module, data)
    first, second = (tuner.tune(model, data, seed=1, round=1, client=0, again=k).model.w for k in (0, 1))
    assert first.tobytes() != second.tobytes()


# What a parameter costs


@native_only
def test_a_convolutions_parameters_cost_as_many_times_as_there_are_pixels() -> None:
    data = classes(shape=(1, 4, 4))
    seconds = tuner_for(convolutional(), data, settings("auto")).layer_seconds()
    # Per 1000 multiply-adds, at a tenth, for 5 examples: 0.5 ns * 10 * 16 pixels * 5 and 0.29 ns * 10 * 1 * 5.
    conv, linear = 400e-12, 14.5e-12
    # Convolution and its bias, scale and shift, linear layer and its bias: vectors cost what the cheapest matrix does.
    assert seconds == pytest.approx([conv, linear, linear, linear, linear, linear], rel=1e-9)
    larger = tuner_for(convolutional(), data, settings("auto", batch_size=10)).layer_seconds()
    assert larger == pytest.approx([2 * s for s in seconds])


@pytest.mark.parametrize("backend", ["torch", "auto", pytest.param("native", marks=native_only)])
@pytest.mark.parametrize("make", [with_relu, with_batch_norm], ids=["relu", "batch norm"])
def test_every_tensor_has_a_finite_positive_cost(make: Callable[[], nn.Module], backend: str) -> None:
    module, data = make(), classes()
    seconds = tuner_for(module, data, settings(backend)).layer_seconds()
    assert len(seconds) == len(ParameterLayout.of(module).parameters)
    assert all(np.isfinite(s) and s > 0 for s in seconds)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_nothing_is_known_of_a_network_that_the_native_kernels_do_not_cover(backend: str) -> None:
    module, data = small(), classes()
    assert tuner_for(module, data, settings(backend)).layer_seconds() == [1.0] * 4
    assert tuner_for(with_relu(), data, settings("torch")).layer_seconds() == [1.0] * 4
