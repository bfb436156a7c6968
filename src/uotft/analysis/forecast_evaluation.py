"""Forecasts + the gains that training really brought -> a table and correlations.

Theorem 1 foretells a negative correlation: the larger delta^2, the smaller the gain over none.
"""

from __future__ import annotations

import numpy as np

from uotft.analysis.statistics import Correlation, correlation, interval
from uotft.core.records import Floats

HEADER = ("strategy", "classes", "forecast δ²", "cosine", "validation Δ none", "test Δ none")
CORRELATIONS = ("δ² against", "n", "Spearman", "Pearson", "distinguishable from zero")

Values = dict[str, dict[int, float]]  # {strategy: {seed: value}}


def gains(top1: Values, strategies: list[str]) -> Values:
    """Top-1 minus that of ``none`` on the same seed, in points, for the seeds that both have."""
    none = top1["none"]
    return {s: {k: v - none[k] for k, v in top1[s].items() if k in none} for s in strategies}


def table(measured: dict[str, Values], gained: list[Values]) -> list[tuple[str, ...]]:
    """Header and one row a strategy, means over seeds with 95 % t-intervals.

    ``measured`` holds "k", "delta2" and "cosine"; ``gained`` the validation and the test gains.
    """
    rows: list[tuple[str, ...]] = [HEADER]
    for strategy in measured["delta2"]:
        k, delta2, cosine, *differences = (
            interval(list(values[strategy].values()))
            for values in (measured["k"], measured["delta2"], measured["cosine"], *gained)
        )
        forecast = f"{delta2.mean:.4g} ± {delta2.half:.2g}"
        signed = (value.signed() for value in (cosine, *differences))
        rows.append((strategy, f"{k.mean:g}", forecast, *signed))
    return rows


def correlate(forecast: Values, gained: Values, *, ranks: bool, pooled: bool) -> Correlation:
    """Correlation of forecast and gain, over the seeds that every strategy has."""
    seeds = sorted(set.intersection(*(set(forecast[s]) & set(gained[s]) for s in forecast)))

    def grid(values: Values) -> Floats:
        return np.array([[values[s][seed] for seed in seeds] for s in forecast])

    return correlation(grid(forecast), grid(gained), ranks=ranks, pooled=pooled)


def correlations(forecast: Values, gained: dict[str, Values]) -> list[tuple[str, ...]]:
    """Header and rows: for each kind of gain, over strategies' means and over all cells."""
    rows: list[tuple[str, ...]] = [CORRELATIONS]
    for part, values in gained.items():
        for pooled in (False, True):
            both = [correlate(forecast, values, ranks=r, pooled=pooled) for r in (True, False)]
            points = "strategies x seeds" if pooled else "strategies"
            shown = "; ".join(_sign(c) for c in both)
            rows.append((f"{part} gain, {points}", str(both[0].n), *map(str, both), shown))
    return rows


def verdict(rows: list[tuple[str, ...]]) -> str:
    """What the table of ``correlations`` says, in a sentence."""
    if any("yes" in row[-1] for row in rows[1:]):
        return "Where the last column says yes, the interval leaves zero out."
    return (
        "Every interval holds zero: on these runs the forecast is not shown to foretell the gain."
    )


def _sign(found: Correlation) -> str:
    if not found.shown():
        return "no"
    return "yes, as theorem 1 says" if found.value < 0 else "yes, against theorem 1"
