"""An experiment's definition and what its cells measured -> rows, tables, a picture, Markdown.

uotft experiment show table1a
uotft experiment run table1a --on digits
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from uotft.analysis import endings, experiment_files, figures, markdown
from uotft.analysis.experiments import CLASSES, IMAGES, Experiment
from uotft.analysis.statistics import Interval, holm, interval, paired
from uotft.core import registry
from uotft.core.errors import UserError
from uotft.core.text import plural

#: {label: {seed: numbers}} of one target, as in runs.csv: top1, mean_per_class, val_top1,
#: val_mean_per_class, classes (kept), images, seconds and recall, or some of them
Results = dict[str, dict[int, dict[str, float]]]
NAMES = {"top1": "top-1 %", "mean_per_class": "mean per class %", "recall": "recall %"}
LEGEND = (
    "Mean ± 95 % t-interval over seeds; Δ: paired difference in top-1 on the same seeds, in "
    "points. *: the metric of the target's literature."
)
PAPERS = " The paper's numbers are the best of three trials, with {backbone}."
COSTS = (
    " Images: those that one training sees, target and source, each time counted; seconds: its "
    "time on the clock, other trainings beside it."
)
VALIDATION = ", on validation images"


def names() -> list[str]:
    """The experiments, as the command line calls them."""
    return [name.replace("_", "-") for name in registry.names("experiments")]


def load(name: str) -> Experiment:
    """The experiment of a name, or of a file."""
    if experiment_files.is_file(name):
        return experiment_files.load(Path(name))
    if name not in names():
        raise UserError(
            f"experiment: got {name!r}; known are {', '.join(names())}, or a file NAME.yaml"
        )
    module = registry.load("experiments", name.replace("-", "_"), "experiment")
    experiment: Experiment = replace(module.EXPERIMENT, name=name)
    return experiment


def on_validation(experiment: Experiment) -> Experiment:
    """The experiment that compares on validation images; the paper's numbers are of others."""
    title = f"{experiment.title}{VALIDATION}"
    return replace(experiment, title=title, paper={}, on_validation=True)


def scale_note(source: str, classes: int, images: int) -> str:
    """A sentence on how the paper's numbers of classes and images are scaled to this source."""
    return (
        f"{source} has {classes} classes: K and clusters are {classes / CLASSES:g} times "
        f"the paper's, numbers of single images {images / IMAGES:.2g} times"
    )


@dataclass(frozen=True)
class Row:
    """One variation on one target; None for what was not measured or is not in the paper.

    ``differences`` are the paired differences in top-1 from other labels, on the same seeds;
    ``p`` their p, corrected for all comparisons of the table. ``images`` and ``seconds`` are the
    means of a training.
    """

    label: str
    seeds: int
    classes: float
    values: dict[str, Interval]
    differences: dict[str, Interval]
    paper: float | None
    paper_difference: float | None
    images: float | None = None
    seconds: float | None = None
    p: dict[str, float] = field(default_factory=dict)


def rows(experiment: Experiment, target: str, results: Results) -> list[Row]:
    """A row per variation that has results, in the order of the definition."""
    paper, made = experiment.paper.get(target, {}), []
    prefix = "val_" if experiment.on_validation else ""
    top1 = {
        label: {seed: m[f"{prefix}top1"] for seed, m in seeds.items() if f"{prefix}top1" in m}
        for label, seeds in results.items()
    }
    for variation in experiment.variations:
        label, found = variation.label, results.get(variation.label)
        if not found:
            continue
        compared = experiment.against(variation)
        numbers = [*found.values()]
        keys = {name: name if name == "recall" else prefix + name for name in NAMES}
        both = next((b for b in compared if label in paper and b in paper), None)
        made.append(
            Row(
                label=label,
                seeds=len(found),
                classes=interval([m["classes"] for m in numbers]).mean,
                values={
                    name: interval([m[key] for m in numbers])
                    for name, key in keys.items()
                    if all(key in m for m in numbers)
                },
                differences={
                    other: paired(top1[label], top1[other])
                    for other in compared
                    if top1[label].keys() & top1.get(other, {}).keys()
                },
                paper=paper.get(label),
                paper_difference=paper[label] - paper[both] if both else None,
                images=_mean(numbers, "images"),
                seconds=_mean(numbers, "seconds"),
            )
        )
    return _tested(made) if experiment.tested else made


