"""Training objectives: one file each.

A module holds ``Settings``; ``ROUTES``, which says what the network is asked for; and either

- ``terms(outputs, labels, weight)``: from {output: logits (n, classes)}, {part: labels (n,)} and
  lambda to {name: (loss, weight)}; or
- ``prepare(context, settings)``, where it needs more than lambda: it is called once, before the
  first step, and returns the function of outputs and labels.

The loop adds weight * loss and logs every loss by its name. Nothing here imports torch before an
objective is loaded, because params.yaml is checked against the names alone.
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
    """What an objective may build on before the first step.

    ``weight`` is lambda; ``backbone`` and ``head`` (of the target) are the network's own, at their
    starting weights. ``seen_target`` and ``seen_source`` give the pre-trained classifier's logits
    (n, all source classes), and the labels (n,), of the seed's labelled target images and of the
    source images that pre-training held out; they cost a forward pass when called. ``classes`` are
    the rows of that classifier which a source head over kept classes stands for; none for clusters.
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
    """The heads that it trains."""
    return {head for _, head in module.ROUTES.values()}


def ready(module: ModuleType, settings: Any, context: StartingPoint) -> Terms:
    """The function that the loop calls at every step."""
    if hasattr(module, "prepare"):
        prepared: Terms = module.prepare(context, settings)
        return prepared
    return partial(module.terms, weight=context.weight)
