"""Local training: SGD as PyTorch defines it, on survivors only, the same bits whoever trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparsify.data import Dataset
from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout
from fedsparsify.randomness import derive
from fedsparsify.sparse import Calibration, LayerTimes, available
from fedsparsify.state import Floats, ModelState
from fedsparsify.tune import Evaluation, Tuned, Tuner, TuneSettings, epochs_of

OPTIMISERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.75},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"weight_decay": 0.05},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-2},
}
optimisers = pytest.mark.parametrize("options", OPTIMISERS.values(), ids=OPTIMISERS)

native_only = pytest.mark.skipif(not available(), reason="the native kernels are not built")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=native_only)])

# Not this machine's figures: native kernels always win, sparse ones below about half of the parameters.
NATIVE_WINS = LayerTimes(torch=10.0, dense=1.0, sparse=(0.1, 2.0))
TORCH_WINS = LayerTimes(torch=0.01, dense=1.0, sparse=(0.1, 2.0))


def calibration(times: LayerTimes = NATIVE_WINS) -> Calibration:
    return Calibration("test", (0.0, 1.0), times, times, torch_step=0.01)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def f32(values: object) -> Floats:
    return np.array(values, np.float32)


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def with_batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 3))


def with_dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))


def classes(n: int = 21, shape: tuple[int, ...] = (6,)) -> Dataset:
    rng = np.random.default_rng(3)
    return Dataset(rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 3, n))


def regression(n: int = 21, d: int = 2) -> Dataset:
    rng = np.random.default_rng(4)
    return Dataset(rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32))


def settings(backend: str = "torch", **options: Any) -> TuneSettings:
    defaults: dict[str, Any] = {"lr": 0.1, "epochs": 3, "batch_size": 5}
    return TuneSettings(**{**defaults, **options}, backend=backend, device="cpu")


def tuner_for(module: nn.Module, s: TuneSettings, like: Dataset) -> Tuner:
    return Tuner(copy.deepcopy(module), s, like, calibration())


def start_of(module: nn.Module, density: float = 1.0) -> ModelState:
    """The module's own weights, all of them or a random part."""
    w, buffers = ParameterLayout.of(module).read(module)
    mask = np.random.default_rng(5).random(w.size) < density
    return ModelState(np.where(mask, w, np.float32(0)), mask, buffers)


def reference(
    module: nn.Module, start: ModelState, data: Dataset, s: TuneSettings, client: int = 0
) -> tuple[Floats, Floats, float]:
    """The same training by ``torch.optim.SGD``, with gradients multiplied by the mask after every backward pass."""
    module = copy.deepcopy(module)
    layout = ParameterLayout.of(module)
    layout.write(module, start.w, start.buffers)
    masks = [torch.from_numpy(m) for m in layout.split(start.mask).values()]
    optimiser = torch.optim.SGD(
        module.parameters(), s.lr, momentum=s.momentum, nesterov=s.nesterov, weight_decay=s.weight_decay
    )
    loss_of = nn.CrossEntropyLoss() if data.num_classes else nn.MSELoss()
    module.train()
    for epoch, order in epochs_of(data, s.epochs, derive(1, "batches", round=2, client=client)):
        losses = []
        for at in range(0, len(order), s.batch_size):
            batch = epoch.take(order[at : at + s.batch_size])
            optimiser.zero_grad()
            loss = loss_of(module(torch.from_numpy(batch.x)), torch.from_numpy(batch.y))
            loss.backward()
            for parameter, mask in zip(module.parameters(), masks, strict=True):
                assert parameter.grad is not None
                parameter.grad *= mask
            optimiser.step()
            losses += [loss.item()] * len(batch)
    return (*layout.read(module), float(np.mean(losses)))


def tune(
    module: nn.Module, start: ModelState, data: Dataset, s: TuneSettings, round: int = 2, client: int = 0, seed: int = 1
) -> Tuned:
    tuned = tuner_for(module, s, data).tune(start, data, seed=seed, round=round, client=client)
    assert tuned.backend == s.backend
    return tuned


