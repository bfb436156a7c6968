"""The few labelled images that one seed may see: a seeded draw of N images a class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uotft.errors import UserError


def few_shot(labels: NDArray[np.int64], shots: int | None, seed: int) -> NDArray[np.int64]:
    """Row numbers of ``shots`` images of every class; fewer shots of a seed are among more.

    None are all of them.
    """
    if shots is None:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    parts = []
    for label in range(int(labels.max()) + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < shots:
            raise UserError(
                f"subset.shots: got {shots}, but class {label} has {len(rows)} training images"
            )
        parts.append(rows[:shots])
    return np.concatenate(parts)
