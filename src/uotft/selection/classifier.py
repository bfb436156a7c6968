"""The rows of a pre-trained classifier in place of class means: selection without a source image.

A row w_c of the linear layer gives class c the score w_c . f + b_c. So features f of class c point
along w_c, and the cosine between a row and a target mean says how like that class the target is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uotft.core.records import ClassBank


def classifier_bank(
    weight: NDArray[np.float32], bias: NDArray[np.float32], names: tuple[str, ...], weights: str
) -> ClassBank:
    """The bank of a classifier: ``weight`` (classes, D), ``bias`` (classes,), one name a row.

    ``weights`` is the fingerprint of the backbone. The rows are taken as they are.
    """
    return ClassBank(
        np.asarray(weight), names, np.ones(len(names), np.int64), weights=weights, classifier=True
    )
