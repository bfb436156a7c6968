"""Joint fine-tuning whose source head also learns from target images.

    joint (Liu et al. 2022) + weight/n sum CE(h(theta; x_t), p(y_s | y_t)) (You et al. 2020)

h is the source head of equation (6), over the kept classes. p(y_s | y_t) is that of ``co_tuning``
restricted to the kept classes: the calibrated classifier's probabilities of these classes, scaled
to sum to one. The paper has no such experiment.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from uotft.core.errors import UserError
from uotft.training.objectives import StartingPoint, Terms, co_tuning, joint

ROUTES = {**joint.ROUTES, "classifier": ("target", "source")}


class Settings(co_tuning.Settings):
    """Settings of the objective ``joint_co_tuning``: those of ``co_tuning``."""


def prepare(context: StartingPoint, settings: Settings) -> Terms:
    """Compute p(y_s | y_t) once; the terms look up the row of each image's class.

    Clusters are a ``UserError``: the pre-trained classifier has no probabilities for them.
    """
    if not len(context.classes):
        raise UserError(
            "train.objective: got 'joint_co_tuning', which needs classes that the pre-trained "
            "classifier knows; with select.unit: cluster there are none; choose class or image"
        )
    scale = co_tuning.inverse_temperature(*context.seen_source()) if settings.calibrate else 1.0
    logits, seen = context.seen_target()
    device = next(context.backbone.parameters()).device
    relation_TK = co_tuning.relation(scale * logits[:, context.classes], seen).to(device)

    def terms(
        outputs: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, float]]:
        """The three mean cross-entropies."""
        both = {name: outputs[name] for name in joint.ROUTES}
        soft = relation_TK[labels["target"]]
        classifier = functional.cross_entropy(outputs["classifier"], soft)
        return {
            **joint.terms(both, labels, context.weight),
            "classifier": (classifier, settings.weight),
        }

    return terms
