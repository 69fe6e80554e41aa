"""3D CNN: the paper's network for brain age from MRI volumes, five convolutions and a sixth over single positions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..errors import ArgumentError
from .checks import check_sizes
from .init import glorot_

__all__ = ["cnn3d"]

_WIDTHS = (1, 2, 4, 8, 8)


def cnn3d(outputs: int = 1, channels: int = 1, width: int = 32, pools: int = 5) -> nn.Sequential:
    """Return the network [B, channels, D, H, W] -> [B, outputs]; 2,950,401 parameters for the paper's domain.

    3x3x3 convolutions of 32, 64, 128, 256 and 256 channels, each followed by instance normalisation, 2x2x2 max pooling
    and ReLU; a 1x1x1 convolution to 64 channels with instance normalisation and ReLU; the mean over all positions; and
    the output. Any size of volume fits that leaves two positions or more after the poolings, so the one network takes
    brains of 91 x 109 x 91 and, with fewer poolings, smaller volumes.

    Args:
        outputs: numbers that come out: 1 for a regression, else the number of classes.
        channels: numbers at each position of a volume.
        width: channels of the first convolution, 32 in the paper; all others are in proportion.
        pools: after how many of the five convolutions, the first ones, the volume is halved; at most 5.

    Raises:
        ArgumentError: a number is not whole and positive, or ``pools`` is above 5.
    """
    check_sizes(outputs=outputs, channels=channels, width=width, pools=pools)
    if pools > len(_WIDTHS):
        raise ArgumentError(f"model.pools = {pools} must be at most {len(_WIDTHS)}, the number of convolutions")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = channels
    for i, factor in enumerate(_WIDTHS, 1):
        layers[f"conv{i}"] = nn.Conv3d(before, factor * width, 3, padding=1)
        layers[f"norm{i}"] = nn.InstanceNorm3d(factor * width, affine=True)
        if i <= pools:
            layers[f"pool{i}"] = nn.MaxPool3d(2)
        layers[f"relu{i}"] = nn.ReLU()
        before = factor * width
    layers["conv6"] = nn.Conv3d(before, 2 * width, 1)
    layers["norm6"] = nn.InstanceNorm3d(2 * width, affine=True)
    layers["relu6"] = nn.ReLU()
    layers["mean"] = nn.AdaptiveAvgPool3d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(2 * width, outputs)
    return glorot_(nn.Sequential(layers))
