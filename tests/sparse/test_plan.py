"""What the planner covers, and that it says no rather than plan something else than the network computes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparsify.sparse import available, plan_network, predict, why_uncovered
from tests.sparse.networks import SMALL_CNN_INPUT, planned, small_cnn, state_of


class Functional(nn.Module):
    """The layers of a small network as functions in ``forward``, each in another of its spellings."""

    def __init__(self, reshape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding="same")
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.fc1 = nn.Linear(4, 8)
        self.fc2 = nn.Linear(8, 3)
        self.reshape = reshape

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.avg_pool2d(torch.relu(self.conv2(x)), kernel_size=2, stride=1)
        x = self.fc1(self.reshape(x)).relu()
        return self.fc2(F.dropout(x, 0.5, training=self.training))  # type: ignore[no-any-return]


RESHAPES: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.flatten(x, 1),
    lambda x: x.flatten(1),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], -1),
    lambda x: x.view(x.size()[0], -1),
    lambda x: torch.reshape(x, (x.size(0), -1)),
]


@pytest.mark.parametrize("reshape", RESHAPES)
def test_functions_are_planned_as_their_modules_are(reshape: Callable[[Tensor], Tensor]) -> None:
    module = Functional(reshape)
    plan = planned(module, (1, 8, 8))
    kinds = [layer.kind for layer in plan.layers]
    assert kinds[:6] == ["conv2d", "relu", "maxpool2d", "conv2d", "relu", "avgpool2d"]
    assert kinds[6:] == ["flatten", "linear", "relu", "dropout", "linear"]
    if available():
        w, mask, buffers = state_of(module, 1.0)
        x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
        with torch.no_grad():
            expected = module.eval()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(predict(plan, w, mask, buffers, x, backends="dense"), expected, atol=1e-5)


def test_offsets_follow_the_order_of_named_parameters() -> None:
    module = small_cnn()
    plan = planned(module, SMALL_CNN_INPUT)
    offsets, at = {}, 0
    for name, p in module.named_parameters():
        offsets[name] = at
        at += p.numel()
    found = {}
    for layer in plan.layers:
        for key in ("weight", "bias"):
            if getattr(layer, key) >= 0:
                found[f"{layer.name}.{key}"] = getattr(layer, key)
    assert found == offsets and plan.n == at and plan.b == 2 * 5 + 2 * 9


def test_planning_leaves_the_module_as_it_was() -> None:
    module = small_cnn()
    module[1].eval()
    before = [m.training for m in module.modules()]
    planned(module, SMALL_CNN_INPUT)
    assert [m.training for m in module.modules()] == before


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + x  # type: ignore[no-any-return]


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class Unused(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class AlwaysDropping(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5)


class Mixing(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(-1, 3))  # type: ignore[no-any-return]


class TwoInputs(Residual):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


class Odd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def shared() -> nn.Module:
    fc = nn.Linear(3, 3)
    return nn.Sequential(fc, nn.ReLU(), fc)


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    module[0].weight.requires_grad_(False)
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].register_forward_hook(lambda m, i, o: o * 2)
    return module


UNCOVERED: list[tuple[Callable[[], nn.Module], tuple[int, ...], str]] = [
    (lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (3,), "layer 1 is a Tanh"),
    (Residual, (3,), "is a call that the compiled trainer does not cover|not a chain"),
    (Branching, (3,), "cannot be traced"),
    (Unused, (3,), "parameter fc.bias is not used"),
    (AlwaysDropping, (3,), "must act in training only"),
    (Mixing, (3,), "not a reshape"),
    (TwoInputs, (3,), "more than one input"),
    (lambda: nn.Sequential(Odd(3, 2)), (3,), "outside a layer"),
    (shared, (3,), "used by more than one layer"),
    (frozen, (3,), "the weight of layer 0 is not trained"),
    (hooked, (3,), "layer 0 has hooks"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), (4,), "takes 3 features, not an input of shape"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), (5, 3), "takes 3 features"),
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 5, 5), r"output has the shape \(2, 3, 3\)"),
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten(), nn.Linear(2, 2)), (1, 5, 5), "leaves nothing"),
    (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(18, 2)), (2, 5, 5), "groups"),
    (lambda: nn.Sequential(nn.Conv2d(2, 2, 2, padding="same"), nn.Flatten()), (2, 5, 5), "pads one side"),
    (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 2)), (1, 5, 5), "pooling with padding"),
    (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=None)), (3,), "running average"),
    (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), (3,), "running average"),
    (lambda: nn.Sequential(nn.Linear(3, 2).double()), (3,), "float64"),
    (lambda: nn.LSTM(3, 2), (4, 3), r"\w"),
    (nn.Identity, (3,), "no trainable parameter"),
    (lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), (3,), "starts with ReLU"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), (0,), "not a tuple of positive"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "reason"), UNCOVERED)
def test_what_is_not_covered_is_refused_with_its_reason(
    make: Callable[[], nn.Module], shape: tuple[int, ...], reason: str
) -> None:
    module = make()
    assert plan_network(module, "cross-entropy", shape) is None
    why = why_uncovered(module, "cross-entropy", shape)
    assert why is not None
    assert re.search(reason, why), why


def test_an_unknown_loss_is_refused() -> None:
    assert "hinge" in str(why_uncovered(nn.Linear(3, 2), "hinge", (3,)))  # type: ignore[arg-type]


def test_a_covered_network_has_no_reason() -> None:
    assert why_uncovered(nn.Linear(3, 2), "cross-entropy", (3,)) is None


def test_sizes_count_multiply_adds() -> None:
    plan = planned(nn.Sequential(nn.Conv2d(2, 5, 3, stride=2), nn.Flatten(), nn.Linear(5 * 9, 4)), (2, 7, 7))
    assert [(p.weight_size, p.pixels) for p in plan.weighted] == [(90, 9), (180, 1)]
    assert math.prod(plan.native_input) == 98
