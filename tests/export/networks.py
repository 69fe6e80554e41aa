"""Networks with what pruning leaves behind: units that are dead, biases that are not, scales and statistics at odds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsparsify import models

__all__ = ["NETWORKS", "network", "outputs_of", "pruned_at_random"]

NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "2-fc": ((1, 28, 28), {}),
    "6-cnn": ((3, 32, 32), {}),
    "6-cnn of odd size": ((1, 27, 27), {"channels": 1, "size": 27}),
    "resnet-20": ((3, 32, 32), {}),
    "vgg-16": ((3, 32, 32), {}),
    "lstm": ((9,), {"vocabulary": 50, "embedding": 12, "hidden": 8}),
    "3d-cnn": ((1, 12, 14, 12), {"width": 4, "pools": 2, "outputs": 9}),
}
"""Shape of an example and options of each network; words for the LSTM."""


def network(name: str, density: float, seed: int = 0) -> nn.Module:
    """Return one of :data:`NETWORKS`, pruned at random, in evaluation mode."""
    return pruned_at_random(models.build(name.split(" ")[0], seed, **NETWORKS[name][1]), density, seed)


def pruned_at_random(module: nn.Module, density: float, seed: int = 0) -> nn.Module:
    """Prune weights to a density, kill a quarter of all units, and give every unit a bias and every norm statistics."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                kept = rng.random(p.shape) < density
                kept[rng.random(len(p)) < 0.25] = False
                scale = max(1.0, (density * p[0].numel()) ** 0.5)
                p.copy_(torch.from_numpy((kept * rng.normal(size=p.shape) / scale).astype(np.float32)))
            else:
                kept = rng.random(p.shape) < 0.7
                middle = 1.0 if name.endswith("weight") else 0.0
                p.copy_(torch.from_numpy((kept * rng.normal(middle, 0.5, p.shape)).astype(np.float32)))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.from_numpy(rng.normal(0, 0.5, buffer.shape).astype(np.float32)))
            elif name.endswith("running_var"):
                buffer.copy_(torch.from_numpy(rng.uniform(0.5, 2, buffer.shape).astype(np.float32)))
    return module.eval()


def outputs_of(module: nn.Module, x: NDArray[Any]) -> NDArray[np.float64]:
    """Return a network's outputs in float64, to compare with."""
    given = torch.from_numpy(x)
    with torch.no_grad():
        y: NDArray[np.float64] = module.double()(given if x.dtype == np.int64 else given.double()).numpy().copy()
    module.float()
    return y
