"""The sections of a comparison's page: rows of finished trainings -> headings, tables, pictures.

What a set of trainings lacks is said in a line where its section would stand.
"""

from __future__ import annotations

from collections import Counter
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from uotft.analysis import comparison, figures, gallery, trials
from uotft.analysis.statistics import LEVEL, Interval, interval, paired
from uotft.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from uotft.analysis.figures import Part
    from uotft.analysis.trials import Line

LEGEND = (
    "Mean ± 95 % t-interval over seeds. Δ: paired difference in top-1 on the same seeds, in "
    "points; p: of its t-test, corrected after Holm for the rows that have one. "
    "A seed draws the labelled images that subset leaves, their order and random weights."
)
COST = ("strategy", "trainings", "images seen", "x none", "seconds", "x none", "timed")

Curve = dict[int, dict[int, float]]  # {step: {seed: validation top-1}}


def sections(
    target: str, rows: list[Line], by: list[str], ws: Workspace | None
) -> dict[str, list[Part]]:
    """{name: one section} of one target, in the order of the page.

    ``ws`` has the images, if there is one; ``by`` are the parameters that tell rows apart.
    """
    results, baselines = trials.results(rows), trials.baselines(rows)
    table, note = comparison.table(results, baselines), comparison.overlap_note(results)
    none = {label: found["none"] for label, found in baselines.items() if "none" in found}
    overview = figures.comparison_picture(
        target,
        {row.strategy: row.top1 for row in table},
        {row.strategy: row.against["none"] for row in table if "none" in row.against},
    )
    return {
        "comparison": [
            ("Did reuse help?", figures.Lead(comparison.verdict(table))),
            ("", overview),
        ],
        "table": [
            ("Results", comparison.cells(table)),
            ("", LEGEND),
            *([("", note)] if note else []),
        ],
        "sure": [("How sure the differences are", comparison.sure(results, table, none))],
        "standing": _standing(results),
        "curves": _curves(target, rows, none),
        "settings": _settings(target, rows, by),
        "classes": gallery.classes(target, rows, ws),
        "plan": gallery.plans(rows),
        "common": gallery.common(rows),
        "changes": gallery.changes(target, rows, none, ws),
        "cost": _cost(rows, none),
        "versions": _versions(rows),
    }


def _standing(results: comparison.Results) -> list[Part]:
    """How often each row wins, ties and loses against the others, and by how much."""
    found, heading = comparison.pairs(results), "Win, tie, loss"
    if not found:
        return [(heading, "Two rows with two seeds in common are needed.")]
    names = [*results]
    values = np.array([[_shown(found, a, b) for b in names] for a in names])
    words = [[_word(found, a, b) for b in names] for a in names]
    title = "row minus column, top-1, points; wins and losses in colour"
    picture = figures.square_picture(title, values, words, names)
    rule = (
        "A win is a gain on the same seeds whose p, corrected after Holm for all pairs of rows, is "
        f"below {LEVEL:g}; a loss is the reverse; all others are ties."
    )
    return [(heading, comparison.standing(results, found)), ("", picture), ("", rule)]


def _curves(target: str, rows: list[Line], none: dict[str, str]) -> list[Part]:
    curves = {row.label: curve(row) for row in rows}
    curves = {label: found for label, found in curves.items() if found}
    if not curves:
        return [("Learning curves", "These runs have no validation curve (val/top1).")]
    picture = figures.curves_picture(
        target,
        {label: by_step(found) for label, found in curves.items()},
        {
            label: against
            for label, found in curves.items()
            if (against := _over(found, curves.get(none.get(label, ""), {})))
        },
    )
    return [("Learning curves", picture)]


def curve(row: Line) -> Curve:
    """{step: {seed: validation top-1}} of a row."""
    found: Curve = {}
    for seed, trial in row.trials.items():
        for step, value in trial.curve.items():
            found.setdefault(step, {})[seed] = value
    return dict(sorted(found.items()))


