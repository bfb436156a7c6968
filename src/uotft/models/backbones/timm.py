"""Any model of timm, convolutional or transformer, with its pre-trained weights or a file's.

`python -c "import timm; print(timm.list_pretrained())"` lists them. Needs the extra `timm`. The
part of a name after the dot says which weights: `resnet18.tv_in1k` are torchvision's.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from uotft.core.errors import UserError
from uotft.core.records import Settings as BaseSettings
from uotft.models import weights as weight_files


class Settings(BaseSettings):
    """Settings of the backbone ``timm``."""

    FILES: ClassVar = ("weights",)

    model: str = Field("resnet18.tv_in1k", description="name of the model in timm")
    weights: str = Field(
        "download",
        description="download: from the Hugging Face hub; or the path of a file of that format; or "
        "none: random weights, which the stage pretrain trains",
    )
    image_size: int = Field(
        0,
        ge=0,
        description="side of the images in pixels, for transformers that accept only one size; 0: "
        "the model's own",
    )


def build(settings: Settings) -> weight_files.Trunk:
    """The backbone with random weights; seed torch first."""
    return _trunk(_create(settings, num_classes=0))


def pretrained(settings: Settings) -> weight_files.Pretrained | None:
    """The backbone with its weights; None if the stage pretrain is to train it."""
    if settings.weights == "none":
        return None
    overlay: dict[str, Any] = {}
    origin = {"file": f"timm/{settings.model}"}
    if settings.weights != "download":
        path = Path(settings.weights)
        state, origin = weight_files.read(path), weight_files.origin(path)
        heads = _create(settings).pretrained_cfg["classifier"]
        if not isinstance(heads, str):  # two heads, as in DeiT's distilled models
            for head in heads:
                weight_files.take_linear(state, head)
        # take the number of classes from the file: timm drops a classifier of another size
        overlay = {"state_dict": state, "num_classes": len(state.get(f"{heads}.weight", ()))}
    options = {"num_classes": overlay["num_classes"]} if overlay else {}
    try:
        model = _create(settings, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  the hub and timm's readers raise anything
        if overlay:
            cause = " ".join(str(error).split())[:600]
            raise UserError(f"{path}: not weights of {settings.model}: {cause}") from error
        raise UserError(
            f"backbone.weights: the weights of {settings.model} cannot be downloaded ({error})"
            f"\n{weight_files.WITHOUT_NETWORK}"
        ) from error
    head = model.get_classifier()
    rows = (head.weight.detach(), head.bias.detach()) if isinstance(head, nn.Linear) else None
    model.reset_classifier(0)
    return weight_files.Pretrained(_trunk(model), rows, origin)


def _trunk(model: Any) -> weight_files.Trunk:
    facts = model.pretrained_cfg
    channels = facts["input_size"][0]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    fixed = tuple(size) if size and facts.get("fixed_input_size") else None
    mean, std = (tuple(facts[name][:channels]) for name in ("mean", "std"))
    return weight_files.Trunk(model, model.head_hidden_size, mean, std, fixed)


def _create(settings: Settings, **options: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "backbone.name: timm is not installed; install the extra: pip install 'uotft[timm]'"
        ) from error

    known = {*timm.list_models(), *timm.list_pretrained()}
    if settings.model not in known:
        near = ", ".join(get_close_matches(settings.model, sorted(known), 5))
        raise UserError(
            f"backbone.model: got {settings.model!r}, which timm {timm.__version__} does not know"
            + (f"; did you mean {near}?" if near else "")
        )
    if settings.image_size:
        options["img_size"] = settings.image_size
    try:
        return timm.create_model(settings.model, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise UserError(
            f"backbone.image_size: {settings.model} takes images of any size; remove image_size"
        ) from error
