"""Joint fine-tuning with a penalty on leaving the pre-trained weights: equation (6) plus L2-SP.

    joint (Liu et al. 2022) + alpha/2 |w - w0|^2 + beta/2 |v|^2 (Li et al. 2018)

w are all parameters of the backbone, w0 their starting values, v the parameters of the target head.
Set ``train.recipe.weight_decay`` to 0, as with ``l2_sp``. The paper has no such experiment.
"""

from __future__ import annotations

from torch import Tensor

from uotft.training.objectives import StartingPoint, Terms, joint, l2_sp

ROUTES = joint.ROUTES


class Settings(l2_sp.Settings):
    """Settings of the objective ``joint_l2_sp``: those of ``l2_sp``."""


def prepare(context: StartingPoint, settings: Settings) -> Terms:
    """The terms of both objectives; both have the same target loss, which counts once."""
    pull = l2_sp.prepare(context, settings)

    def terms(
        outputs: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, float]]:
        """The two mean cross-entropies, and half of each squared distance."""
        return pull(outputs, labels) | joint.terms(outputs, labels, context.weight)

    return terms
