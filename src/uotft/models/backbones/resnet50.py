"""ResNet-50 with torchvision's ImageNet weights (He et al. 2016).

2048 features, 23.5 M weights, trained at 224 pixels and usable from 32.
"""

from __future__ import annotations

from pathlib import Path

from uotft.models import weights


class Settings(weights.ImageNet):
    """Settings of the backbone ``resnet50``."""


def build(settings: Settings) -> weights.Trunk:
    """The backbone with random weights; seed torch first."""
    return weights.imagenet_trunk("resnet50")


def pretrained(settings: Settings) -> weights.Pretrained | None:
    """The backbone with its weights; None if the stage pretrain is to train it."""
    return weights.imagenet("resnet50", settings)


def published(settings: Settings) -> tuple[str, int, Path] | None:
    """Address, bytes and path of the weights that would be downloaded, if any."""
    return weights.published("resnet50", settings)
