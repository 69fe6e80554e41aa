"""Small networks and masks that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedsparsify.layout import ParameterLayout
from fedsparsify.sparse import NetworkPlan, plan_network
from fedsparsify.state import Floats, Mask

State = tuple[Floats, Mask, Floats]


def fc2() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def small_cnn(dropout: float = 0.0) -> nn.Sequential:
    """One of each layer, with odd sizes, a stride, and ReLU on either side of batch norm and pooling."""
    return nn.Sequential(
        nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(2, 1)),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, stride=2, padding=1),
        nn.MaxPool2d(2, 1),
        nn.ReLU(),
        nn.Conv2d(7, 4, 3, padding=1, bias=False),
        nn.AvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(4 * 6, 9),
        nn.BatchNorm1d(9, affine=False),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(9, 4),
    )


SMALL_CNN_INPUT = (2, 14, 13)


def planned(module: nn.Module, shape: tuple[int, ...], loss: str = "cross-entropy") -> NetworkPlan:
    plan = plan_network(module, loss, shape)  # type: ignore[arg-type]
    assert plan is not None
    return plan


def state_of(module: nn.Module, density: float, seed: int = 0) -> State:
    """``(w, mask, buffers)`` of a module under a random mask over all parameters, biases and scales included."""
    w, buffers = ParameterLayout.of(module).read(module)
    mask = np.random.default_rng(seed).random(w.size) < density
    return np.where(mask, w, np.float32(0)), mask, buffers


def examples(shape: tuple[int, ...], count: int, classes: int, seed: int = 1) -> tuple[Floats, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *shape)).astype(np.float32), rng.integers(0, classes, count)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()