def by_step(found: Curve) -> dict[int, Interval]:
    """The mean over seeds at each step."""
    return {step: interval(list(values.values())) for step, values in found.items()}


def _over(found: Curve, none: Curve) -> dict[int, Interval]:
    """The paired difference from ``none`` at the steps that both have."""
    return {
        step: paired(values, none[step])
        for step, values in found.items()
        if values.keys() & none.get(step, {}).keys()
    }


def _settings(target: str, rows: list[Line], by: list[str]) -> list[Part]:
    """Accuracy against each numeric parameter in which rows differ."""
    heading, parts = "Accuracy against the settings", []
    for name in by:
        lines: dict[str, dict[float, Interval]] = {}
        for row in rows:
            others = [f"{trials.short(k, by)}={v}" for k, v in row.settings.items() if k != name]
            top1 = interval([t.test["top1"] for t in row.trials.values()])
            x = _number(row.settings.get(name, ""))
            lines.setdefault(" ".join([row.strategy, *others]), {})[x] = top1
        if any(len(line) > 1 for line in lines.values()):
            ordered = {label: dict(sorted(line.items())) for label, line in lines.items()}
            title = f"{target}: test top-1, %"
            parts.append(("", figures.setting_picture(title, name, ordered)))
    if not parts:
        return [(heading, "These runs differ in no numeric parameter.")]
    return [(heading, "Mean over seeds with a 95 % band."), *parts]


def _cost(rows: list[Line], none: dict[str, str]) -> list[Part]:
    """What a training of each row costs: images through the network, and time."""
    seen = {r.label: [trials.images_seen(t) for t in r.trials.values()] for r in rows}
    took = {r.label: [t.origin.seconds for t in r.trials.values()] for r in rows}
    lines: list[tuple[str, ...]] = [COST]
    for row in rows:
        other = none.get(row.label, row.label if row.strategy == "none" else "")
        cells = []
        for values, digits in ((seen, ",.0f"), (took, ".1f")):
            mean, base = (_finite_mean(values.get(label, [])) for label in (row.label, other))
            cells += [
                format(mean, digits) if isfinite(mean) else "not known",
                f"{mean / base:.2f}" if base and isfinite(mean / base) else "",
            ]
        timed = sum(isfinite(v) for v in took[row.label])
        lines.append((row.label, str(len(row.trials)), *cells, str(timed)))
    note = (
        "A training, mean over seeds: images of all batches, validation aside; seconds of its "
        "MLflow run from start to end, with whatever else the machine had to do."
    )
    return [("Cost", lines), ("", note)]


def _versions(rows: list[Line]) -> list[Part]:
    """Which code and data made the models, and how many of them each."""
    heading, made = "Versions of code and data", [t for r in rows for t in r.trials.values()]
    known = [t.origin.versions for t in made if t.origin.versions]
    if not known:
        return [(heading, "No run in this MLflow store made these models.")]
    lines: list[tuple[str, ...]] = [("what", "version", "trainings")]
    for name in sorted({name for versions in known for name in versions}):
        counts = Counter(versions.get(name, "not said") for versions in known)
        lines += [(name, version, str(count)) for version, count in counts.most_common()]
    note = f"{len(known)} of {len(made)} models have a run in this MLflow store."
    return [(heading, lines), ("", note)]


def _shown(found: dict[tuple[str, str], comparison.Pair], a: str, b: str) -> float:
    """What colours a cell: a tie has no colour."""
    pair = found.get((a, b))
    return pair.difference.mean if pair and pair.outcome != "tie" else 0.0


def _word(found: dict[tuple[str, str], comparison.Pair], a: str, b: str) -> str:
    if (a, b) not in found:
        return ""
    outcome = found[a, b].outcome
    return f"{found[a, b].difference.mean:+.2f}" + (f"\n{outcome}" if outcome != "tie" else "")


def _number(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        return nan


def _finite_mean(values: list[float]) -> float:
    known = [v for v in values if isfinite(v)]
    return float(np.mean(known)) if known else nan
