"""ResNet-50 with torchvision's ImageNet weights (He et al. 2016).

2048 features, 23.5 M weights, made for 224 pixels and usable from 32.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from torch import nn

from uotft import weights
from uotft.records import Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the backbone ``resnet50``."""

    weights: str = Field(
        "download",
        description="download: torchvision's IMAGENET1K_V1; a file of the same format; or none: "
        "the stage pretrain trains",
    )


def build(settings: Settings) -> weights.Trunk:
    """A network with random weights; seed torch first."""
    from torchvision.models import resnet50

    network = resnet50()
    network.fc = nn.Identity()
    return weights.Trunk(network, 2048)


def pretrained(settings: Settings) -> weights.Pretrained | None:
    """The backbone with its weights, or None where it is to be trained."""
    from torchvision.models import ResNet50_Weights

    if settings.weights == "none":
        return None
    fetch = settings.weights == "download"
    url = ResNet50_Weights.IMAGENET1K_V1.url
    path = weights.download(url) if fetch else Path(settings.weights)
    return weights.pretrained(build(settings), path, classifier="fc")
