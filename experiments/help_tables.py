"""Two tables of an experiment from the lines of its trainings: rows, and rows less others.

    python experiments/help_tables.py DEFINITION.yaml RUNS.csv [PICTURE.png]

The definition says in ``against`` which rows a row is compared with. p are those of paired t-tests,
corrected by Holm's method over all differences of a metric. The picture shows the differences with
their 95 % t-intervals: a filled dot where the corrected p is below .05.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from uotft.analysis.statistics import Interval, holm, interval, paired

METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}
Values = dict[str, dict[int, float]]  # {row: {seed: %}}


def main(definition: Path, path: Path, picture: Path | None = None) -> None:
    """Print both tables; draw the second."""
    given = yaml.safe_load(definition.read_text(encoding="utf-8"))
    wanted, [target] = given["rows"], given["targets"]
    found: dict[str, Values] = {metric: defaultdict(dict) for metric in METRICS}
    images = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["target"] != target:
                sys.exit(f"{path} has lines of {line['target']}; {definition} is of {target}")
            images[line["row"]] = int(line["images"])
            for metric in METRICS:
                found[metric][line["row"]][int(line["seed"])] = float(line[metric])
    table(("row", "images seen", "top-1 %", "mean per class %"))
    for row, count in images.items():
        means = (str(interval([*found[metric][row].values()])) for metric in METRICS)
        print("|", row, "|", f"{count:,}", "|", " | ".join(means), "|")
    print()
    table(("difference", "top-1, points", "p", "mean per class, points", "p"))
    pairs = [
        (row["label"], other)
        for row in wanted
        for other in row.get("against", [])
        if {row["label"], other} <= images.keys()
    ]
    names = [" − ".join(pair) for pair in pairs]
    columns = [differences(found[metric], pairs) for metric in METRICS]
    for name, *cells in zip(names, *columns, strict=True):
        print("|", name, "|", " | ".join(f"{one.signed()} | {p:.3f}" for one, p in cells), "|")
    if picture:
        draw(picture, names, dict(zip(METRICS.values(), columns, strict=True)))


def table(header: tuple[str, ...]) -> None:
    """Print the header of a table."""
    print("|", " | ".join(header), "|")
    print("|---" * len(header) + "|")


def differences(values: Values, pairs: Sequence[tuple[str, str]]) -> list[tuple[Interval, float]]:
    """Difference and corrected p of each pair."""
    found = [paired(values[a], values[b]) for a, b in pairs]
    return list(zip(found, holm([each.p() for each in found]), strict=True))


def draw(path: Path, names: list[str], columns: dict[str, list[tuple[Interval, float]]]) -> None:
    """A panel a metric, a line a difference, the first on top."""
    figure = Figure(figsize=(10, 1.1 + 0.24 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    for panel, (metric, cells) in zip(panels, columns.items(), strict=True):
        panel.axvline(0, color="grey", linewidth=1)
        for place, (one, p) in enumerate(cells):
            panel.errorbar(
                one.mean, place, xerr=one.half, fmt="o", color="C0", capsize=2, markersize=5,
                markerfacecolor="C0" if p < 0.05 else "white",
            )  # fmt: skip
        panel.set(xlabel="points")
        panel.set_title(metric, fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set(yticks=range(len(names)))
    panels[0].set_yticklabels(names, fontsize=8)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
