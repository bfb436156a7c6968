"""Kept units -> the source images to train on; a seed's target images -> their class means."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Floats, ImageSet, SourcePart
from uotft.core.text import some

NAMED = 3  # unknown classes that a message names


def part_of(bank: ClassBank, images: ImageSet, kept: NDArray[np.int64]) -> SourcePart:
    """The training images of the ``kept`` units (k,), with labels for the source head.

    The label is the image's class, or with clusters its cluster. Kept classes and clusters are
    numbered by rank; with single images, their classes are numbered in the source's order.
    """
    number = np.full(len(bank.names), -1)
    number[kept] = np.arange(len(kept))
    labels = number[members(bank, images)]
    rows, labels = images.rows("train")[labels >= 0], labels[labels >= 0]
    names, classes = tuple(bank.names[row] for row in kept), kept
    means = bank.head_means()[kept]
    if bank.unit == "image":
        classes, labels = np.unique(images.labels[rows], return_inverse=True)
        names = tuple(images.names[c] for c in classes)
        points = bank.head_means()[np.sort(kept)]  # one row per image, in the order of ``rows``
        means = np.array([points[labels == c].mean(0) for c in range(len(classes))])
    elif bank.unit == "cluster":
        classes = kept[:0]
    held_out = _held_out(bank, images, kept)
    return SourcePart(images, rows, labels, names, classes, means, bank.backbone, held_out)


def members(bank: ClassBank, images: ImageSet) -> NDArray[np.int64]:
    """The unit (n,) of each training image; by its class's name where the bank was made without."""
    if len(bank.members) or not images.names:
        return bank.members
    return _by_name(bank, images)[images.labels[images.rows("train")]]


def _held_out(
    bank: ClassBank, images: ImageSet, kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The validation images (v,) and the classifier's row (v,) of each.

    Of a source by class only those of ``kept`` classes: other selections bring more of them.
    """
    rows = images.rows("val")
    if len(bank.members) or not images.names:
        return rows, images.labels[rows]
    classes = _by_name(bank, images)[images.labels[rows]]
    ours = np.isin(classes, kept)
    return rows[ours], classes[ours]


def _by_name(bank: ClassBank, images: ImageSet) -> NDArray[np.int64]:
    """The bank's row of each class of the source."""
    place = {name: row for row, name in enumerate(bank.names)}
    unknown = [name for name in images.names if name not in place]
    if unknown:
        raise UserError(
            f"{bank.file or 'the bank'}: no row for {some(unknown, NAMED)}, classes of the source: "
            "its names must be those of the bank"
        )
    return np.array([place[name] for name in images.names], np.int64)


def target_bank(pool: dict[str, NDArray[Any]], sampled: NDArray[np.int64], file: str) -> ClassBank:
    """Class means of the ``sampled`` rows (n,) of a target's features, read from ``file``."""
    labels, names = pool["labels"][sampled], tuple(pool["names"].tolist())
    counts = np.bincount(labels, minlength=len(names))

    def means(array: NDArray[Any]) -> Floats:
        points = array[sampled].astype(np.float32)
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
