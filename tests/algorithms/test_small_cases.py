"""Every method against numbers worked out by hand, with a client that does as it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedsparsify.algorithms import METHODS, Method, Result, build
from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.merge import majority_of
from fedsparsify.purge import make_purge
from fedsparsify.state import ClientUpdate, Floats, Mask, ModelState, ServerState

FOUR = ParameterLayout((Slot("weight", (2, 2), 0),))
# Positions: a 0-7, bias 8-9, b 10-13. At sparsity 0.5 seven are kept: the biases, and five for 2+4 : 2+2, 3 and 2.
LAYOUT = ParameterLayout((Slot("a", (2, 4), 0), Slot("bias", (2,), 8), Slot("b", (2, 2), 10)))


def f32(values: object) -> Floats:
    return np.array(values, np.float32)


def at(n: int, *positions: int) -> Mask:
    return np.isin(np.arange(n), positions)


def model(w: object, *alive: int) -> ModelState:
    """A model with these values, under a mask of these positions or of all."""
    vector = f32(w)
    whole = ModelState(vector, np.ones(len(vector), np.bool_), np.zeros(0, np.float32))
    return whole.under(at(len(vector), *alive)) if alive else whole


def alive(m: ModelState) -> list[int]:
    return np.flatnonzero(m.mask).tolist()


def counts(m: ModelState) -> list[int]:
    return [int(np.count_nonzero(m.mask[slot.span])) for slot in LAYOUT.parameters]


@dataclass
class Fake:
    """A client whose training adds ``step`` to survivors, and whose gradients are given.

    Attributes:
        slope: the gradient at a model.
        hessian: of the loss where it is quadratic, 1/2 w H w.
        asked: names of the calls with what was given, in order.
        seen: the models they were given.
    """

    step: float = 0.0
    epochs: int = 3
    slope: Callable[[Floats], Floats] = np.zeros_like
    hessian: Floats = field(default_factory=lambda: np.zeros((1, 1), np.float32))
    seconds: Sequence[float] = (1.0,)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seen: list[ModelState] = field(default_factory=list)

    def tune(self, model: ModelState, **options: Any) -> ModelState:
        self._note("tune", model, options)
        return replace_w(model, model.w + np.float32(self.step))

    def gradient(self, model: ModelState, *, batches: int | None = None, squared: bool = False) -> Floats:
        self._note("gradient", model, {"batches": batches, "squared": squared})
        return self.slope(model.w).copy()

    def curvature(self, model: ModelState, *, batches: int | None = None) -> Floats:
        self._note("curvature", model, {"batches": batches})
        product: Floats = self.hessian @ (self.hessian @ model.w)
        return product

    def random(self) -> np.random.Generator:
        return np.random.default_rng(7)

    def layer_seconds(self) -> list[float]:
        return list(self.seconds)

    def _note(self, name: str, model: ModelState, options: dict[str, Any]) -> None:
        self.asked.append((name, options))
        self.seen.append(model)


def replace_w(m: ModelState, w: Floats) -> ModelState:
    return ModelState(np.where(m.mask, w, np.float32(0)), m.mask, m.buffers)


def constant(values: object) -> Callable[[Floats], Floats]:
    return lambda w: f32(values)


def make(
    name: str, layout: ParameterLayout = LAYOUT, *, sparsity: float = 0.5, rounds: int = 8, **options: Any
) -> Method:
    """A method as the registry builds it, with a schedule of its own where it has one."""
    ingredients = {
        "schedule": lambda t: sparsity,
        "purge": make_purge(layout),
        "select": make_purge(layout, criterion=lambda scores: scores),
        "merge": majority_of,
        "layout": layout,
        "sparsity": sparsity,
        "rounds": rounds,
        "seed": 1,
    }
    return build(name, ingredients, options)


def update(client: int, t: int, result: Result, examples: int = 1) -> ClientUpdate:
    sent, vectors = (result, {}) if isinstance(result, ModelState) else result
    return ClientUpdate(client, t, sent, examples, {}, vectors)


def model_of(result: Result) -> ModelState:
    return result if isinstance(result, ModelState) else result[0]


def merged(
    method: Method, start: ModelState, t: int, *results: Result, examples: Sequence[int] = (1, 1, 1)
) -> ModelState:
    updates = [update(k, t, result, examples[k]) for k, result in enumerate(results)]
    state = method.server_update(ServerState(max(0, t - 1), start), iter(updates), t)
    assert state.round == t
    return state.model


# FedAvg and its two kin


def test_fedprox_trains_once_with_its_mu() -> None:
    local = Fake()
    make("fedprox", proximal=0.25).client_update(model([1] * 14), 1, local)
    assert local.asked == [("tune", {"proximal": 0.25})]


def test_fedavg_momentum_trains_once_with_its_gamma() -> None:
    local = Fake()
    make("fedavg-momentum", momentum=0.75).client_update(model([1] * 14), 1, local)
    assert local.asked == [("tune", {"momentum": 0.75})]


def test_fedavg_trains_as_configured() -> None:
    local = Fake()
    make("fedavg").client_update(model([1] * 14), 1, local)
    assert local.asked == [("tune", {})]


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavg-momentum"])
def test_the_dense_methods_average_by_examples_and_prune_nothing(name: str) -> None:
    # (1 * 4 + 3 * 8) / 4 = 7
    after = merged(make(name, FOUR), model([0] * 4), 1, model([4] * 4), model([8] * 4), examples=[1, 3])
    assert after.w.tolist() == [7, 7, 7, 7] and after.mask.all()
    assert make(name).schedule is None


# Pruned once, or by chance


def masks_of_rounds(method: Method, start: ModelState, rounds: int) -> list[Mask]:
    """Let one client's weights turn around in every round."""
    masks = []
    for t in range(1, rounds + 1):
        start = merged(method, start, t, replace_w(start, np.roll(start.w, 1) + np.float32(0.5)))
        masks.append(start.mask)
    return masks


