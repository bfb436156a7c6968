"""The labelled images that a seed trains on: some of each class, sampled with the seed.

    shots: 5         5 images of each class
    fraction: 0.2    20 % of each class (Liu et al. 2022, section 4.3: 20, 40, 60 and 80 %)
    longtail: 10     Pareto-distributed classes, the largest 10 times the smallest (section 4.3)

The seed alone decides the order of a class's images, and a subset takes the first. So with one seed
a smaller subset lies inside a larger one, even if the two are of different kinds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError
from uotft.core.settings import Subset

Rows = NDArray[np.int64]


def sample(labels: Rows, subset: Subset, seed: int) -> Rows:
    """The rows of ``subset`` among images with ``labels`` (n,), class by class.

    Raises `UserError` for more shots than a class has images.
    """
    available = np.bincount(labels)
    counts = sizes(available, subset, seed)
    if (counts > available).any():
        label = int(np.argmax(counts > available))
        raise UserError(
            f"subset.shots: got {subset.shots}, but class {label} has only {available[label]} "
            f"training images; choose at most {available.min()}"
        )
    rng = np.random.default_rng(seed)
    classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(available)[:-1])
    parts = [rng.permutation(rows)[:n] for rows, n in zip(classes, counts.tolist(), strict=True)]
    return np.concatenate(parts)


def sizes(available: Rows, subset: Subset, seed: int) -> Rows:
    """The number of images to take of each class (C,), out of ``available`` (C,)."""
    if subset.shots is not None:
        return np.full(len(available), subset.shots)
    if subset.fraction is not None:
        return _some(subset.fraction * available, available)
    if subset.longtail is not None:
        return longtail(available, subset.longtail, seed)
    return available


def longtail(available: Rows, imbalance: float, seed: int) -> Rows:
    """The number of images to take of each class, (C,): Pareto-distributed, as in section 4.3.

    Sizes from a Pareto distribution, sorted, fall as a power of the rank r: n_r = n_1 r^-a, Zipf's
    law (Newman 2005). Here a = log(imbalance) / log(C), so that n_1 / n_C = ``imbalance``. n_1 is
    the size of the smallest class, so that every class has enough images. The seed assigns the
    ranks. Numbers are rounded, to at least one.
    """
    ranks = 1 + np.random.default_rng((seed, 1)).permutation(len(available))
    power = np.log(imbalance) / np.log(max(len(available), 2))
    return _some(available.min() * ranks**-power, available)


def _some(counts: NDArray[np.floating[Any]], available: Rows) -> Rows:
    """``counts`` (C,), rounded; at least one image of each class, and at most all."""
    taken: Rows = np.minimum(np.maximum(np.rint(counts).astype(np.int64), 1), available)
    return taken
