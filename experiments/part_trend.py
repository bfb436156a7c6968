"""Does it matter how near a part of the source is? The slope of accuracy along its ten parts.

    python experiments/part_trend.py RUNS.csv

A least-squares line through the rows "part N" of each seed; its slope, times the nine steps from
the nearest part to the farthest, is one number a seed. Prints their mean, 95 % t-interval and p.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from uotft.analysis.statistics import interval

STEPS = 9  # from part 1 to part 10
PART = "part "  # how the labels of the rows begin


def main(path: Path) -> None:
    """Print a line a metric."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"].startswith(PART)]
    parts = {line["row"]: int(line["row"].removeprefix(PART)) for line in lines}
    for metric in ("top1", "mean_per_class"):
        seeds: dict[str, dict[str, float]] = defaultdict(dict)
        for line in lines:
            seeds[line["seed"]][line["row"]] = float(line[metric])
        if any(values.keys() != parts.keys() for values in seeds.values()):
            sys.exit(f"{path}: a seed lacks a part; let the experiment end first")
        places = [*parts.values()]
        slopes = [np.polyfit(places, [v[row] for row in parts], 1)[0] for v in seeds.values()]
        change = interval([STEPS * slope for slope in slopes])
        known = ", ".join(map(str, sorted(places)))
        print(f"{metric}, parts {known}: {change.signed()} from first to last, p {change.p():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
