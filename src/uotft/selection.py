"""Scores -> the K classes, clusters or images kept, ties stable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.errors import UserError
from uotft.records import Scores, Selection

DIGITS = 10  # scores that agree to this many decimals are ties: below that is rounding


def keep(
    scores: Scores,
    names: tuple[str, ...],
    top_k: int,
    groups: tuple[str, ...] = (),
    most: int = 0,
) -> NDArray[np.int64]:
    """Row numbers of the ``top_k`` best classes, best first; equal scores go by name.

    Classes scored -inf are never kept, so fewer than ``top_k`` may come back; so they may with
    ``most`` > 0, which keeps at most so many of each of the ``groups``, one entry a row.
    """
    if top_k > len(names):
        raise UserError(
            f"select.top_k: got {top_k}, but the source has only {len(names)} classes, "
            f"clusters or images (select.unit says which); choose 1 to {len(names)}"
        )
    if np.isnan(scores.values).any():
        raise UserError(
            f"the score of class {names[int(np.isnan(scores.values).argmax())]!r} is NaN"
        )
    order = np.lexsort((np.array(names), -np.round(scores.values, DIGITS)))
    best = order[np.isfinite(scores.values[order])]
    if most:
        best = _capped(best, groups, most)
    return best[:top_k]


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
    """What selection.json holds: kept classes in order, all scores, settings, fingerprints."""
    scores = selection.scores.values
    return {
        "strategy": selection.strategy,
        "classes": [
            {"rank": rank, "name": selection.names[row], "row": row, "score": float(scores[row])}
            for rank, row in enumerate(selection.kept.tolist(), 1)
        ],
        "scores": {
            name: float(score) if np.isfinite(score) else None
            for name, score in zip(selection.names, scores, strict=True)
        },
        "settings": selection.settings,
        "solver": selection.scores.facts,
        "fingerprints": selection.fingerprints,
    }
