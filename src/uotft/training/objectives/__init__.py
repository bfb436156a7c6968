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

if TYPE_CHECKING:
    from torch import Tensor, nn

Terms = Callable[["dict[str, Tensor]", "dict[str, Tensor]"], "dict[str, tuple[Tensor, float]]"]
Seen = Callable[[], "tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class StartingPoint:
    """What an objective may read before the first step.

    ``weight`` is lambda; ``backbone`` and ``head`` (that of the target) are the network's own, at
    their starting weights. ``seen_target`` and ``seen_source`` return the pre-trained classifier's
    logits (n, all source classes) and the labels (n,): of the seed's labelled target images, and of
    the source's validation images. Each call costs a forward pass. ``classes`` are the classifier's
    rows for the kept classes, in the order of the source head; empty for clusters.
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


def ready(module: ModuleType, settings: Any, context: StartingPoint) -> Terms:
    """The function that the loop calls at each step."""
    if hasattr(module, "prepare"):
        prepared: Terms = module.prepare(context, settings)
        return prepared
    return partial(module.terms, weight=context.weight)
