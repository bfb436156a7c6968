"""An experiment of the shelf and what its cells measured -> words for a source, rows, a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uotft.analysis.experiments import CLASSES, IMAGES, Experiment, Variation
from uotft.analysis.statistics import Interval, interval, paired
from uotft.core import registry
from uotft.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: {label: {seed: numbers}} of one target: top1, mean_per_class, classes and recall, or some of them
Results = dict[str, dict[int, dict[str, float]]]
SCALED = ("select.top_k=", "cluster.clusters=")  # counted in the paper's source
NAMES = {"top1": "top-1 %", "mean_per_class": "mean per class %", "recall": "recall %"}


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


def scaled(words: tuple[str, ...], classes: int, images: int) -> tuple[str, ...]:
    """The paper's numbers of classes, clusters and images as the same shares of another source."""
    share = images / IMAGES if "select.unit=image" in words else classes / CLASSES

    def word(text: str) -> str:
        name, _, value = text.partition("=")
        if not (text.startswith(SCALED) and value.isdecimal()):
            return text
        return f"{name}={max(1, round(int(value) * share))}"

    return tuple(map(word, words))


@dataclass(frozen=True)
class Row:
    """One variation on one target; what was not measured, or not in the paper, is None.

    ``difference`` is the paired one in top-1 from the label ``against``, on the same seeds.
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
    """A row a variation that has results, in the order of the definition."""
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
    """The table in words, its header first; ``metric``, that of the target's literature, gets a *.

    Columns that nothing fills are left out.
    """
    columns: dict[str, list[str]] = {
        "variation": [row.label for row in table],
        "seeds": [str(row.seeds) for row in table],
        "kept": [f"{row.classes:g}" for row in table],
    }
    for name, heading in NAMES.items():
        mark = "*" if metric and heading.startswith(metric) else ""
        columns[heading + mark] = [_said(row.values.get(name), row.seeds) for row in table]
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
    """The row as numbers, for CSV; what is unknown stays empty."""
    numbers: dict[str, Any] = {
        "target": target, "variation": row.label, "seeds": row.seeds, "kept": row.classes
    }  # fmt: skip
    for name in NAMES:
        numbers |= _numbers(name, row.values.get(name))
    numbers |= {"against": row.against, **_numbers("difference", row.difference)}
    return numbers | {"paper": row.paper, "paper_difference": row.paper_difference}


def _numbers(name: str, value: Interval | None) -> dict[str, Any]:
    half = round(value.half, 4) if value and value.n > 1 else None
    return {name: round(value.mean, 4) if value else None, f"{name}_half": half}


def _said(value: Interval | None, seeds: int) -> str:
    if value is None:
        return ""
    return str(value) if seeds > 1 else f"{value.mean:.2f}"  # of one seed there is no interval


def picture(experiment: Experiment, tables: dict[str, list[Row]]) -> bytes:
    """A panel a target: dots with intervals, or lines with bands where the definition has an axis.

    Crosses are the paper's numbers.
    """
    from matplotlib.figure import Figure

    height = 3.6 if experiment.axis else 1 + 0.34 * max(map(len, tables.values()))
    size = (1.5 + 5 * len(tables), height)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    for axes, (target, table) in zip(
        figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
    ):
        name = drawn(experiment, table)
        found = {row.label: row for row in table if name in row.values}
        shown = [v for v in experiment.variations if v.label in found]
        points = {v.label: found[v.label].values[name] for v in shown}
        paper = {k: row.paper for k, row in found.items() if row.paper and name == "top1"}
        (_lines if experiment.axis else _dots)(axes, shown, points, paper)
        label = NAMES[name] if name == "recall" else f"test {NAMES[name]}"
        if experiment.axis:
            axes.set(xlabel=experiment.axis, ylabel=label, title=target)
            axes.set_xscale("log" if experiment.log else "linear")
            axes.legend(frameon=False, fontsize=8)
        else:
            axes.set(xlabel=label, title=target)
        axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def drawn(experiment: Experiment, table: list[Row]) -> str:
    """What a picture is of: recall, if the paper's is and it is known, or if nothing else is."""
    measured = {name for row in table for name in row.values}
    recall = "recall" in measured and (experiment.recalls or "top1" not in measured)
    return "recall" if recall else "top1"


def _dots(
    axes: Axes, shown: list[Variation], points: dict[str, Interval], paper: dict[str, float]
) -> None:
    for y, variation in enumerate(reversed(shown)):
        value = points[variation.label]
        color = f"C{(len(shown) - 1 - y) % 10}"
        axes.errorbar(value.mean, y, xerr=value.half, fmt="o", capsize=3, color=color)
        if variation.label in paper:
            axes.plot(paper[variation.label], y, "x", color=color)
    axes.set_yticks(range(len(shown)), [v.label for v in reversed(shown)])


def _lines(
    axes: Axes, shown: list[Variation], points: dict[str, Interval], paper: dict[str, float]
) -> None:
    across = [v for v in shown if v.x is None]
    for number, variation in enumerate(across):
        value, color = points[variation.label], f"C{number + 7}"
        axes.axhline(value.mean, color=color, linestyle="--", label=variation.label)
        if value.n > 1:
            axes.axhspan(value.mean - value.half, value.mean + value.half, color=color, alpha=0.12)
    for number, line in enumerate(dict.fromkeys(v.line for v in shown if v.x is not None)):
        mine = [v for v in shown if v.line == line and v.x is not None]
        x, values = np.array([v.x for v in mine], float), [points[v.label] for v in mine]
        mean, half = (np.array([getattr(v, part) for v in values]) for part in ("mean", "half"))
        axes.plot(x, mean, "o-", color=f"C{number}", label=line)
        axes.fill_between(x, mean - half, mean + half, color=f"C{number}", alpha=0.12)
        known = np.array([paper.get(v.label, np.nan) for v in mine])
        axes.plot(x, known, "x", color=f"C{number}")
