"""An experiment's definition and what its cells measured -> rows, tables, a picture, Markdown.

uotft experiment show table1a
uotft experiment run table1a --on digits
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uotft.analysis import figures, markdown
from uotft.analysis.experiments import CLASSES, IMAGES, Experiment
from uotft.analysis.statistics import Interval, interval, paired
from uotft.core import registry
from uotft.core.errors import UserError

#: {label: {seed: numbers}} of one target: top1, mean_per_class, classes and recall, or some of them
Results = dict[str, dict[int, dict[str, float]]]
SCALED = ("select.top_k=", "cluster.clusters=")  # numbers that refer to the paper's source
NAMES = {"top1": "top-1 %", "mean_per_class": "mean per class %", "recall": "recall %"}
LEGEND = (
    "Mean ± 95 % t-interval over seeds; Δ: paired difference in top-1 on the same seeds, in "
    "points. *: the metric of the target's literature. The paper's numbers are the best of "
    "three trials, with {backbone}."
)


def names() -> list[str]:
    """The experiments, as the command line calls them."""
    return [name.replace("_", "-") for name in registry.names("experiments")]


def load(name: str) -> Experiment:
    """The experiment of a name."""
    if name not in names():
        raise UserError(f"experiment: got {name!r}; known are {', '.join(names())}")
    module = registry.load("experiments", name.replace("-", "_"), "experiment")
    experiment: Experiment = module.EXPERIMENT
    return experiment


def scaled(overrides: tuple[str, ...], classes: int, images: int) -> tuple[str, ...]:
    """Overrides whose numbers of classes, clusters and images are scaled to another source.

    They become the same share of its ``classes``, or of its training ``images``, as in the paper.
    """
    share = images / IMAGES if "select.unit=image" in overrides else classes / CLASSES

    def scale(override: str) -> str:
        name, _, value = override.partition("=")
        if not (override.startswith(SCALED) and value.isdecimal()):
            return override
        return f"{name}={max(1, round(int(value) * share))}"

    return tuple(map(scale, overrides))


def scale_note(source: str, classes: int, images: int) -> str:
    """A sentence on how the paper's numbers of classes and images are scaled to this source."""
    return (
        f"{source} has {classes} classes: K and clusters are {classes / CLASSES:g} times "
        f"the paper's, numbers of single images {images / IMAGES:.2g} times"
    )


@dataclass(frozen=True)
class Row:
    """One variation on one target; None for what was not measured or is not in the paper.

    ``difference`` is the paired difference in top-1 from the label ``against``, on the same seeds.
    """

    label: str
    against: str
    seeds: int
    classes: float
    values: dict[str, Interval]
    difference: Interval | None
    paper: float | None
    paper_difference: float | None


def rows(experiment: Experiment, target: str, results: Results) -> list[Row]:
    """A row per variation that has results, in the order of the definition."""
    paper, made = experiment.paper.get(target, {}), []
    for variation in experiment.variations:
        label, found = variation.label, results.get(variation.label)
        if not found:
            continue
        against = variation.against or experiment.baseline
        other = {} if against == label else results.get(against, {})
        top1, base = (
            {seed: m["top1"] for seed, m in seeds.items() if "top1" in m}
            for seeds in (found, other)
        )
        both = label in paper and against in paper and against != label
        made.append(
            Row(
                label=label,
                against=against if against != label else "",
                seeds=len(found),
                classes=interval([m["classes"] for m in found.values()]).mean,
                values={
                    name: interval([m[name] for m in found.values()])
                    for name in NAMES
                    if all(name in m for m in found.values())
                },
                difference=paired(top1, base) if top1.keys() & base.keys() else None,
                paper=paper.get(label),
                paper_difference=paper[label] - paper[against] if both else None,
            )
        )
    return made


def cells(experiment: Experiment, table: list[Row], metric: str = "") -> list[tuple[str, ...]]:
    """The table as text, header first; columns without any value are left out.

    ``metric`` is the one that the target's literature reports; a star marks its column.
    """
    columns: dict[str, list[str]] = {
        "variation": [row.label for row in table],
        "seeds": [str(row.seeds) for row in table],
        "kept": [f"{row.classes:g}" for row in table],
    }
    for name, heading in NAMES.items():
        mark = "*" if metric and heading.startswith(metric) else ""
        columns[heading + mark] = [_text(row.values.get(name), row.seeds) for row in table]
    columns["Δ top-1"] = [row.difference.signed() if row.difference else "" for row in table]
    columns["from"] = [row.against if row.difference else "" for row in table]
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


def flat(target: str, row: Row) -> dict[str, Any]:
    """The row as numbers, for table.csv; unknown ones are None."""
    numbers: dict[str, Any] = {
        "target": target, "variation": row.label, "seeds": row.seeds, "kept": row.classes
    }  # fmt: skip
    for name in NAMES:
        numbers |= _numbers(name, row.values.get(name))
    numbers |= {"against": row.against, **_numbers("difference", row.difference)}
    return numbers | {"paper": row.paper, "paper_difference": row.paper_difference}


def runs(found: dict[str, Results]) -> list[dict[str, Any]]:
    """The lines of runs.csv, one per target, variation and seed."""
    return [
        {"target": target, "variation": label, "seed": seed, **numbers}
        for target, labels in found.items()
        for label, seeds in labels.items()
        for seed, numbers in seeds.items()
    ]


def document(experiment: Experiment, tables: dict[str, list[tuple[str, ...]]], note: str) -> str:
    """The tables of all targets in Markdown, with the paper's claim, ``note`` and a legend."""
    texts = [
        f"# {experiment.title}\n\nThe paper: {experiment.claim}\n\n{note}\n",
        *(f"## {target}\n\n{markdown.table(table)}" for target, table in tables.items()),
        LEGEND.format(backbone=experiment.backbone.partition(":")[0]),
        "",
    ]
    return "\n".join(texts)


def picture(experiment: Experiment, tables: dict[str, list[Row]]) -> bytes:
    """A panel per target with the metric of ``plotted_metric``; crosses are the paper's numbers."""
    panels = []
    for target, table in tables.items():
        metric = plotted_metric(experiment, table)
        label = NAMES[metric] if metric == "recall" else f"test {NAMES[metric]}"
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


def _text(value: Interval | None, seeds: int) -> str:
    if value is None:
        return ""
    return str(value) if seeds > 1 else f"{value.mean:.2f}"  # one seed has no interval
