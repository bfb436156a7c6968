"""Plain fine-tuning: cross-entropy on the target images, equation (2) of Liu et al. (2022).

This objective reads no source images, so it ignores the selected classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from uotft.core.records import Settings as BaseSettings
from uotft.models.network import TARGET

ROUTES = TARGET


class Settings(BaseSettings):
    """The objective ``plain`` has no settings."""


def terms(
    outputs: dict[str, Tensor], labels: dict[str, Tensor], weight: float
) -> dict[str, tuple[Tensor, float]]:
    """The mean cross-entropy of the target head over the target batch; ``weight`` is not used."""
    return {"target": (functional.cross_entropy(outputs["target"], labels["target"]), 1.0)}
