"""ResNet-20: the small residual network of He et al. for CIFAR-10 (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_sizes
from .init import glorot_

__all__ = ["Residual", "resnet20"]


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a way around them that has no parameters.

    Where a block halves the picture, the way around takes every second pixel and fills new channels with zeros (option
    A of the paper).

    Args:
        before: channels that come in.
        after: channels that go out, at least as many.
        stride: 1, or 2 to halve the picture.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.new = after - before

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[B, after, H / stride, W / stride] for float32[B, before, H, W]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        around = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return F.relu(y + around)


def resnet20(channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Return the network [B, channels, H, W] -> [B, classes]; 269,722 parameters for CIFAR-10.

    A convolution of 16 channels, three blocks each of 16, 32 and 64 channels, the mean over all pixels, and the output.

    Args:
        channels: colours of a picture.
        classes: number of outputs.

    Raises:
        ArgumentError: a number is not whole and positive.
    """
    check_sizes(channels=channels, classes=classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False), bn=nn.BatchNorm2d(16), relu=nn.ReLU()
    )
    before = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(1, 4):
            layers[f"block{stage}_{block}"] = Residual(before, width, 2 if width > before else 1)
            before = width
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before, classes)
    return glorot_(nn.Sequential(layers))
