"""Predictions of two strategies for the same test images -> what the second repaired and broke.

An image is repaired if the first is wrong and the second right, on the same seed. It is broken in
the reverse case. Axes: seeds, 2 sides (before, after), n test images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uotft.analysis.statistics import Interval, interval
from uotft.core.records import Answers

Sides = list[tuple[Answers, Answers]]  # (before, after), one pair per seed


@dataclass(frozen=True)
class Confused:
    """How many images of class ``true`` are taken for another, before and after: seed means."""

    true: str
    taken_for: str
    before: float
    after: float
    change: Interval


@dataclass(frozen=True)
class Changed:
    """The test image in ``row``, repaired (or broken) on ``times`` seeds; usual predictions."""

    row: int
    true: str
    before: str
    after: str
    times: int


def of_one_version(answers: dict[str, dict[int, Answers]]) -> dict[str, dict[int, Answers]]:
    """{row: {seed: predictions}} for the test images that most of the predictions are for."""

    def version(found: Answers) -> tuple[str, bytes]:
        return found.data, found.rows.tobytes()

    counts = Counter(version(found) for seeds in answers.values() for found in seeds.values())
    usual = max(counts, key=counts.__getitem__, default=None)
    return {
        row: {seed: found for seed, found in seeds.items() if version(found) == usual}
        for row, seeds in answers.items()
    }


def sides(before: dict[int, Answers], after: dict[int, Answers]) -> Sides:
    """(before, after) for each common seed; all are for the same images (`of_one_version`)."""
    return [(before[seed], after[seed]) for seed in sorted(before.keys() & after.keys())]


def confused(both: Sides, most: int) -> list[Confused]:
    """The ``most`` pairs of classes whose mistakes fell most, then those that rose most."""
    first = both[0][0]
    classes = len(first.names)
    counts = np.array([[_mistakes(answers, classes) for answers in pair] for pair in both])
    change = (counts[:, 1] - counts[:, 0]).mean(0)  # (classes, classes)
    order = np.argsort(change, axis=None, kind="stable")
    pairs = [i for i in order[:most].tolist() if change.flat[i] < 0]
    pairs += [i for i in order[: -most - 1 : -1].tolist() if change.flat[i] > 0]
    found = []
    for true, taken in (divmod(i, classes) for i in pairs):
        before, after = counts[:, :, true, taken].T
        found.append(
            Confused(
                first.names[true],
                first.names[taken],
                float(before.mean()),
                float(after.mean()),
                interval((after - before).tolist()),
            )
        )
    return found


def changed(both: Sides, most: int, *, repaired: bool) -> list[Changed]:
    """The images that most seeds repaired, or broke; seeds that did the reverse are subtracted.

    Images with equal counts are ordered by row.
    """
    wrong = np.array([[a.predicted != a.labels for a in pair] for pair in both])
    turn = (
        wrong[:, 0].astype(int) - wrong[:, 1] if repaired else wrong[:, 1].astype(int) - wrong[:, 0]
    )
    net = turn.sum(0)
    found = []
    for image in np.argsort(-net, kind="stable")[:most].tolist():
        if net[image] <= 0:
            break
        seeds = np.flatnonzero(turn[:, image] > 0).tolist()
        first = both[0][0]
        before, after = (
            first.names[_usual([both[s][side].predicted[image] for s in seeds])] for side in (0, 1)
        )
        true = first.names[first.labels[image]]
        found.append(Changed(int(first.rows[image]), true, before, after, len(seeds)))
    return found


def turned(both: Sides) -> tuple[Interval, Interval]:
    """The number of images repaired, and broken: means over seeds."""
    wrong = np.array([[a.predicted != a.labels for a in pair] for pair in both])
    before, after = wrong[:, 0], wrong[:, 1]
    repaired, broken = (before & ~after).sum(1), (~before & after).sum(1)
    return interval(repaired.tolist()), interval(broken.tolist())


def _mistakes(answers: Answers, classes: int) -> NDArray[np.int64]:
    """The confusion matrix without its diagonal."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers.labels, answers.predicted), 1)
    np.fill_diagonal(counts, 0)
    return counts


def _usual(values: list[int]) -> int:
    return Counter(values).most_common(1)[0][0]