def _tested(table: list[Row]) -> list[Row]:
    """The rows with the p of their differences, corrected for all of them (Holm 1979)."""
    places = [(row.label, other) for row in table for other in row.differences]
    found = holm([row.differences[other].p() for row in table for other in row.differences])
    p = dict(zip(places, found, strict=True))
    return [
        replace(row, p={other: p[row.label, other] for other in row.differences}) for row in table
    ]


def corrected(table: list[Row]) -> list[str]:
    """A line on what a table's p are corrected for; none if nothing was tested."""
    tests = sum(isfinite(p) for row in table for p in row.p.values())
    if not tests:
        return []
    return [
        "p, in brackets: of the paired t-test of the difference, corrected by Holm's method for "
        f"the {plural(tests, 'comparison')} of this table"
    ]


def collapses(experiment: Experiment, results: Results) -> list[str]:
    """A line for each row with seeds far below its others, which its mean would hide."""
    name = "val_top1" if experiment.on_validation else "top1"
    lines = []
    for label, seeds in results.items():
        top1 = {seed: m[name] for seed, m in seeds.items() if name in m}
        low = [f"seed {seed} with {top1[seed]:.2f} %" for seed in endings.collapsed(top1)]
        lines += [f"{label}: far below its other seeds: {', '.join(low)}"] if low else []
    return lines


def _mean(numbers: list[dict[str, float]], name: str) -> float | None:
    known = [m[name] for m in numbers if name in m]
    return interval(known).mean if known else None


def cells(experiment: Experiment, table: list[Row], metric: str = "") -> list[tuple[str, ...]]:
    """The table as text, header first; columns without any value are left out.

    ``metric`` is the one that the target's literature reports; a star marks its column.
    """
    columns: dict[str, list[str]] = {
        "variation": [row.label for row in table],
        "seeds": [str(row.seeds) for row in table],
        "kept": [f"{row.classes:g}" for row in table],
        "images": [_count(row.images) for row in table],
        "seconds": [_count(row.seconds) for row in table],
    }
    for name, heading in NAMES.items():
        mark = "*" if metric and heading.startswith(metric) else ""
        columns[heading + mark] = [_text(row.values.get(name), row.seeds) for row in table]
    columns |= _differences(experiment, table)
    columns["paper %"] = [f"{row.paper:.2f}" if row.paper else "" for row in table]
    columns["paper Δ"] = [
        f"{row.paper_difference:+.2f}" if row.paper_difference is not None else "" for row in table
    ]
    if any("recall" in row.values for row in table):
        for model, recalls in experiment.recalls.items():
            columns[f"paper's recall of birds, {model}"] = [
                f"{recalls[row.label]:.2f}" if row.label in recalls else "" for row in table
            ]
    full = {heading: column for heading, column in columns.items() if any(column)}
    return [tuple(full), *zip(*full.values(), strict=True)]


def _differences(experiment: Experiment, table: list[Row]) -> dict[str, list[str]]:
    """The columns of differences: one and its label, or with ``tested`` one with its p a label."""
    if not experiment.tested:
        firsts = [next(iter(row.differences.items()), ("", None)) for row in table]
        return {
            "Δ top-1": [value.signed() if value else "" for _, value in firsts],
            "from": [label for label, _ in firsts],
        }
    return {
        f"Δ {other} (p)": [_with_p(row.differences.get(other), row.p.get(other)) for row in table]
        for other in compared(experiment)
    }


def _with_p(difference: Interval | None, p: float | None) -> str:
    """A difference with its p; "" without one, and without p from a single seed."""
    if difference is None:
        return ""
    if p is None or not isfinite(p):
        return difference.signed()
    return f"{difference.signed()} ({'< 0.001' if p < 0.001 else f'{p:.3f}'})"


def compared(experiment: Experiment) -> list[str]:
    """The labels that others are compared with, in the order of the rows."""
    named = {other for each in experiment.variations for other in experiment.against(each)}
    return [each.label for each in experiment.variations if each.label in named]