@backends
@optimisers
@pytest.mark.parametrize("density", [1.0, 0.4], ids=["dense", "masked"])
def test_training_is_that_of_torch_sgd(options: dict[str, Any], density: float, backend: str) -> None:
    module, data, s = dense(), classes(), settings(backend, **options)
    start = start_of(module, density)
    tuned = tune(module, start, data, s)
    w, _, expected_loss = reference(module, start, data, s)
    assert np.abs(w - start.w).max() > 0.05
    np.testing.assert_allclose(tuned.model.w, w, rtol=1e-5, atol=2e-6)
    assert tuned.loss == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_array_equal(tuned.model.mask, start.mask)
    assert tuned.model.w.dtype == np.float32


@optimisers
def test_a_pruned_parameter_is_exactly_zero_after_every_step(options: dict[str, Any]) -> None:
    module = dense()
    layout = ParameterLayout.of(module)
    start = start_of(module, 0.3)
    seen: list[Floats] = []
    module.register_forward_pre_hook(lambda module, _: seen.append(layout.read(module)[0]))
    tuned = Tuner(module, settings(**options), classes()).tune(start, classes(), seed=1, round=1, client=0)
    assert len(seen) == 3 * 5  # epochs, batches of 5 in 21 examples
    assert len({w.tobytes() for w in seen}) == len(seen)
    for w in [*seen, tuned.model.w]:
        assert not w[~start.mask].any()
        assert w[start.mask].all()


@backends
@optimisers
def test_a_pruned_parameter_is_exactly_zero_after_training(options: dict[str, Any], backend: str) -> None:
    module = with_batch_norm()
    start, data = start_of(module, 0.3), classes(shape=(1, 2, 3))
    for steps in (1, 4):
        w = tune(module, start, data.part(0, 5 * steps), settings(backend, epochs=1, **options)).model.w
        assert not w[~start.mask].any()
        assert (w != start.w)[start.mask].any()


@backends
def test_momentum_starts_anew_in_every_round(backend: str) -> None:
    module, data = dense(), classes()
    tuner = tuner_for(module, settings(backend, momentum=0.9), data)
    start = start_of(module)
    first = tuner.tune(start, data, seed=1, round=1, client=0).model
    tuner.tune(first, data, seed=1, round=2, client=0)
    assert tuner.tune(start, data, seed=1, round=1, client=0).model.w.tobytes() == first.w.tobytes()


@backends
@pytest.mark.parametrize("make", [dense, with_dropout])
def test_the_same_seed_gives_the_same_bits(make: Callable[[], nn.Module], backend: str) -> None:
    module = make()
    start = start_of(module, 0.5)
    first, second = (tune(module, start, classes(), settings(backend)) for _ in range(2))
    assert first.model.w.tobytes() == second.model.w.tobytes()
    assert first.loss == second.loss
    assert tune(module, start, classes(), settings(backend), seed=2).model.w.tobytes() != first.model.w.tobytes()


def test_what_a_worker_trained_before_changes_nothing() -> None:
    # Momentum None averages over all batches ever seen, which batch norm counts in an integer buffer.
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, momentum=None), nn.Flatten(), nn.Linear(8, 3))
    data, start, s = classes(shape=(1, 3, 3)), start_of(module), settings()
    used = tuner_for(module, s, data)
    for client in (3, 4):
        used.tune(start, data, seed=1, round=1, client=client)
    used.evaluate(start, data)
    again = used.tune(start, data, seed=1, round=2, client=0).model
    fresh = tune(module, start, data, s).model
    assert again.w.tobytes() == fresh.w.tobytes()
    assert again.buffers.tobytes() == fresh.buffers.tobytes()


def test_every_epoch_of_every_round_and_client_has_an_order_of_its_own() -> None:
    data = Dataset(np.arange(30, dtype=np.float32).reshape(30, 1), np.arange(30))
    orders = [
        tuple(order.tolist())
        for round, client in [(1, 0), (1, 1), (2, 0)]
        for _, order in epochs_of(data, 2, derive(1, "batches", round=round, client=client))
    ]
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(30)) for order in orders)


