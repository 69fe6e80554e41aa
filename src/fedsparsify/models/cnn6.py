"""6-CNN: the paper's network for CIFAR-10, six convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..errors import ArgumentError
from .checks import check_sizes
from .init import glorot_

__all__ = ["cnn6"]


def cnn6(channels: int = 3, size: int = 32, classes: int = 10) -> nn.Sequential:
    """Return the network [B, channels, size, size] -> [B, classes]; 1,609,930 parameters as in arXiv 2204.12430.

    Three pairs of 3x3 convolutions of 64, 128 and 128 channels, each pair followed by 2x2 max pooling, the first two
    by batch normalisation; then 512 units, dropout 0.2 and the output.

    Args:
        channels: colours of a picture.
        size: height and width of a picture in pixels, at least 8.
        classes: number of outputs.

    Raises:
        ArgumentError: ``size`` is below 8, so that three poolings leave nothing, or a number is not whole and positive.
    """
    check_sizes(channels=channels, size=size, classes=classes)
    if size < 8:
        raise ArgumentError(f"model.size = {size} must be at least 8 pixels: three poolings divide it by 8")
    return glorot_(
        nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(channels, 64, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(64, 64, 3, padding=1),
                relu2=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                bn1=nn.BatchNorm2d(64),
                conv3=nn.Conv2d(64, 128, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(128, 128, 3, padding=1),
                relu4=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                bn2=nn.BatchNorm2d(128),
                conv5=nn.Conv2d(128, 128, 3, padding=1),
                relu5=nn.ReLU(),
                conv6=nn.Conv2d(128, 128, 3, padding=1),
                relu6=nn.ReLU(),
                pool3=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(128 * (size // 8) ** 2, 512),
                relu7=nn.ReLU(),
                dropout=nn.Dropout(0.2),
                fc2=nn.Linear(512, classes),
            )
        )
    )