@pytest.mark.parametrize(
    ("name", "options", "rounds", "pruned_in"),
    [
        ("oneshot", {}, 5, 5),
        ("oneshot", {}, 1, 1),
        ("oneshot-finetune", {}, 5, 3),  # 2.5, rounded up
        ("oneshot-finetune", {}, 4, 2),
        ("oneshot-finetune", {}, 1, 1),
        ("oneshot-finetune", {"round": 4}, 5, 4),
        ("oneshot-finetune", {"round": 1}, 5, 1),
    ],
)
def test_oneshot_prunes_once_in_its_round(name: str, options: dict[str, Any], rounds: int, pruned_in: int) -> None:
    method = make(name, rounds=rounds, **options)
    masks = masks_of_rounds(method, model(np.arange(1, 15)), rounds)
    assert [int(np.count_nonzero(mask)) for mask in masks] == [14] * (pruned_in - 1) + [7] * (rounds - pruned_in + 1)
    assert all((mask == masks[pruned_in - 1]).all() for mask in masks[pruned_in - 1 :])
    assert method.schedule is not None and method.schedule(pruned_in) == 0.5 and method.schedule(pruned_in - 1) == 0


def test_oneshot_keeps_the_largest_magnitudes_of_the_average() -> None:
    # (1 * [4, 0, -8, 2] + 3 * [0, 4, -8, 2]) / 4 = [1, 3, -8, 2]
    after = merged(
        make("oneshot", FOUR, rounds=1), model([1] * 4), 1, model([4, 0, -8, 2]), model([0, 4, -8, 2]), examples=[1, 3]
    )
    assert after.w.tolist() == [0, 3, -8, 0]


def random_masks(start: ModelState, seed: int = 1) -> list[Mask]:
    ingredients = {
        "schedule": lambda t: 0.2 * t,
        "select": make_purge(LAYOUT, criterion=lambda scores: scores),
        "layout": LAYOUT,
        "seed": seed,
    }
    return masks_of_rounds(build("random", ingredients, {}), start, 4)


def test_random_masks_are_nested_exact_and_know_nothing_of_the_weights() -> None:
    masks = random_masks(model(np.arange(1, 15)))
    # 14 - floor(14 s) for s = 0.2, 0.4, 0.6, 0.8
    assert [int(np.count_nonzero(mask)) for mask in masks] == [12, 9, 6, 3]
    assert not any((after & ~before).any() for before, after in pairwise(masks))
    others = random_masks(model(-np.arange(14, 0, -1)))
    assert all((a == b).all() for a, b in zip(masks, others, strict=True))
    assert any((a != b).any() for a, b in zip(masks, random_masks(model(np.arange(1, 15)), seed=2), strict=True))


