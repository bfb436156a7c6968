"""The sections of a comparison's page: rows of finished trainings -> headings, tables, pictures.

A section that lacks data says so in one sentence.
"""

from __future__ import annotations

from collections import Counter
from math import isfinite, nan
from typing import Any

import numpy as np

from uotft.analysis import comparison, figures, gallery, trials
from uotft.analysis.forecast_evaluation import Evaluation
from uotft.analysis.gallery import Images
from uotft.analysis.page import Items, Lead, Part, Picture, Rows, Section, Table, Text
from uotft.analysis.statistics import LEVEL, Interval, interval, paired
from uotft.analysis.trials import Curve, Line

ABOUT = "About the data"
COST = ("strategy", "trainings", "images seen", "x none", "seconds", "x none", "timed")


def sections(
    target: str,
    rows: list[Line],
    by: list[str],
    images: Images,
    forecast: Evaluation | None = None,
    about: tuple[str, ...] = (),
) -> list[Section]:
    """All sections of one target, in the order of the page.

    ``by`` are the parameters that tell rows apart, ``images`` gives the pictures of classes and
    test images, ``about`` are notes on the data.
    """
    results, baselines = trials.results(rows), trials.baselines(rows)
    table = comparison.table(results, baselines)
    none = {label: found["none"] for label, found in baselines.items() if "none" in found}
    certainty = comparison.certainty(results, table, none)
    return [
        _verdict(target, table),
        _results(target, results, table),
        *([Section(ABOUT, [Items(about)])] if about else []),
        Section("How sure the differences are", [Table(certainty)]),
        _standing(results),
        _curves(target, rows, none),
        _settings(target, rows, by),
        gallery.classes(target, rows, images),
        gallery.plans(rows),
        gallery.common(rows),
        *gallery.changes(target, rows, none, images),
        _cost(rows, none),
        *(forecast.sections() if forecast else []),
        _versions(rows),
    ]


def _verdict(target: str, table: list[comparison.Row]) -> Section:
    """Whether reuse helped: a sentence, and the accuracy of each row."""
    picture = figures.comparison_picture(
        target,
        {row.strategy: row.top1 for row in table},
        {row.strategy: row.against["none"] for row in table if "none" in row.against},
    )
    lead = Lead(comparison.verdict(table))
    return Section("Did reuse help?", [lead, Picture(picture, "comparison")])


def _results(target: str, results: comparison.Results, table: list[comparison.Row]) -> Section:
    """The table of results, trainings that ended badly, and cautions on the test images."""
    parts: list[Part] = [Table(comparison.cells(table)), Text(comparison.LEGEND)]
    if ended := comparison.endings_of(target, table):
        parts.append(Items(tuple(ended)))
    parts += [Text(note) for note in comparison.cautions(results, table)]
    return Section("Results", parts)


def _standing(results: comparison.Results) -> Section:
    """How often each row wins, ties and loses against the others, and by how many points."""
    found, heading = comparison.pairs(results), "Win, tie, loss"
    if not found:
        return Section(heading, [Text("This needs two rows with at least two seeds in common.")])
    names = [*results]
    values = np.array([[_color_value(found, a, b) for b in names] for a in names])
    texts = [[_pair_text(found, a, b) for b in names] for a in names]
    title = "row minus column, top-1, points; wins and losses in colour"
    picture = figures.square_picture(title, values, texts, names)
    rule = (
        "A win is a gain on the same seeds with p, corrected by Holm's method for all pairs of "
        f"rows, below {LEVEL:g}; a loss is the reverse; all else is a tie."
    )
    table = comparison.standing(results, found)
    return Section(heading, [Table(table), Picture(picture), Text(rule)])


def _curves(target: str, rows: list[Line], none: dict[str, str]) -> Section:
    """Validation accuracy by step, for the rows that have a curve."""
    heading, curves = "Learning curves", {row.label: trials.curve(row) for row in rows}
    curves = {label: found for label, found in curves.items() if found}
    if not curves:
        return Section(heading, [Text("These runs have no validation curve (val/top1).")])
    picture = figures.curves_picture(
        target,
        {label: trials.by_step(found) for label, found in curves.items()},
        {
            label: against
            for label, found in curves.items()
            if (against := _over(found, curves.get(none.get(label, ""), {})))
        },
    )
    return Section(heading, [Picture(picture, "curves")])


def _over(found: Curve, none: Curve) -> dict[int, Interval]:
    """{step: the paired difference from ``none``}, at the steps that both have."""
    return {
        step: paired(values, none[step])
        for step, values in found.items()
        if values.keys() & none.get(step, {}).keys()
    }


def _settings(target: str, rows: list[Line], by: list[str]) -> Section:
    """Accuracy against each numeric parameter in which rows differ."""
    heading, pictures = "Accuracy against the settings", list[Part]()
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
            pictures.append(Picture(figures.setting_picture(title, name, ordered)))
    if not pictures:
        return Section(heading, [Text("These runs differ in no numeric parameter.")])
    return Section(heading, [Text("Mean over seeds with a 95 % band."), *pictures])


def _cost(rows: list[Line], none: dict[str, str]) -> Section:
    """What a training of each row costs: images fed to the network, and seconds."""
    seen = {r.label: [trials.images_seen(t) for t in r.trials.values()] for r in rows}
    took = {r.label: [t.origin.seconds for t in r.trials.values()] for r in rows}
    lines: Rows = [COST]
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
        "Cost of one training, mean over seeds: images of all training batches, and seconds from "
        "start to end of its MLflow run, so other work on the machine counts too."
    )
    return Section("Cost", [Table(lines), Text(note)])


def _versions(rows: list[Line]) -> Section:
    """Which versions of code and data made the models, and how many models each made."""
    heading, made = "Versions of code and data", [t for r in rows for t in r.trials.values()]
    known = [t.origin.versions for t in made if t.origin.versions]
    if not known:
        return Section(heading, [Text("No run in this MLflow store made these models.")])
    lines: Rows = [("what", "version", "trainings")]
    for name in sorted({name for versions in known for name in versions}):
        counts = Counter(versions.get(name, "not recorded") for versions in known)
        lines += [(name, version, str(count)) for version, count in counts.most_common()]
    note = f"{len(known)} of {len(made)} models have a run in this MLflow store."
    return Section(heading, [Table(lines), Text(note)])


def _color_value(found: dict[tuple[str, str], comparison.Pair], a: str, b: str) -> float:
    """The difference that colours a cell; 0 for a tie, which has no colour."""
    pair = found.get((a, b))
    return pair.difference.mean if pair and pair.outcome != "tie" else 0.0


def _pair_text(found: dict[tuple[str, str], comparison.Pair], a: str, b: str) -> str:
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
