"""Accuracies from an integer confusion matrix (T, T): row = true class, column = predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """The matrix (classes, classes) of true labels (n,) and predicted ones (n,)."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def top1(confusion: NDArray[np.int64]) -> float:
    """The share of all images whose predicted class is right, in percent."""
    return 100 * float(np.trace(confusion) / confusion.sum())


def mean_per_class(confusion: NDArray[np.int64]) -> float:
    """The mean over classes of the share predicted right, in percent; no empty classes."""
    counts = confusion.sum(1)
    return 100 * float((np.diag(confusion)[counts > 0] / counts[counts > 0]).mean())


def at_chance(correct: int, images: int, classes: int) -> bool:
    """Whether ``correct`` of ``images`` cannot be told from guessing one of ``classes``.

    By a one-sided binomial test at 5 %; of few images a good model cannot be told either.
    """
    from scipy.stats import binomtest

    if not images or classes < 2:
        return False
    return bool(binomtest(correct, images, 1 / classes, alternative="greater").pvalue > 0.05)
