"""L2-SP (Li et al. 2018): fine-tuning with a penalty on leaving the pre-trained weights.

    1/n sum f(theta; x_t, y_t) + alpha/2 |w - w0|^2 + beta/2 |v|^2

w are all parameters of the backbone, w0 their starting values, v the parameters of the new head.
The penalty replaces weight decay, which would pull the same weights to zero: set
``train.recipe.weight_decay`` to 0.

This objective reads no source images, so it ignores the selected classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from uotft.core.records import Settings as BaseSettings
from uotft.models.network import TARGET
from uotft.training.objectives import StartingPoint, Terms

ROUTES = TARGET


class Settings(BaseSettings):
    """Settings of the objective ``l2_sp``."""

    alpha: float = Field(0.1, ge=0, description="pull of the backbone to its starting weights")
    beta: float = Field(0.01, ge=0, description="pull of the new head to zero")


def prepare(context: StartingPoint, settings: Settings) -> Terms:
    """Copy the starting weights; the terms read the network's current ones at each step."""
    backbone, head = list(context.backbone.parameters()), list(context.head.parameters())
    start = [w.detach().clone() for w in backbone]

    def terms(
        outputs: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, float]]:
        """The mean cross-entropy over the target batch, and half of each squared distance."""
        moved = [w - w0 for w, w0 in zip(backbone, start, strict=True)]
        return {
            "target": (functional.cross_entropy(outputs["target"], labels["target"]), 1.0),
            "start": (_half_square(moved), settings.alpha),
            "head": (_half_square(head), settings.beta),
        }

    return terms


def _half_square(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum() / 2
