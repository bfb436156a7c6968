"""Costs between class means, and the checks that means must pass.

Axes: S source classes, T target classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Floats

Metric = Literal["cosine", "l2"]
BLOCK = 16384  # source rows whose costs are in memory at once


class BadMeans(UserError):
    """Means from which no cost can be computed; the message names the file and the row."""


def cost(source: ClassBank, target: ClassBank, metric: Metric) -> Floats:
    """The cost (S, T): 1 - cosine, or the Euclidean distance, between class means."""
    check(source, target, metric)
    return _cost(source.means, target.means, metric)


def by_row(
    source: ClassBank, target: ClassBank, metric: Metric, reduce: Callable[[Floats], Floats]
) -> Floats:
    """Apply ``reduce``, from (rows, T) to (rows,), to the cost in blocks of source rows: (S,)."""
    check(source, target, metric)
    starts = range(0, len(source.means), BLOCK)
    blocks = (_cost(source.means[i : i + BLOCK], target.means, metric) for i in starts)
    return np.concatenate([reduce(block) for block in blocks])


def _cost(source_SD: Floats, target_TD: Floats, metric: Metric) -> Floats:
    source_SD, target_TD = source_SD.astype(np.float64), target_TD.astype(np.float64)
    if metric == "cosine":
        return np.asarray(1 - unit(source_SD) @ unit(target_TD).T)
    squares = np.square(source_SD).sum(1)[:, None] + np.square(target_TD).sum(1)
    return np.asarray(np.sqrt(np.maximum(squares - 2 * source_SD @ target_TD.T, 0)))


def check(source: ClassBank, target: ClassBank, metric: Metric) -> None:
    """Raise ``BadMeans`` for values that are not finite, zero vectors under the cosine, and unequal
    dimensions."""
    check_lengths(source, metric)
    for bank, side in ((source, "source"), (target, "target")):
        where = f"{bank.file or side}: class"
        # the sum is a quick test; only if it fails are the rows searched
        if not np.isfinite(bank.means.sum(dtype=np.float64)):  # halves end at 65504
            _refuse(bank, where, ~np.asarray(np.isfinite(bank.means).all(1)), "NaN or infinite")
        if metric == "cosine":
            _refuse(
                bank,
                where,
                ~np.asarray(bank.means.any(1)),
                "all zero, and the cosine needs a direction",
            )
    if source.means.shape[1] != target.means.shape[1]:
        raise BadMeans(
            f"{source.file or 'source'} has means of {source.means.shape[1]} features and "
            f"{target.file or 'target'} of {target.means.shape[1]}: make both with one backbone"
        )


def check_lengths(source: ClassBank, metric: Metric) -> None:
    """Raise ``BadMeans`` for the rows of a classifier under any metric but the cosine."""
    if source.classifier and metric != "cosine":
        raise BadMeans(
            f"metric: got {metric!r}, but {source.file or 'source'} holds rows of a classifier: "
            "their lengths compare with no feature's, only their directions do: choose cosine"
        )


def _refuse(bank: ClassBank, where: str, wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise BadMeans(
            f"{where} {bank.names[row]!r} (row {row}): its mean is {what}; "
            f"{int(wrong.sum())} such rows in all"
        )


def unit(means: Floats) -> Floats:
    """Rows scaled to length one; first by their largest entry, so that no square overflows."""
    means = means / np.abs(means).max(1, keepdims=True)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))