# Masks at initialisation


def scores_of(method: Method, start: ModelState, local: Fake) -> Floats:
    result = method.client_update(start, 0, local)
    assert isinstance(result, tuple) and result[0] is start
    assert tuple(result[1]) == method.sends(0) == ("score",)
    return result[1]["score"]


def test_snip_keeps_the_largest_shares_of_gradient_times_weight() -> None:
    start, local = model([1, -2, 3, 0.5]), Fake(slope=constant([4, 1, -1, 2]))
    method = make("snip", FOUR)
    # |g w| = 4, 2, 3, 1, of 10 together
    assert scores_of(method, start, local).tolist() == pytest.approx([0.4, 0.2, 0.3, 0.1])
    assert local.asked == [("gradient", {"batches": 1, "squared": False})]
    after = merged(method, start, 0, method.client_update(start, 0, local))
    assert after.w.tolist() == [1, 0, 3, 0] and alive(after) == [0, 2]


def test_snip_of_all_clients_averages_shares_not_products() -> None:
    start = model([1, 1, 1, 1])
    method = make("snip", FOUR, sparsity=0.75, clients="all")
    # Shares: [0.9, 0.1, 0, 0] with one example, [0, 0.6, 0.4, 0] with three: 0.225, 0.475, 0.3, 0.
    loud, quiet = Fake(slope=constant([900, 100, 0, 0])), Fake(slope=constant([0, 6, 4, 0]))
    results = [method.client_update(start, 0, local) for local in (loud, quiet)]
    assert alive(merged(method, start, 0, *results, examples=[1, 3])) == [1]
    assert method.starts == "participants" and make("snip").starts == "one client"


def test_snip_of_a_flat_loss_still_has_an_exact_mask() -> None:
    start = model([1, 2, 3, 4])
    method = make("snip", FOUR)
    assert alive(merged(method, start, 0, method.client_update(start, 0, Fake()))) == [0, 1]


def test_grasp_drops_first_what_the_gradients_norm_gains_most_without() -> None:
    hessian = f32([[1, -2, 0, 0], [-2, 5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0.5]])
    start, local = model([1, 1, 1, -2]), Fake(hessian=hessian)
    # g = -1, 3, 3, -1; H g = -7, 17, 9, -0.5; w H g = -7, 17, 9, 1
    assert scores_of(make("grasp", FOUR), start, local).tolist() == [-7, 17, 9, 1]
    assert local.asked == [("curvature", {"batches": 4})]

    def after(sparsity: float) -> ModelState:
        method = make("grasp", FOUR, sparsity=sparsity)
        return merged(method, start, 0, method.client_update(start, 0, local))

    assert [alive(after(s)) for s in (0.25, 0.5, 0.75)] == [[1, 2, 3], [1, 2], [1]]
    # Without the first the squared norm is 2^2 + 5^2 + 3^2 + 1 = 39 instead of 20, the most of all.
    norms = [float(np.square(hessian @ start.under(~at(4, i)).w).sum()) for i in range(4)]
    assert norms == [39, 15, 11, 19]


def test_ssfl_averages_saliencies_by_examples() -> None:
    start, method = model([1, 1, 2, -1]), make("ssfl", FOUR)
    one, three = Fake(slope=constant([8, 0, 0, 4])), Fake(slope=constant([0, -4, 2, 0]))
    assert scores_of(method, start, one).tolist() == [8, 0, 0, 4]
    assert scores_of(method, start, three).tolist() == [0, 4, 4, 0]
    # ([8, 0, 0, 4] + 3 [0, 4, 4, 0]) / 4 = 2, 3, 3, 1; the plain mean would keep position 0
    results = [method.client_update(start, 0, local) for local in (one, three)]
    after = merged(method, start, 0, *results, examples=[1, 3])
    assert after.w.tolist() == [0, 1, 2, 0] and method.starts == "participants"


