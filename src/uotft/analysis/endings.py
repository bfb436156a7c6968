"""Trainings that ended badly: below where they began, at chance, or far below the other seeds.

`uotft train` says the first two in its last line and in the tag `uotft.warning` of the MLflow run;
every comparison says all three below its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from statistics import median

from uotft.training import metrics

ADVICE = "try a lower train.recipe.learning_rate, train.batch_norm: frozen, or fewer steps"
ERRORS = 2.5  # standard errors that a fall must exceed
FAR, SPREADS = 10.0, 5.0  # points, and median absolute deviations


def fell(start: float, end: float, images: int) -> bool:
    """Whether a validation top-1 fell from ``start`` to ``end``, in %, by more than chance.

    That is by more than 2.5 standard errors of the difference of two binomial shares of so many
    ``images``. Both are of the same images, so their difference varies less than that: a fall that
    is found is one, also among dozens of trainings, and a small one of few images is not found.
    """
    shares = start / 100, end / 100
    error = 100 * sqrt(sum(share * (1 - share) for share in shares) / images) if images else 100.0
    return start - end > ERRORS * error


def fall(curve: Mapping[int, float], images: int) -> str:
    """That a training ended below its start, with both numbers, or "".

    ``curve`` is {step: validation top-1 in %} on so many ``images``. A training that is validated
    at its end alone (eval_every: 0) has no start to compare with.
    """
    if 0 not in curve or not fell(curve[0], end := curve[max(curve)], images):
        return ""
    return (
        f"validation top-1 ended at {end:.2f} %, below its start of {curve[0]:.2f} % "
        f"({images} images)"
    )


def warning(curve: Mapping[int, float], images: int, classes: int) -> str:
    """What is wrong with the end of a training on so many ``classes``, or ""; see `fall`."""
    if not curve or not images:
        return ""
    if found := fall(curve, images):
        return found
    end = curve[max(curve)]
    if metrics.at_chance(round(end * images / 100), images, classes):
        return (
            f"validation top-1 of {end:.2f} % of {images} images cannot be told from chance "
            f"({100 / classes:.1f} %)"
        )
    return ""


def collapsed(values: Mapping[int, float]) -> list[int]:
    """The seeds of a row that lie far below its others; ``values`` is {seed: top-1 in %}.

    Far is below the median by more than 10 points and by more than 5 median absolute deviations.
    Neither moves much with one odd seed, as mean and standard deviation would. Of six normal seeds
    with a standard deviation of 3 points, one row in 500 has such a seed by chance. Two seeds never
    have one: nothing says which of them is odd.
    """
    if not values:
        return []
    middle = median(values.values())
    spread = median(abs(value - middle) for value in values.values())
    least = middle - max(FAR, SPREADS * spread)
    return [seed for seed, value in values.items() if value < least]
