"""2-FC: the paper's network for FashionMNIST, two hidden layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .checks import check_sizes
from .init import glorot_

__all__ = ["fc2"]


def fc2(inputs: int = 784, classes: int = 10, hidden: int = 128) -> nn.Sequential:
    """Return the network [B, ...] -> [B, classes]; 118,282 parameters as it stands in the paper (arXiv 2204.12430).

    Args:
        inputs: numbers in one example, whatever its shape.
        classes: number of outputs.
        hidden: width of both hidden layers.

    Raises:
        ArgumentError: one of them is no whole number of at least 1.
    """
    check_sizes(inputs=inputs, classes=classes, hidden=hidden)
    return glorot_(
        nn.Sequential(
            OrderedDict[str, nn.Module](
                flatten=nn.Flatten(),
                fc1=nn.Linear(inputs, hidden),
                relu1=nn.ReLU(),
                fc2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(),
                fc3=nn.Linear(hidden, classes),
            )
        )
    )
