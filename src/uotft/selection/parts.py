"""The images that units and seeds mean: the part of the source that is kept, a target's means."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.records import ClassBank, Floats, ImageSet, SourcePart


def part_of(bank: ClassBank, images: ImageSet, kept: NDArray[np.int64]) -> SourcePart:
    """The training ``images`` of the units kept: a label is a class, but for clusters a cluster.

    Kept classes and clusters are numbered by rank, the classes of kept images in their own order.
    """
    number = np.full(len(bank.names), -1)
    number[kept] = np.arange(len(kept))
    labels = number[bank.members]
    rows, labels = images.rows("train")[labels >= 0], labels[labels >= 0]
    names, classes = tuple(bank.names[row] for row in kept), kept
    means = bank.head_means()[kept]
    if bank.unit == "image":
        classes, labels = np.unique(images.labels[rows], return_inverse=True)
        names = tuple(images.names[c] for c in classes)
        points = bank.head_means()[np.sort(kept)]  # a row an image, in the order of ``rows``
        means = np.array([points[labels == c].mean(0) for c in range(len(classes))])
    elif bank.unit == "cluster":
        classes = kept[:0]
    return SourcePart(images, rows, labels, names, classes, means, bank.backbone)


def target_bank(pool: dict[str, NDArray[Any]], drawn: NDArray[np.int64], file: str) -> ClassBank:
    """Class means of the ``drawn`` rows of a target's features, which come from ``file``."""
    labels, names = pool["labels"][drawn], tuple(pool["names"].tolist())
    counts = np.bincount(labels, minlength=len(names))

    def means(array: NDArray[Any]) -> Floats:
        points = array[drawn].astype(np.float32)
        parts = [points[labels == c].mean(0) for c in range(len(names))]
        return np.stack(parts).astype(np.float64)

    return ClassBank(
        means(pool["features"]),
        names,
        counts,
        str(pool["backbone"]),
        file=file,
        trunk=means(pool["trunk"]) if "trunk" in pool else np.empty((0, 0)),
    )