@backends
def test_rounds_and_clients_train_in_different_orders(backend: str) -> None:
    module, data = dense(), classes()
    start, places = start_of(module), [(1, 0), (1, 1), (2, 0)]
    tuned = {tune(module, start, data, settings(backend), round=r, client=k).model.w.tobytes() for r, k in places}
    assert len(tuned) == 3


def test_examples_keep_their_labels_and_are_augmented_anew_in_every_epoch() -> None:
    def augment(x: Floats, rng: np.random.Generator) -> Floats:
        return x + rng.random(x.shape, np.float32)

    data = Dataset(np.arange(10, dtype=np.float32).reshape(10, 1), np.arange(10), augment=augment)
    inputs = []
    for epoch, order in epochs_of(data, 2, np.random.default_rng(0)):
        visited = epoch.take(order)
        assert sorted(visited.y) == list(range(10))
        np.testing.assert_array_equal(np.floor(visited.x[:, 0]), visited.y)
        inputs.append(visited.x[np.argsort(visited.y)])
    assert not np.array_equal(inputs[0], inputs[1])
    assert data.x[:, 0].tolist() == list(range(10))


@backends
def test_dropout_is_drawn_for_each_round_and_client_and_leaves_torchs_generator_alone(backend: str) -> None:
    module = with_dropout()
    start, one = start_of(module), classes(1)  # of one example there is one order, so only dropout can differ
    before = torch.get_rng_state()
    places = [(1, 0), (1, 1), (2, 0)]
    tuned = [tune(module, start, one, settings(backend), round=r, client=k).model.w.tobytes() for r, k in places]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(tuned)) == 3
    torch.manual_seed(99)
    assert tune(module, start, one, settings(backend), round=1, client=0).model.w.tobytes() == tuned[0]


@backends
def test_a_client_with_one_example_takes_one_step_an_epoch(backend: str) -> None:
    module, s = dense(), settings(backend, epochs=2, batch_size=32)
    start, one = start_of(module), classes(1)
    w, _, loss = reference(module, start, one, s)
    tuned = tune(module, start, one, s)
    np.testing.assert_allclose(tuned.model.w, w, rtol=1e-5, atol=1e-6)
    assert tuned.loss == pytest.approx(loss, rel=1e-5)
    assert not np.array_equal(tuned.model.w, start.w)


@backends
def test_batch_norm_statistics_start_from_the_broadcast_and_come_back(backend: str) -> None:
    module, s = with_batch_norm(), settings(backend)
    data = classes(shape=(1, 2, 3))
    start = start_of(module, 0.7)
    start = ModelState(start.w, start.mask, start.buffers + np.float32(2))
    tuned = tune(module, start, data, s)
    w, buffers, _ = reference(module, start, data, s)
    np.testing.assert_allclose(tuned.model.buffers, buffers, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(tuned.model.w, w, rtol=1e-4, atol=1e-5)
    assert np.abs(tuned.model.buffers - start.buffers).min() > 0.1


@backends
def test_evaluation_uses_the_models_statistics_and_moves_nothing(backend: str) -> None:
    module = with_batch_norm()
    data, start = classes(shape=(1, 2, 3)), start_of(module)
    tuner = tuner_for(module, settings(backend), data)
    shifted = ModelState(start.w, start.mask, start.buffers + np.float32(2))
    first = tuner.evaluate(start, data)
    assert tuner.evaluate(shifted, data) != first
    assert tuner.evaluate(start, data) == first


@backends
def test_dropout_is_off_in_evaluation(backend: str) -> None:
    module, data = with_dropout(), classes()
    tuner, model = tuner_for(module, settings(backend), data), start_of(module)
    assert tuner.evaluate(model, data) == tuner.evaluate(model, data)


def test_frozen_parameters_stay_as_they_are() -> None:
    module = dense()
    weight = module.get_parameter("0.weight").requires_grad_(False)
    frozen = weight.detach().clone()
    tuner = Tuner(module, settings(weight_decay=0.1), classes())
    start = start_of(module)
    tuned = tuner.tune(start, classes(), seed=1, round=1, client=0).model
    assert tuned.w.size == 8 + 24 + 3
    assert not np.array_equal(tuned.w, start.w)
    assert torch.equal(weight, frozen)


def test_a_parameter_that_the_loss_does_not_reach_is_kept() -> None:
    module = dense()
    module.register_parameter("unused", nn.Parameter(torch.ones(4)))
    tuned = tune(module, start_of(module), classes(), settings(momentum=0.9)).model
    assert ParameterLayout.of(module).split(tuned.w)["unused"].tolist() == [1, 1, 1, 1]


def test_layers_that_share_a_parameter_train_it_once() -> None:
    module = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    module[1].weight = module[0].weight
    start, s = start_of(module, 0.6), settings()
    tuned = tune(module, start, classes(), s).model
    assert tuned.w.size == 36
    np.testing.assert_allclose(tuned.w, reference(module, start, classes(), s)[0], rtol=1e-5, atol=1e-6)


@backends
def test_the_start_is_left_as_it_is(backend: str) -> None:
    module = with_batch_norm()
    start, data = start_of(module, 0.5), classes(shape=(1, 2, 3))
    before = start.w.tobytes(), start.mask.tobytes(), start.buffers.tobytes()
    tune(module, start, data, settings(backend))
    assert (start.w.tobytes(), start.mask.tobytes(), start.buffers.tobytes()) == before


@backends
@pytest.mark.parametrize("d", [1, 2])
def test_regression_minimises_the_squared_error(d: int, backend: str) -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, d))
    data, s, start = regression(d=d), settings(backend, lr=0.05), start_of(module)
    tuned = tune(module, start, data, s)
    w, _, expected_loss = reference(module, start, data, s)
    np.testing.assert_allclose(tuned.model.w, w, rtol=1e-5, atol=2e-6)
    assert tuned.loss == pytest.approx(expected_loss, rel=1e-5)


