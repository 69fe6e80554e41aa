"""VGG-16: the paper's network for CIFAR-100, thirteen convolutions with batch normalisation."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..errors import ArgumentError
from .checks import check_sizes
from .init import glorot_

__all__ = ["vgg16"]

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16(channels: int = 3, size: int = 32, classes: int = 100) -> nn.Sequential:
    """Return the network [B, channels, size, size] -> [B, classes]; 14,774,436 parameters for CIFAR-100.

    Configuration D of Simonyan and Zisserman (arXiv 1409.1556), with batch normalisation after each convolution and one
    fully connected layer in place of three.

    Args:
        channels: colours of a picture.
        size: height and width of a picture in pixels, at least 32.
        classes: number of outputs.

    Raises:
        ArgumentError: ``size`` is below 32, so that five poolings leave nothing, or a number is not whole and positive.
    """
    check_sizes(channels=channels, size=size, classes=classes)
    if size < 32:
        raise ArgumentError(f"model.size = {size} must be at least 32 pixels: five poolings divide it by 32")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, number = channels, 0
    for block, (width, count) in enumerate(_BLOCKS, 1):
        for _ in range(count):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1)
            layers[f"bn{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            before = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before * (size // 32) ** 2, classes)
    return glorot_(nn.Sequential(layers))
