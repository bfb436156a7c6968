"""Scores -> the K kept classes, clusters or images; the order of ties is stable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import Impossible, UserError
from uotft.core.records import Scores, Selection

DIGITS = 10  # scores equal to this many decimals are ties; smaller differences are rounding errors
SERVED = 5  # target classes listed for each kept class


def order(scores: Scores, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Rows of all classes that can be kept, best first; equal scores are ordered by name.

    Names are ordered by value if all are numbers. Classes scored -inf are never kept.
    """
    if np.isnan(scores.values).any():
        raise UserError(
            f"the score of class {names[int(np.isnan(scores.values).argmax())]!r} is NaN"
        )
    ties = np.array(names)
    if np.char.isdecimal(ties).all():
        ties = np.char.zfill(ties, max(map(len, names)))  # also beyond 64 bits
    rows = np.lexsort((ties, -np.round(scores.values, DIGITS)))
    return rows[scores.values[rows] > -np.inf]


def keep(
    scores: Scores,
    names: tuple[str, ...],
    top_k: int,
    groups: tuple[str, ...] = (),
    most: int = 0,
) -> NDArray[np.int64]:
    """Rows of the ``top_k`` best classes, best first.

    Fewer than ``top_k`` if more classes score -inf, or with ``most`` > 0: at most that many rows of
    each group are kept, where ``groups`` has one entry per row.
    """
    check(top_k, len(names))
    best = order(scores, names)
    if most:
        best = _capped(best, groups, most)
    return best[:top_k]


def check(top_k: int, units: int) -> None:
    """Raise `Impossible` for a K that the number of classes, clusters or images does not allow."""
    if top_k < 1 or top_k > units:
        raise Impossible(
            f"select.top_k: got {top_k}, but the source has only {units} classes, "
            f"clusters or images (select.unit says which); choose 1 to {units}"
        )


def carriers(scores: Scores, names: tuple[str, ...], mass_share: float) -> int:
    """K from the plan: the fewest classes that carry ``mass_share`` of the mass sum(P 1).

    ``scores`` are log P 1. Why: theorem 1 (Liu et al. 2022) bounds the target's risk with delta^2,
    a maximum over the source samples in use, so a class that serves no target class can only raise
    it. The target marginal binds, so the transported mass measures how well the target is covered;
    the classes beyond ``mass_share`` add at most 1 - ``mass_share`` to that.
    """
    log_mass = scores.values[order(scores, names)]
    mass = np.exp(log_mass - log_mass[0])
    # with a share of 1, a rounding error must not add or drop a class
    return int(np.searchsorted(mass.cumsum(), mass_share * mass.sum() * (1 - 1e-12))) + 1


def recall(kept: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Percentage of the ``expected`` rows that are among the ``kept`` ones."""
    return 100 * len(np.intersect1d(kept, expected)) / len(expected)


def serves(selection: Selection, most: int = SERVED) -> list[list[dict[str, Any]]]:
    """For each kept class, the ``most`` target classes that get its mass, largest share first.

    ``share`` is the share of the class's own mass; ``log_mass`` is the logarithm of the mass. A
    strategy without a transport plan is a ``UserError``.
    """
    if selection.scores.log_plan is None:
        raise UserError(
            f"the strategy {selection.strategy!r} has no transport plan to explain; choose uot"
        )
    log_KT = selection.scores.log_plan(selection.kept)
    share_KT = np.exp(log_KT - selection.scores.values[selection.kept][:, None])
    return [
        [
            {
                "name": selection.target_names[column],
                "share": float(share_KT[row, column]),
                "log_mass": float(log_KT[row, column]),
            }
            for column in np.argsort(-share_KT[row], kind="stable")[:most].tolist()
        ]
        for row in range(len(selection.kept))
    ]


def _capped(rows: NDArray[np.int64], groups: tuple[str, ...], most: int) -> NDArray[np.int64]:
    """The first ``most`` rows of each group, in the same order."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows.tolist():
        seen[groups[row]] += 1
        if seen[groups[row]] <= most:
            kept.append(row)
    return np.array(kept, np.int64)


def to_json(selection: Selection) -> dict[str, Any]:
    """The content of selection.json: kept classes in order, all scores, settings, fingerprints."""
    scores = selection.scores.values
    return {
        "strategy": selection.strategy,
        "classes": [
            {
                "rank": rank,
                "name": selection.names[row],
                **({"label": selection.labels[row]} if selection.labels else {}),
                "row": row,
                "score": float(scores[row]),
            }
            for rank, row in enumerate(selection.kept.tolist(), 1)
        ],
        "scores": {
            name: score if score > -np.inf else None
            for name, score in zip(selection.names, scores.tolist(), strict=True)
        },
        "settings": selection.settings,
        "solver": selection.scores.facts,
        "fingerprints": selection.fingerprints,
    }
