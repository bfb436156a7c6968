"""A small residual network for small images, the backbone of the default project.

Three stages of basic blocks (He et al. 2016), each at half the resolution of the one before, then
the mean over the picture. With widths 24-48-96 and one block per stage it has 0.19 M weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from uotft.core.records import Settings as BaseSettings

NARROW = 8  # channels below which a shortcut is `Subsampled`


class Settings(BaseSettings):
    """Settings of the backbone ``small_resnet``."""

    widths: list[int] = Field([24, 48, 96], min_length=1, description="channels of each stage")
    blocks: int = Field(1, ge=1, description="residual blocks per stage")
    channels: Literal[1, 3] = Field(1, description="channels of its input; 1: grey, 3: colour")


class Subsampled(nn.Conv2d):
    """A 1 x 1 convolution with a stride, for fewer than 8 channels: it picks its pixels first.

    On CPUs without AVX-512, oneDNN in torch 2.15 (``brgconv_strided:avx2``) writes past its memory
    in the gradient of such a convolution when the stride is its own.
    """

    def __init__(self, inputs: int, outputs: int, step: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, H, W) -> (n, outputs, H / step, W / step), rounded up."""
        return super().forward(x[..., :: self.step, :: self.step])


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            pointwise = (
                Subsampled(inputs, outputs, stride)
                if inputs < NARROW
                else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            )
            self.shortcut = nn.Sequential(pointwise, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, H, W) -> (n, outputs, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Images (n, C, H, W) in [-1, 1] -> features (n, D)."""

    def __init__(self, widths: list[int], blocks: int, channels: int) -> None:
        super().__init__()
        self.features, self.channels = widths[-1], channels
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 5, 2, 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(inputs, width, 2 if stage and not block else 1))
                inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, D), averaged over the picture."""
        features: Tensor = self.layers(images).mean((2, 3))
        return features


def build(settings: Settings) -> SmallResNet:
    """The backbone with random weights; seed torch first."""
    return SmallResNet(settings.widths, settings.blocks, settings.channels)