class Fixed(nn.Module):
    """Returns its input times its one parameter, which is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def judge(data: Dataset) -> Evaluation:
    return tuner_for(Fixed(), settings(), data).evaluate(start_of(Fixed()), data)


def test_a_classifier_is_judged_by_accuracy_and_cross_entropy() -> None:
    x = np.log(f32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    total = judge(Dataset(x, np.array([0, 1, 2, 2])))
    loss = -np.log([0.7, 0.8, 0.25, 0.8]).sum()
    assert (total.examples, total.score, total.regression) == (4, 3, False)
    assert total.metrics == pytest.approx({"accuracy": 3 / 4, "loss": loss / 4})


def test_large_outputs_have_a_finite_loss() -> None:
    total = judge(Dataset(f32([[1e4, 0.0], [-1e4, 1e4]]), np.array([1, 1])))
    assert total.metrics == pytest.approx({"accuracy": 1 / 2, "loss": 1e4 / 2})


def test_a_regression_is_judged_by_mean_absolute_and_squared_error() -> None:
    total = judge(Dataset(f32([[1, 2], [3, 4], [5, 6]]), f32([[1, 0], [2, 4], [8, 6]])))
    # Absolute errors 0 2 | 1 0 | 3 0, a mean over an example's targets; squared 0 4 | 1 0 | 9 0.
    assert total == Evaluation(3, 7.0, 3.0, True)
    assert total.metrics == pytest.approx({"mae": 1.0, "loss": 7 / 3})


@backends
@pytest.mark.parametrize("data", [classes(2500), regression(2500)], ids=["classes", "regression"])
def test_evaluations_of_parts_add_up(data: Dataset, backend: str) -> None:
    module = nn.Sequential(nn.Linear(6, 3 if data.num_classes else 2))
    tuner, model = tuner_for(module, settings(backend), data), start_of(module)
    whole = tuner.evaluate(model, data)
    parts = [tuner.evaluate(model, data.part(at, at + 700)) for at in range(0, 2500, 700)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert total.examples == 2500
    assert total.regression == whole.regression
    assert total.metrics == pytest.approx(whole.metrics, rel=1e-6)


@backends
def test_a_pruned_model_is_evaluated_as_it_is(backend: str) -> None:
    module, data = dense(), classes()
    model = start_of(module, 0.3)
    total = tuner_for(module, settings(backend), data).evaluate(model, data)
    ParameterLayout.of(module).write(module, model.w)
    with torch.no_grad():
        outputs = module(torch.from_numpy(data.x))
    assert total.score == (outputs.argmax(1).numpy() == data.y).sum()
    assert total.metrics["loss"] == pytest.approx(float(nn.CrossEntropyLoss()(outputs, torch.from_numpy(data.y))))


@pytest.mark.parametrize("outputs", [1, 3])
def test_targets_of_another_shape_than_the_outputs_are_refused(outputs: int) -> None:
    # Without the check [21, 1] outputs would be broadcast against [21, 2] targets.
    module, data = nn.Linear(6, outputs), regression()
    tuner, start = tuner_for(module, settings(batch_size=7), data), start_of(module)
    with pytest.raises(ArgumentError, match=rf"outputs have shape \(7, {outputs}\), its targets \(7, 2\)"):
        tuner.tune(start, data, seed=1, round=1, client=0)
    with pytest.raises(ArgumentError, match=rf"outputs have shape \(21, {outputs}\), its targets \(21, 2\)"):
        tuner.evaluate(start, data)


def test_a_label_beyond_the_outputs_is_refused() -> None:
    module = nn.Linear(6, 2)
    with pytest.raises(ArgumentError, match=r"outputs \(2,\), but there is a label 2"):
        tuner_for(module, settings(), classes()).evaluate(start_of(module), classes())


@native_only
def test_auto_chooses_by_the_calibration() -> None:
    module, data, s = dense(), classes(), settings("auto")
    for times, backend in ((NATIVE_WINS, "native"), (TORCH_WINS, "torch")):
        tuner = Tuner(copy.deepcopy(module), s, data, calibration(times))
        assert tuner.calibration == calibration(times)
        assert tuner.uncovered == ""
        assert tuner.tune(start_of(module), data, seed=1, round=1, client=0).backend == backend


@native_only
def test_a_network_that_the_compiled_trainer_does_not_cover_trains_with_torch_and_says_why() -> None:
    module, data = nn.Sequential(nn.Linear(6, 3), nn.Tanh()), classes()
    tuner = tuner_for(module, settings("auto"), data)
    assert "Tanh" in tuner.uncovered
    assert tuner.calibration is None
    assert tuner.tune(start_of(module), data, seed=1, round=1, client=0).backend == "torch"
    with pytest.raises(
        ArgumentError, match=r'train\.backend = "native" cannot be used: .*Tanh.*; use "auto" or "torch"'
    ):
        tuner_for(module, settings("native"), data)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0}, r"train\.lr = 0 must be more than 0"),
        ({"lr": -1}, r"train\.lr = -1 must be more than 0"),
        ({"lr": float("nan")}, r"train\.lr = nan must be more than 0"),
        ({"lr": float("inf")}, r"train\.lr = inf must be more than 0 and finite"),
        ({"epochs": 0}, r"train\.epochs = 0 must be at least 1"),
        ({"batch_size": 0}, r"train\.batch_size = 0 must be at least 1"),
        ({"momentum": -0.1}, r"train\.momentum = -0\.1 must be at least 0 and less than 1"),
        ({"momentum": 1.0}, r"train\.momentum = 1\.0 must be at least 0 and less than 1"),
        ({"nesterov": True}, r"train\.nesterov = true needs train\.momentum"),
        ({"weight_decay": -1e-4}, r"train\.weight_decay = -0\.0001 must be at least 0"),
        ({"weight_decay": float("nan")}, r"train\.weight_decay = nan must be at least 0 and finite"),
        ({"backend": "cuda"}, r'train\.backend = "cuda" must be one of auto, native, torch'),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_key(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TuneSettings(**{"lr": 0.1, **wrong})


@pytest.mark.parametrize("device", ["quantum", "cuda:77", ""])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(ArgumentError, match=f'train.device = "{device}" cannot be used here'):
        Tuner(dense(), TuneSettings(lr=0.1, device=device, backend="torch"), classes())


def test_auto_chooses_a_device() -> None:
    device = Tuner(dense(), TuneSettings(lr=0.1, backend="torch"), classes()).device
    assert device.type in {"cpu", "cuda", "mps", "xpu"}
