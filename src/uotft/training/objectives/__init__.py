"""Training objectives: one file each.

An objective's module has ``Settings``; ``ROUTES``, {output: (part of the batch, head)}; and one of

- ``terms(outputs, labels, weight)``: from {output: logits (n, classes)}, {part: labels (n,)} and
  lambda to {name: (loss, weight)};
- ``prepare(context, settings)``, if it needs more than lambda: called once, before the first step,
  it returns a function of outputs and labels.

The loop sums weight * loss and logs each loss under its name. This file does not import torch, so
that checking the names in params.yaml stays fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from uotft.core.settings import Recipe, Train

Terms = Callable[["dict[str, Tensor]", "dict[str, Tensor]"], "dict[str, tuple[Tensor, float]]"]
Seen = Callable[[], "tuple[Tensor, Tensor]"]

#: Objectives that make no step. Named here, since their modules import torch.
UNTRAINED = {"frozen"}


@dataclass(frozen=True)
class StartingPoint:
    """What an objective may read before the first step.

    ``weight`` is lambda; ``backbone`` and ``head`` (that of the target) are the network's own, at
    their starting weights. ``seen_target`` and ``seen_source`` return the pre-trained classifier's
    logits (n, all source classes) and the labels (n,): of the seed's labelled target images, and of
    the source's validation images, of a source by class those of the kept classes. Each call costs
    a forward pass. ``classes`` are the classifier's rows for the kept classes, in the order of the
    source head; empty for clusters.
    """

    weight: float
    backbone: nn.Module
    head: nn.Module
    seen_target: Seen
    seen_source: Seen
    classes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def parts(module: ModuleType) -> set[str]:
    """The parts of the batch that an objective reads."""
    return {part for part, _ in module.ROUTES.values()}


def heads(module: ModuleType) -> set[str]:
    """The heads that an objective trains."""
    return {head for _, head in module.ROUTES.values()}


def trains(settings: Train) -> bool:
    """Whether an objective makes any step."""
    return settings.objective not in UNTRAINED


def recipe(settings: Train, images: int) -> Recipe:
    """The recipe that is followed on so many target images, with its length in steps."""
    counted = settings.recipe.counted(images, settings.target_batch)
    return counted if trains(settings) else counted.model_copy(update={"steps": 0, "warmup": 0})


def check(settings: Train) -> None:
    """Refuse work after the last step where the network is to stay as it is."""
    for name, off in (("head_steps", 0), ("reestimate_norm", False)):
        if not trains(settings) and (value := getattr(settings, name)):
            raise UserError(
                f"train.objective: {settings.objective} keeps the network as it starts, but "
                f"train.{name}: {str(value).lower()} would change it at the end: set it to "
                f"{str(off).lower()}, or take another objective"
            )


def ready(module: ModuleType, settings: Any, context: StartingPoint) -> Terms:
    """The function that the loop calls at each step."""
    if hasattr(module, "prepare"):
        prepared: Terms = module.prepare(context, settings)
        return prepared
    return partial(module.terms, weight=context.weight)
