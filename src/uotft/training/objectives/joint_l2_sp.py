"""Joint fine-tuning, pulled back to the pre-trained weights: equation (6) and L2-SP together.

    joint (Liu et al. 2022) + alpha/2 |w - w0|^2 + beta/2 |v|^2 (Li et al. 2018)

w are all parameters of the backbone, w0 what they start from, and v those of the target head. As
with ``l2_sp``, set ``train.recipe.weight_decay`` to 0 with it. The paper has no such experiment.
"""

from __future__ import annotations

from torch import Tensor

from uotft.training.objectives import StartingPoint, Terms, joint, l2_sp

ROUTES = joint.ROUTES


class Settings(l2_sp.Settings):
    """Settings of the objective ``joint_l2_sp``: those of ``l2_sp``."""


def prepare(context: StartingPoint, settings: Settings) -> Terms:
    """The terms of both; the target's own is the same in both."""
    pull = l2_sp.prepare(context, settings)

    def terms(
        outputs: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, float]]:
        """The two mean cross-entropies, and half of each squared distance."""
        return pull(outputs, labels) | joint.terms(outputs, labels, context.weight)

    return terms