@pytest.mark.parametrize("name", ["snip", "grasp", "ssfl"])
def test_a_mask_at_the_start_keeps_biases_first_and_trains_under_it(name: str) -> None:
    w = np.where(at(14, 8, 9), 0, 1)
    slope = constant(np.arange(14))
    method, local = make(name), Fake(step=1, slope=slope, hessian=np.diag(np.sqrt(np.arange(14))).astype(np.float32))
    start = merged(method, model(w), 0, method.client_update(model(w), 0, local))
    # Scores rise with the position, and are 0 at the biases: 7 are kept.
    assert alive(start) == [7, 8, 9, 10, 11, 12, 13]
    assert method.sends(1) == () and method.schedule is not None and method.schedule(0) == 0.5
    tuned = method.client_update(start, 1, local)
    assert isinstance(tuned, ModelState) and local.asked[-1] == ("tune", {})
    after = merged(method, start, 1, tuned, replace_w(tuned, tuned.w + np.float32(2)), examples=[1, 1])
    assert alive(after) == alive(start) and after.w[10:].tolist() == [3] * 4


@pytest.mark.parametrize(("given", "used"), [(0, None), (3, 3)])
@pytest.mark.parametrize("name", ["snip", "grasp", "ssfl"])
def test_no_batches_means_all_data(name: str, given: int, used: int | None) -> None:
    local = Fake(hessian=np.eye(14, dtype=np.float32))
    make(name, batches=given).client_update(model([1] * 14), 0, local)
    assert local.asked[0][1]["batches"] == used


# PruneFL

EIGHT = ParameterLayout((Slot("a", (2, 2), 0), Slot("b", (1, 4), 4)))


def test_prunefl_divides_importance_by_the_layers_relative_cost() -> None:
    local = Fake(slope=constant([0, 0, 4, 1, 6, 6, 3, 0]), seconds=(2e-9, 4e-9))
    result = make("prunefl", EIGHT, every=2).client_update(model([1] * 8, 0, 1, 2, 3), 2, local)
    assert isinstance(result, tuple)
    assert result[1]["importance"].tolist() == [0, 0, 4, 1, 3, 3, 1.5, 0]
    assert local.asked == [("tune", {}), ("gradient", {"batches": 8, "squared": True})]


def test_prunefl_keeps_the_strong_and_gives_the_other_places_to_the_important() -> None:
    method = make("prunefl", EIGHT, every=2, movable=0.5)
    start, local = model([5, -4, 1, 2, 0, 0, 0, 0], 0, 1, 2, 3), Fake(seconds=(2e-9, 4e-9))
    local.slope = constant([0, 0, 4, 1, 6, 6, 3, 0])
    after = merged(method, start, 2, method.client_update(start, 2, local))
    # Of four places two stay with 5 and -4; importances 4 (position 2) and 3 (position 4) beat 3 (5), 1.5 and 1.
    assert alive(after) == [0, 1, 2, 4]
    assert after.w.tolist() == [5, -4, 1, 0, 0, 0, 0, 0]  # what comes back starts at 0


def test_prunefl_weighs_importance_by_examples() -> None:
    method = make("prunefl", EIGHT, every=2, movable=0.25)
    start = model([5, -4, 3, 2, 0, 0, 0, 0], 0, 1, 2, 3)
    slopes = ([0, 0, 0, 0, 8, 0, 0, 0], [0, 0, 0, 0, 0, 4, 0, 0])
    results = [method.client_update(start, 2, Fake(slope=constant(slope), seconds=(1, 1))) for slope in slopes]
    # One place moves: to 8/4 = 2 or to 3 * 4/4 = 3.
    assert alive(merged(method, start, 2, *results, examples=[1, 3])) == [0, 1, 2, 5]


def test_prunefl_prunes_the_dense_network_of_round_0() -> None:
    method = make("prunefl", EIGHT, movable=0.5)
    local = Fake(step=1, slope=constant([0, 0, 0, 0, 0, 0, 9, 8]), seconds=(1, 1))
    start = model([1, 2, 3, 4, 5, 6, -1, -1])
    after = merged(method, start, 0, method.client_update(start, 0, local))
    # Two places for each matrix, of which one stays: with 5 and with 7, though 6 is larger than 5.
    assert after.w.tolist() == [0, 0, 0, 5, 0, 7, 0, 0] and alive(after) == [3, 5, 6, 7]
    assert method.starts == "one client" and method.regrows


