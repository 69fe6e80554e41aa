"""Initial weights, as the paper has them."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["glorot_"]

M = TypeVar("M", bound=nn.Module)

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def glorot_(module: M) -> M:
    """Set initial weights in place and return the module: Glorot-uniform weights, zero biases.

    For every linear and convolution layer in the module, weights are uniform in +-sqrt(6 / (fan_in + fan_out)), a fan
    counting the kernel's positions too. So are an LSTM's weights, of the input and of the state, the four gates being
    one layer's outputs. Normalisation layers start as PyTorch makes them: scale 1, shift 0. Chance comes from PyTorch's
    CPU generator. Source: Glorot and Bengio, AISTATS 2010.

    >>> glorot_(nn.Linear(3, 3)).bias.tolist()
    [0.0, 0.0, 0.0]
    """
    for layer in module.modules():
        if isinstance(layer, _LINEAR):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LSTM):
            for name, parameter in layer.named_parameters():
                (nn.init.zeros_ if name.startswith("bias") else nn.init.xavier_uniform_)(parameter)
    return module
