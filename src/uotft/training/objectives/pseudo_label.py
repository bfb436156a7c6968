"""Joint fine-tuning on unlabelled source images, equation (7) of Liu et al. (2022).

    1/n sum f(theta; x_t, y_t) + lambda/m sum h(theta; strong(x'_s), p(y_t | weak(x'_s)))

There is one head, the target's. Its prediction on the weak view of a kept source image is the soft
target of its prediction on the strong view, as in FixMatch (Sohn et al. 2020); no gradient passes
through the weak view. No label of a source image is read. The paper sharpens nothing and leaves
nothing out; both are settings.
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
    """Cross-entropy on the target, and of the strong view against the weak one's prediction.

    The second sum is divided by all m images, as equation (7) does, whatever the threshold leaves:
    an empty mask gives 0, and processes that keep different numbers still average to the mean.
    """
    target = functional.cross_entropy(outputs["target"], labels["target"])
    weak = outputs["weak"].detach()
    kept = weak.softmax(1).amax(1) >= settings.threshold
    soft = (weak / settings.temperature).softmax(1)
    each = functional.cross_entropy(outputs["strong"], soft, reduction="none")
    return {"target": (target, 1.0), "source": ((each * kept).mean(), weight)}