def test_prunefl_leaves_vectors_alone() -> None:
    layout = ParameterLayout((*EIGHT.parameters, Slot("bias", (2,), 8)))
    local = Fake(slope=constant([9, 9, 9, 9, 1, 1, 1, 1, 0, 0]), seconds=(1, 1, 1))
    method = make("prunefl", layout, movable=1.0)
    for t, start in ((0, model([1] * 8 + [0, 0])), (10, model([1] * 8 + [0, 0], 4, 5, 6, 8, 9))):
        after = merged(method, start, t, method.client_update(start, t, local))
        assert alive(after) == [0, 1, 2, 8, 9]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_prunefl_sends_importance_exactly_when_it_says_so(every: int) -> None:
    method = make("prunefl", EIGHT, every=every)
    for t in range(7):
        result = method.client_update(model([1] * 8), t, Fake(seconds=(1, 1)))
        sent = () if isinstance(result, ModelState) else tuple(result[1])
        assert sent == method.sends(t) == (("importance",) if t % every == 0 else ())


def test_prunefl_between_readjustments_is_fedavg_under_the_mask() -> None:
    start = model([1] * 8, 0, 2, 5, 7)
    after = merged(make("prunefl", EIGHT, every=2), start, 1, start, replace_w(start, f32([5] * 8)), examples=[3, 1])
    assert after.w.tolist() == [2, 0, 2, 0, 0, 2, 0, 2] and alive(after) == [0, 2, 5, 7]


# FedDST


def test_feddst_starts_from_the_largest_weights_of_each_layer() -> None:
    w = [1, -9, 2, 8, 3, -7, 4, 5, 0, 0, 0.1, -0.3, 0.2, 0]
    method = make("feddst")
    after = method.server_update(ServerState(0, model(w)), [], 0).model
    assert alive(after) == [1, 3, 5, 8, 9, 11, 12] and after.w[11] == np.float32(-0.3)
    assert method.starts == "server" and method.regrows and method.sends(0) == ()


# Five of a, both biases, three of b.
BROADCAST = model([5, 4, 3, 2, 1, 0, 0, 0, 0.1, 0.1, 7, -6, 8, 0], 0, 1, 2, 3, 4, 8, 9, 10, 11, 12)


def test_feddst_exchanges_the_least_magnitudes_for_the_largest_gradients_layer_by_layer() -> None:
    # t_stop = 4, t = 2: alpha = 0.9/2 (1 + cos(pi/2)) = 0.45; floor(2.25) = 2 of a, floor(1.35) = 1 of b.
    method = make("feddst", every=2, ratio=0.9)
    local = Fake(slope=constant([99, 0, 0, 1, 0.5, 3, -4, 2, 99, 99, 0, 1, 0, -0.5]))
    sent = model_of(method.client_update(BROADCAST, 2, local))
    # Out go 3, 4 and 11; in come 6 and 5, and 11 itself, whose gradient is larger than that of 13. It starts at 0.
    assert alive(sent) == [0, 1, 2, 5, 6, 8, 9, 10, 11, 12]
    assert sent.w.tolist() == f32([5, 4, 3, 0, 0, 0, 0, 0, 0.1, 0.1, 7, 0, 8, 0]).tolist()


def test_feddst_takes_gradients_without_what_left_and_trains_the_last_epoch_with_what_came() -> None:
    method = make("feddst", every=2, ratio=0.9, batches=5)
    local = Fake(step=1, epochs=3, slope=constant([0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 1]))
    sent = model_of(method.client_update(BROADCAST, 2, local))
    assert local.asked == [
        ("tune", {"epochs": 2}),
        ("gradient", {"batches": 5, "squared": False}),
        ("tune", {"epochs": 1}),
    ]
    assert alive(local.seen[1]) == [0, 1, 2, 8, 9, 10, 12]
    assert sent.w[[0, 5, 6, 13]].tolist() == [7, 1, 1, 1]


def test_feddst_with_a_single_epoch_readjusts_after_it() -> None:
    local = Fake(step=1, epochs=1, slope=constant([0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 1]))
    sent = model_of(make("feddst", every=2, ratio=0.9).client_update(BROADCAST, 2, local))
    assert [name for name, _ in local.asked] == ["tune", "gradient"] and local.asked[0][1] == {"epochs": 1}
    assert sent.w[[0, 5, 6, 13]].tolist() == [6, 0, 0, 0] and sent.mask[[5, 6, 13]].all()


