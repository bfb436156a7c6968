"""Two tables of an experiment from the lines of its trainings: rows, and rows less others.

    python experiments/help_tables.py DEFINITION.yaml RUNS.csv

The definition says in ``against`` which rows a row is compared with. p are those of paired t-tests,
corrected by Holm's method over all differences of a metric.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from uotft.analysis.statistics import Interval, holm, interval, paired

METRICS = ("top1", "mean_per_class")
Values = dict[str, dict[int, float]]  # {row: {seed: %}}


def main(definition: Path, path: Path) -> None:
    """Print both tables."""
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
    columns = [column(found[metric], pairs) for metric in METRICS]
    for pair, *cells in zip(pairs, *columns, strict=True):
        print("|", " − ".join(pair), "|", " | ".join(cells), "|")


def table(header: tuple[str, ...]) -> None:
    """Print the header of a table."""
    print("|", " | ".join(header), "|")
    print("|---" * len(header) + "|")


def column(values: Values, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Difference and corrected p of each pair, as text."""
    found: list[Interval] = [paired(values[a], values[b]) for a, b in pairs]
    corrected = holm([each.p() for each in found])
    return [f"{each.signed()} | {p:.3f}" for each, p in zip(found, corrected, strict=True)]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
