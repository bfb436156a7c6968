"""The rows of a pre-trained classifier in place of the class means of its source: no image needed.

A row w_s is a direction that tells class s from the others, and leaves out what it shares with its
neighbours. Class means have what neighbours share, and that is why they find kinds: birds for a few
birds. So each row becomes the sum of all rows, each weighted by its likeness to that row:

    r_s = sum_q (v_s . v_q) v_q,    v_s = w_s - mean row

The cosine of r_s and a target mean f is then, up to the lengths, the sum of the centred logits v_q
. f of all classes q, weighted in the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from uotft.core.records import ClassBank, Floats


def stand_ins(weight: ArrayLike) -> Floats:
    """``means`` of a bank (S, D) from the weight of a classifier (S, D); for the metric cosine.

    Uses all rows, so choose those of a part of the classes afterwards. The bias is of no use here.
    Two rows at least.
    """
    rows = np.asarray(weight, np.float64)
    centred = rows - rows.mean(0)
    return np.asarray(centred @ (centred.T @ centred))


def classifier_bank(weight: ArrayLike, names: tuple[str, ...], weights: str) -> ClassBank:
    """The bank of a classifier: ``weight`` (classes, D), one name a row.

    ``weights`` is the fingerprint of the backbone.
    """
    counts = np.ones(len(names), np.int64)
    return ClassBank(stand_ins(weight), names, counts, weights=weights, classifier=True)