@pytest.mark.parametrize(
    ("t", "moved"),
    # t_stop = 3, ratio 0.9; five of a: alpha = 0.9/2 (1 + 1/2) = 0.675 -> 3, 0.9/2 (1 - 1/2) = 0.225 -> 1, 0 -> 0
    [(1, 3), (2, 1), (3, 0)],
)
def test_feddst_moves_ever_fewer_along_half_a_cosine(t: int, moved: int) -> None:
    method = make("feddst", rounds=6, every=1, ratio=0.9)
    local = Fake(slope=constant([0, 0, 0, 0, 0, 3, 2, 1, 0, 0, 0, 0, 0, 0]))
    sent = model_of(method.client_update(BROADCAST, t, local))
    assert int(np.count_nonzero(sent.mask[:8] & ~BROADCAST.mask[:8])) == moved
    assert counts(sent) == [5, 2, 3]


@pytest.mark.parametrize("t", [1, 3, 5, 6, 8])
def test_feddst_only_trains_between_readjustments_and_after_the_stop(t: int) -> None:
    # Readjusts in rounds 2 and 4 of 8.
    method, local = make("feddst", every=2), Fake(step=1)
    sent = model_of(method.client_update(BROADCAST, t, local))
    assert local.asked == [("tune", {})] and (sent.mask == BROADCAST.mask).all()
    after = merged(method, BROADCAST, t, sent, replace_w(sent, sent.w + np.float32(2)))
    assert (after.mask == BROADCAST.mask).all()
    np.testing.assert_array_equal(after.w, np.where(after.mask, BROADCAST.w + np.float32(2), 0))


def test_feddst_averages_over_those_who_kept_and_keeps_each_layers_number() -> None:
    start = model([4, 3, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0], 0, 1, 8, 9, 10)
    one = model([4, 0, 8, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0], 0, 2, 8, 9, 10)
    three = model([8, 6, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0, 9], 0, 1, 8, 9, 13)
    after = merged(make("feddst", every=2), start, 2, one, three, examples=[1, 3])
    # a: (4 + 3*8)/4 = 7, 6 of the second alone, 8 of the first alone, and two places; b: 2 or 9, one place.
    assert after.w.tolist() == [7, 0, 8, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 9]
    assert alive(after) == [0, 2, 8, 9, 13]


def voted(min_votes: int) -> ModelState:
    """Three clients: position 0 has three votes and the least magnitude, 1 has two, 2 and 3 one vote each."""
    start = model([1] * 14, 0, 1, 8, 9, 10)
    clients = [
        model([1, 2, 0, 0, *[0] * 4, 1, 1, 1, 0, 0, 0], 0, 1, 8, 9, 10),
        model([1, 0, 5, 0, *[0] * 4, 1, 1, 1, 0, 0, 0], 0, 2, 8, 9, 10),
        model([1, 2, 0, 9, *[0] * 4, 1, 1, 1, 0, 0, 0], 0, 1, 3, 8, 9, 10),
    ]
    return merged(make("feddst", every=2, min_votes=min_votes), start, 2, *clients)


def test_feddst_keeps_first_what_enough_clients_kept() -> None:
    assert alive(voted(1))[:2] == [2, 3]  # by magnitude alone
    assert alive(voted(2))[:2] == [0, 1]


def test_feddst_goes_by_magnitude_where_too_few_have_the_votes() -> None:
    # Only position 0 has three votes; of 2, 5 and 9 with fewer, 9 is the largest.
    assert alive(voted(3))[:2] == [0, 3]


def test_feddst_gives_the_places_of_what_came_back_untrained_to_those_with_most_votes() -> None:
    start = model([1] * 14, 0, 1, 8, 9, 10)
    clients = [model([1] + [0] * 13, 0, come, 8, 9, 10) for come in (2, 5, 5)]
    assert alive(merged(make("feddst", every=2), start, 2, *clients))[:2] == [0, 5]


# FLASH


def test_flash_searches_from_one_mask_that_all_clients_share() -> None:
    start, first, second = model(np.arange(1, 15)), Fake(), Fake()
    make("flash").client_update(start, 0, first)
    make("flash").client_update(start, 0, second)
    assert counts(first.seen[0]) == [3, 2, 2]  # by Erdos-Renyi-kernel
    assert (first.seen[0].mask == second.seen[0].mask).all()
    assert first.seen[0].w.tolist() == np.where(first.seen[0].mask, start.w, 0).tolist()


