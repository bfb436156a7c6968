"""Your own weights: loads a local file into the architecture of another backbone.

    backbone:
      name: state_dict
      weights: model.safetensors
      architecture: {name: small_resnet, widths: [12, 24, 48]}
      prefix: backbone.
      classifier: heads.target

reads a model that `uotft train` wrote. Names of another project's layers become those of the
architecture by `rename: {"^conv_stem": stem, "^blocks_(\\d+)_": "blocks.\\1."}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from uotft.core import config
from uotft.core.records import Settings as BaseSettings
from uotft.models import weights as weight_files


class Settings(BaseSettings):
    """Settings of the backbone ``state_dict``."""

    FILES: ClassVar = ("weights",)

    weights: str = Field(
        description="path of a safetensors file, or of a .pt or .pth file of plain tensors"
    )
    architecture: dict[str, Any] = Field(
        {"name": "small_resnet"}, description="a backbone section; its weights are not loaded"
    )
    prefix: str = Field("", description="prefix of the backbone's keys in the file")
    classifier: str = Field(
        "", description="key of the classifier in the file, without .weight; empty: none"
    )
    rename: dict[str, str] = Field(
        {},
        description="regular expressions and what replaces them in the file's keys, in this order, "
        "after prefix; ^ is a key's start",
    )


def build(settings: Settings) -> nn.Module:
    """The architecture with random weights; seed torch first."""
    module, inner = config.backbone(settings.architecture)
    backbone: nn.Module = module.build(inner)
    return backbone


def pretrained(settings: Settings) -> weight_files.Pretrained:
    """The backbone with the file's weights."""
    return weight_files.pretrained(
        build(settings),
        Path(settings.weights),
        prefix=settings.prefix,
        classifier=settings.classifier,
        required=bool(settings.classifier),
        rename=settings.rename,
    )
