"""Forecasts and the gains from training -> a table, correlations, a picture.

Theorem 1 of Liu et al. (2022) predicts a negative correlation: the larger delta^2, the smaller the
gain over none. `uotft compare` puts the evaluation into its report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from uotft.analysis import figures, markdown
from uotft.analysis.page import Picture, Rows, Section, Table, Text
from uotft.analysis.statistics import Correlation, Interval, correlation, interval
from uotft.core.records import Floats

HEADER = ("strategy", "classes", "forecast δ²", "cosine", "validation Δ none", "test Δ none")
CORRELATIONS = ("δ² against", "n", "Spearman", "Pearson", "distinguishable from zero")

PANELS = {"delta2": "forecast δ²", "cosine": "cosine of mean gradients"}
NOTE = (
    "δ²: mean squared distance between the target's gradient and those of the kept source images, "
    "of the pre-trained backbone (equation 4 of Liu et al.; a small one promises a gain). Cosine: "
    "of the two mean gradients. Correlations with 95 % intervals from a bootstrap over seeds; they "
    "hold for these strategies, and others may correlate differently."
)

Values = dict[str, dict[int, float]]  # {strategy: {seed: value}}
Cells = dict[str, dict[str, Any]]  # {strategy: {seed: selected, curve}}, forecast/TARGET.json


@dataclass(frozen=True)
class Evaluation:
    """Forecasts and gains on one target: two tables, a PNG and a note on how to read them."""

    table: Rows
    correlations: Rows
    picture: bytes
    note: str

    def sections(self) -> list[Section]:
        """Its part of the page."""
        return [
            Section("Forecast before training, and the gain after it", [Table(self.table)]),
            Section("Did the forecast predict the gain?", [Table(self.correlations)]),
            Section("Forecast against K", [Picture(self.picture, "forecast")]),
            Section("How to read the forecast", [Text(self.note)]),
        ]

    def text(self) -> str:
        """Its part of comparison.md."""
        tables = markdown.table(self.table), markdown.table(self.correlations)
        return f"\n{tables[0]}\n{tables[1]}\n{self.note}\n"


def evaluate(
    target: str, cells: Cells, strategies: list[str], top1: dict[str, Values]
) -> Evaluation | None:
    """Compare the forecasts ``cells`` with the gains in ``top1``, {"validation", "test": values}.

    ``strategies`` are all of the comparison. Returns None without the strategy none, the baseline
    of gains, or if no strategy keeps a class.
    """
    kept = [s for s in strategies if s in cells]
    if "none" not in strategies or not kept:
        return None
    measured: dict[str, Values] = {
        name: {s: {int(i): c["selected"][name] for i, c in cells[s].items()} for s in kept}
        for name in ("k", *PANELS)
    }
    gained = {part: gains(values, kept) for part, values in top1.items()}
    found = correlations(measured["delta2"], gained)
    k = {s: _mean(measured["k"][s]) for s in kept}
    picture = figures.forecast_picture(
        target,
        strategies,
        {title: {s: _curve(cells[s], name) for s in kept} for name, title in PANELS.items()},
        {
            title: {s: (k[s], _mean(measured[name][s])) for s in kept}
            for name, title in PANELS.items()
        },
    )
    rows = table(measured, list(gained.values()))
    return Evaluation(rows, found, picture, f"{NOTE} {verdict(found)}")


def gains(top1: Values, strategies: list[str]) -> Values:
    """Top-1 minus that of ``none`` on the same seed, in points, for common seeds."""
    none = top1["none"]
    return {s: {k: v - none[k] for k, v in top1[s].items() if k in none} for s in strategies}


def table(measured: dict[str, Values], gained: list[Values]) -> Rows:
    """Header and one row per strategy: means over seeds with 95 % t-intervals.

    ``measured`` holds "k", "delta2" and "cosine"; ``gained`` the validation and the test gains.
    """
    rows: Rows = [HEADER]
    for strategy in measured["delta2"]:
        k, delta2, cosine, *differences = (
            interval(list(values[strategy].values()))
            for values in (measured["k"], measured["delta2"], measured["cosine"], *gained)
        )
        forecast = f"{delta2.mean:.4g} ± {delta2.width('.2g')}"
        signed = (value.signed() for value in (cosine, *differences))
        rows.append((strategy, f"{k.mean:g}", forecast, *signed))
    return rows


def correlate(forecast: Values, gained: Values, *, ranks: bool, pooled: bool) -> Correlation:
    """Correlation of forecast and gain over the seeds that all strategies have."""
    seeds = sorted(set.intersection(*(set(forecast[s]) & set(gained[s]) for s in forecast)))

    def grid(values: Values) -> Floats:
        return np.array([[values[s][seed] for seed in seeds] for s in forecast])

    return correlation(grid(forecast), grid(gained), ranks=ranks, pooled=pooled)


def correlations(forecast: Values, gained: dict[str, Values]) -> Rows:
    """Header and two rows per kind of gain: over the means of strategies, and over all cells."""
    rows: Rows = [CORRELATIONS]
    for part, values in gained.items():
        for pooled in (False, True):
            both = [correlate(forecast, values, ranks=r, pooled=pooled) for r in (True, False)]
            points = "strategies x seeds" if pooled else "strategies"
            signs = "; ".join(_sign(c) for c in both)
            rows.append((f"{part} gain, {points}", str(both[0].n), *map(str, both), signs))
    return rows


def verdict(rows: Rows) -> str:
    """A sentence that sums up the table of ``correlations``."""
    if any("yes" in row[-1] for row in rows[1:]):
        return "Where the last column says yes, the interval excludes zero."
    return (
        "Every interval includes zero: these runs do not show that the forecast predicts the gain."
    )


def _sign(found: Correlation) -> str:
    if not found.is_significant():
        return "no"
    return "yes, as theorem 1 says" if found.value < 0 else "yes, against theorem 1"


def _curve(seeds: dict[str, Any], measure: str) -> dict[int, Interval]:
    """{K: interval over seeds}."""
    values: dict[int, list[float]] = {}
    for cell in seeds.values():
        for point in cell["curve"]:
            values.setdefault(point["k"], []).append(point[measure])
    return {k: interval(v) for k, v in sorted(values.items())}


def _mean(seeds: dict[int, float]) -> float:
    return float(np.mean(list(seeds.values())))