def flat(experiment: Experiment, target: str, row: Row) -> dict[str, Any]:
    """The row as numbers, for table.csv; unknown ones are None."""
    numbers: dict[str, Any] = {
        "target": target, "variation": row.label, "seeds": row.seeds, "kept": row.classes,
        "images": None if row.images is None else round(row.images),
        "seconds": None if row.seconds is None else round(row.seconds, 3),
    }  # fmt: skip
    prefix = "val_" if experiment.on_validation else ""
    for name in NAMES:
        numbers |= _numbers(name if name == "recall" else prefix + name, row.values.get(name))
    if not experiment.tested:
        against, difference = next(iter(row.differences.items()), ("", None))
        numbers |= {"against": against, **_numbers("difference", difference)}
        return numbers | {"paper": row.paper, "paper_difference": row.paper_difference}
    for other in compared(experiment):
        p = row.p.get(other)
        numbers |= _numbers(f"difference from {other}", row.differences.get(other))
        numbers[f"p from {other}"] = None if p is None or not isfinite(p) else round(p, 6)
    return numbers


def runs(experiment: Experiment, found: dict[str, Results]) -> list[dict[str, Any]]:
    """The lines of runs.csv, one per training; what was not measured stays empty."""
    columns = ("top1", "mean_per_class", "val_top1", "images", "seconds", "recall")
    return [
        {
            "target": target,
            "row": variation.label,
            "strategy": variation.strategy,
            "seed": seed,
            "kept": numbers["classes"],
            "settings": " ".join(variation.overrides),
            **{n: round(numbers[n], 4) if n in numbers else None for n in columns},
        }
        for target, labels in found.items()
        for variation in experiment.variations
        for seed, numbers in labels.get(variation.label, {}).items()
    ]


def document(
    experiment: Experiment,
    tables: dict[str, list[tuple[str, ...]]],
    note: str,
    notes: dict[str, list[str]] | None = None,
) -> str:
    """The tables of all targets in Markdown, with the claim, ``note`` and a legend.

    ``notes`` is {target: lines below its table}.
    """
    claim = f"The paper: {experiment.claim}" if experiment.scaled else experiment.claim
    parts = []
    for target, table in tables.items():
        own = markdown.items((notes or {}).get(target, []))
        parts.append(f"## {target}\n\n{markdown.table(table)}" + (f"\n{own}" if own else ""))
    papers = PAPERS.format(backbone=experiment.backbone.partition(":")[0])
    costs = COSTS if any("seconds" in table[0] for table in tables.values()) else ""
    return "\n".join(
        [
            "\n\n".join(filter(None, [f"# {experiment.title}", claim, note])) + "\n",
            *parts,
            LEGEND + (papers if experiment.paper or experiment.recalls else "") + costs,
            "",
        ]
    )


def picture(experiment: Experiment, tables: dict[str, list[Row]]) -> bytes:
    """A panel per target with the metric of ``plotted_metric``; crosses are the paper's numbers."""
    panels = []
    for target, table in tables.items():
        metric = plotted_metric(experiment, table)
        part = "validation" if experiment.on_validation else "test"
        label = NAMES[metric] if metric == "recall" else f"{part} {NAMES[metric]}"
        measured = {row.label: row for row in table if metric in row.values}
        points = [
            figures.Point(
                label=variation.label,
                value=row.values[metric],
                paper=row.paper if row.paper and metric == "top1" else None,
                line=variation.line,
                x=variation.x,
            )
            for variation in experiment.variations
            if (row := measured.get(variation.label))
        ]
        panels.append(figures.Panel(target, label, points))
    return figures.experiment_picture(panels, experiment.axis, log=experiment.log)


def plotted_metric(experiment: Experiment, table: list[Row]) -> str:
    """The metric that the picture shows: recall or top1.

    Recall, if it was measured and either the paper's figure shows it or there is no top-1.
    """
    measured = {name for row in table for name in row.values}
    recall = "recall" in measured and (experiment.recalls or "top1" not in measured)
    return "recall" if recall else "top1"


def _numbers(name: str, value: Interval | None) -> dict[str, Any]:
    half = round(value.half, 4) if value and value.n > 1 else None
    return {name: round(value.mean, 4) if value else None, f"{name}_half": half}


def _count(value: float | None) -> str:
    """A mean as a whole number, with thousands apart; of a few seconds also its first digit."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.1f}"


def _text(value: Interval | None, seeds: int) -> str:
    if value is None:
        return ""
    return str(value) if seeds > 1 else f"{value.mean:.2f}"  # one seed has no interval