def test_flash_moves_a_falling_share_after_every_epoch() -> None:
    local = Fake(epochs=2)
    sent = model_of(make("flash", ratio=0.5).client_update(model(np.arange(1, 15)), 0, local))
    assert local.asked == [("tune", {"epochs": 1})] * 2
    first, second = local.seen
    # Weights rise with the position: floor(3/2) = 1 of a and 1 of b leave, the first ones, and two come.
    gone = [alive(first)[0], alive(first)[5]]
    assert set(alive(first)) - set(gone) <= set(alive(second))
    came = sorted(set(alive(second)) - (set(alive(first)) - set(gone)))
    assert len(came) == 2 and not second.w[came].any() and not set(came) & {8, 9}
    # At a share of 1/4 no layer has enough survivors for one to leave, unless all of a's grew there.
    assert counts(second)[0] < 4 and (sent.mask == second.mask).all()
    assert sent.nonzero == 7 and counts(sent)[1] == 2


def test_flash_grows_in_proportion_to_the_mean_magnitude_of_what_is_left() -> None:
    # All of b is worth nothing, so both places go to a: 3 - 1 + 2 and 2 - 1.
    start = model([1] * 8 + [1, 1] + [0] * 4)
    local = Fake(epochs=1)
    assert counts(model_of(make("flash", ratio=0.5).client_update(start, 0, local))) == [4, 2, 1]


def test_flash_draws_one_mask_of_the_mean_densities_for_the_initial_weights() -> None:
    start = model(np.arange(1, 15))
    results = [model([0] * 14, 0, 1, 2, 3, 8, 9, 10), model([0] * 14, 0, 1, 8, 9, 10, 11, 12)]
    # 4 + 2, 2 + 2 and 1 + 3, of 14: 3, 2 and 2 of 7, however many examples they have.
    after = merged(make("flash"), start, 0, *results, examples=[1, 9])
    assert counts(after) == [3, 2, 2]
    assert after.w.tolist() == np.where(after.mask, start.w, 0).tolist()
    again = merged(make("flash"), start, 0, *results[::-1], examples=[5, 5])
    assert (again.mask == after.mask).all()


def test_flash_trains_under_its_mask_ever_after() -> None:
    start, method, local = model([1] * 14, 0, 1, 2, 8, 9, 10, 11), make("flash"), Fake(step=1)
    sent = model_of(method.client_update(start, 1, local))
    assert local.asked == [("tune", {})]
    after = merged(method, start, 1, sent, start, examples=[3, 1])
    assert (after.mask == start.mask).all() and after.w[0] == 1.75
    assert method.starts == "participants" and not method.regrows


# Options


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("fedprox", "proximal", -0.1),
        ("fedprox", "proximal", math.inf),
        ("fedprox", "proximal", math.nan),
        ("fedavg-momentum", "momentum", 0.0),
        ("fedavg-momentum", "momentum", 1.0),
        ("fedavg-momentum", "momentum", math.nan),
        ("oneshot-finetune", "round", -1),
        ("oneshot-finetune", "round", 9),
        ("snip", "clients", "some"),
        ("grasp", "clients", ""),
        ("snip", "batches", -1),
        ("grasp", "batches", -1),
        ("ssfl", "batches", -1),
        ("prunefl", "batches", -1),
        ("prunefl", "every", 0),
        ("prunefl", "movable", 0.0),
        ("prunefl", "movable", 1.1),
        ("prunefl", "movable", math.nan),
        ("feddst", "every", 0),
        ("feddst", "ratio", 0.0),
        ("feddst", "ratio", 1.0),
        ("feddst", "stop", 0.0),
        ("feddst", "stop", 1.5),
        ("feddst", "min_votes", 0),
        ("feddst", "batches", -1),
        ("flash", "ratio", 0.0),
        ("flash", "ratio", 1.0),
        ("flash", "ratio", math.nan),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(name: str, option: str, value: object) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ArgumentError, match=rf"^method\.{option} = \"?{value}\"? must be "):
        make(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedprox", {"proximal": 0.0}),
        ("oneshot-finetune", {"round": 8}),
        ("prunefl", {"movable": 1.0, "every": 1, "batches": 0}),
        ("feddst", {"stop": 1.0, "every": 1, "batches": 0}),
    ],
)
def test_the_ends_of_a_range_are_allowed(name: str, options: dict[str, Any]) -> None:
    assert make(name, **options).name == name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_named_as_in_the_registry(name: str) -> None:
    assert make(name).name == name
    assert replace(make(name), name="mine").name == "mine"
