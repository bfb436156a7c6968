"""Co-tuning (You et al. 2020): the pre-trained classifier keeps learning, from target images.

    1/n sum f(theta; x_t, y_t) + weight/n sum CE(h(theta; x_t), p(y_s | y_t))

h is the head of the pre-trained classifier, over all source classes. p(y_s | y_t) relates target
classes to source classes before training, by the paper's direct approach: the mean of the
classifier's probabilities over the seed's labelled images of the target class. As in the paper, the
classifier is calibrated first: one temperature is fitted on the source's validation images. The
paper's reverse approach, which learns p(y_t | y_s) and applies Bayes' rule, needs more than a few
labelled images per class and is not implemented.

This objective reads no source images, so it ignores the selected classes. A source by class is the
exception: its validation images are those of the selected classes.
"""

from __future__ import annotations

from math import exp

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from uotft.core.records import Settings as BaseSettings
from uotft.models.network import TARGET
from uotft.training.objectives import StartingPoint, Terms

ROUTES = {**TARGET, "classifier": ("target", "source")}


class Settings(BaseSettings):
    """Settings of the objective ``co_tuning``."""

    weight: float = Field(1.0, ge=0, description="of the pre-trained head's loss")
    calibrate: bool = Field(True, description="fit a temperature before relating the classes")


def prepare(context: StartingPoint, settings: Settings) -> Terms:
    """Compute p(y_s | y_t) once; the terms look up the row of each image's class."""
    scale = inverse_temperature(*context.seen_source()) if settings.calibrate else 1.0
    logits, labels = context.seen_target()
    device = next(context.backbone.parameters()).device
    relation_TS = relation(scale * logits, labels).to(device)

    def terms(
        outputs: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, float]]:
        """The two mean cross-entropies over the target batch."""
        soft = relation_TS[labels["target"]]
        return {
            "target": (functional.cross_entropy(outputs["target"], labels["target"]), 1.0),
            "classifier": (functional.cross_entropy(outputs["classifier"], soft), settings.weight),
        }

    return terms


def relation(logits: Tensor, labels: Tensor) -> Tensor:
    """p(y_s | y_t) (T, S): the mean prediction of each target class; logits (n, S), labels (n,)."""
    probabilities = logits.softmax(1)
    return torch.stack([probabilities[labels == c].mean(0) for c in range(int(labels.max()) + 1)])


def inverse_temperature(logits: Tensor, labels: Tensor) -> float:
    """The positive factor on ``logits`` (n, S) with the least cross-entropy (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_scale: float) -> float:
        return float(functional.cross_entropy(logits * exp(log_scale), labels))

    found = minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded")
    return exp(found.x)
