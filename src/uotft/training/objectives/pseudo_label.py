"""Joint fine-tuning on unlabelled source images, equation (7) of Liu et al. (2022).

    1/n sum f(theta; x_t, y_t) + lambda/m sum h(theta; strong(x'_s), p(y_t | weak(x'_s)))

There is one head, that of the target. Its prediction on the weak view of a kept source image is the
soft label for its prediction on the strong view, as in FixMatch (Sohn et al. 2020). No gradient
passes through the weak view, and no source label is read. The paper neither sharpens predictions
nor drops uncertain images; settings allow both.
"""

from __future__ import annotations

from functools import partial

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from uotft.core.records import Settings as BaseSettings
from uotft.models.network import TARGET
from uotft.training.objectives import StartingPoint, Terms

ROUTES = {**TARGET, "weak": ("source", "target"), "strong": ("strong", "target")}


class Settings(BaseSettings):
    """Settings of the objective ``pseudo_label``; the defaults are the paper's."""

    temperature: float = Field(1.0, gt=0, description="below 1 sharpens the weak view's prediction")
    threshold: float = Field(
        0.0, ge=0, le=1, description="images whose largest probability is lower do not count"
    )


def prepare(context: StartingPoint, settings: Settings) -> Terms:
    """The terms with lambda and the settings filled in."""
    return partial(terms, weight=context.weight, settings=settings)


def terms(
    outputs: dict[str, Tensor], labels: dict[str, Tensor], weight: float, settings: Settings
) -> dict[str, tuple[Tensor, float]]:
    """Cross-entropy on the target, and of the strong view against the weak view's prediction.

    The second sum is divided by all m images, as in equation (7), however many pass the threshold.
    So the loss is 0 if none passes, and the mean over processes is right even if they keep
    different numbers.
    """
    target = functional.cross_entropy(outputs["target"], labels["target"])
    weak = outputs["weak"].detach()
    kept = weak.softmax(1).amax(1) >= settings.threshold
    soft = (weak / settings.temperature).softmax(1)
    each = functional.cross_entropy(outputs["strong"], soft, reduction="none")
    return {"target": (target, 1.0), "source": ((each * kept).mean(), weight)}
