"""Which classes make a difference in top-1: a row's accuracy of each class, less another row's.

    python CLONE/experiments/per_class.py variants/*/predictions/vehicles/{none,uot}.npz

The first file is what the others are compared with. Files are those that `uotft evaluate` and
`uotft experiment run` write; all must be of the same test images and seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def main(baseline: Path, *others: Path) -> None:
    """Print a line a class for each row: %, the difference, and its part of top-1 in points."""
    labels, names, base = hits(baseline)
    for path in others:
        same, _, found = hits(path)
        if not np.array_equal(labels, same) or found.shape != base.shape:
            sys.exit(f"{path} is of other test images or seeds than {baseline}")
        print(path)
        for number, name in enumerate(names):
            rows = labels == number
            before, after = (100 * hit[:, rows].mean() for hit in (base, found))
            part = (after - before) * rows.mean()
            print(f"  {name:20} {before:6.2f} {after - before:+6.2f}, of top-1 {part:+6.2f}")


def hits(path: Path) -> tuple[NDArray[np.int64], list[str], NDArray[np.bool_]]:
    """Labels (n,), class names, and whether each seed's answer is right (seeds, n)."""
    with np.load(path, allow_pickle=False) as file:
        return file["labels"], file["names"].tolist(), file["predicted"] == file["labels"]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
