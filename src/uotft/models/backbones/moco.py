"""ResNet-50 from a MoCo-v2 checkpoint (Chen et al. 2020): the paper's unsupervised backbone.

Selection compares the 128 outputs of its projection, as the paper does. Heads are trained on the
2048 features before it. Only `module.encoder_q.*` of the checkpoint is read. The authors' is at
https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import nn

from uotft.core.records import Settings as BaseSettings
from uotft.models import weights as weight_files

PREFIX = "module.encoder_q."
CLASSIFIER = False  # a checkpoint of MoCo has none


class Settings(BaseSettings):
    """Settings of the backbone ``moco``."""

    FILES: ClassVar = ("weights",)

    weights: str = Field(
        description="path of the checkpoint, moco_v2_800ep_pretrain.pth.tar or another"
    )
    dimensions: int = Field(128, ge=1, description="number of outputs of the projection")


def build(settings: Settings) -> weight_files.Trunk:
    """The backbone with random weights; seed torch first."""
    return _apart(_whole(settings))


def pretrained(settings: Settings) -> weight_files.Pretrained:
    """The backbone with the checkpoint's weights; the checkpoint has no classifier."""
    path, network = Path(settings.weights), _whole(settings)
    found = weight_files.pretrained(network, path, prefix=PREFIX)
    return weight_files.Pretrained(_apart(network), None, found.origin)


def _whole(settings: Settings) -> nn.Module:
    """The query encoder as MoCo saves it: with the projection in place of the classifier."""
    from torchvision.models import resnet50

    network: nn.Module = resnet50()
    network.fc = nn.Sequential(
        nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, settings.dimensions)
    )
    return network


def _apart(network: nn.Module) -> weight_files.Trunk:
    """The trunk as backbone; its ``project``, (n, 2048) -> (n, 128), is not trained."""
    project, network.fc = network.fc, nn.Identity()
    backbone = weight_files.Trunk(network, 2048)
    backbone.project = project.requires_grad_(False)
    return backbone
