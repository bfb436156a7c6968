"""The rows of a pre-trained classifier in place of the class means of its source: no image needed.

A row w_s is a direction that tells class s from the others, and leaves out what it shares with its
neighbours. Class means have what neighbours share, and that is why they find kinds: birds for a few
birds. So each row becomes the sum of all rows, each weighted by its likeness to that row:

    r_s = sum_q (v_s . v_q) v_q,    v_s = w_s - mean row

r_s . f, for a target mean f, is then the sum of the centred logits v_q . f of all classes q,
weighted in the same way. docs/experiments/source-means.md compares this with other forms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Floats
from uotft.selection.transport.costs import unit


def stand_ins(weight: ArrayLike) -> Floats:
    """``means`` of a bank (S, D) from the weight (S, D) of a classifier; for the metric cosine.

    Uses all rows, so choose those of a part of the classes afterwards. The bias is of no use here.
    All rows have length one: a row's own length says nothing, and under l2 it would decide alone.
    They are no means of features: a head of the source must not start from them.
    Rows that are all alike, or fewer than two, are a ``UserError``.
    """
    rows = np.asarray(weight, np.float64)
    centred = rows - rows.mean(0)
    sums = centred @ (centred.T @ centred)
    if not sums.any(1).all():
        raise UserError(
            f"source_means: classifier: {len(rows)} rows of the classifier do not tell the classes "
            "apart; give class means of images instead"
        )
    return unit(sums)


def classifier_bank(weight: ArrayLike, names: tuple[str, ...], weights: str) -> ClassBank:
    """The bank of a classifier: ``weight`` (classes, D), one name a row.

    ``weights`` is the fingerprint of the backbone.
    """
    counts = np.ones(len(names), np.int64)
    return ClassBank(stand_ins(weight), names, counts, weights=weights, classifier=True)
