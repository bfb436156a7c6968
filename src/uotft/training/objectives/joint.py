"""Joint fine-tuning with two heads, equation (6) of Liu et al. (2022).

    1/n sum f(theta; x_t, y_t) + lambda/m sum h(theta; x'_s, y'_s)

f and h are cross-entropies; each head sees only its own part of the batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from uotft.core.records import Settings as BaseSettings
from uotft.models.network import TARGET

ROUTES = {**TARGET, "source": ("source", "source")}


class Settings(BaseSettings):
    """The objective ``joint`` has no settings of its own; lambda is ``train.lambda``."""


def terms(
    outputs: dict[str, Tensor], labels: dict[str, Tensor], weight: float
) -> dict[str, tuple[Tensor, float]]:
    """The two mean cross-entropies; the source's weight is lambda."""
    loss = {name: functional.cross_entropy(outputs[name], labels[name]) for name in outputs}
    return {"target": (loss["target"], 1.0), "source": (loss["source"], weight)}
