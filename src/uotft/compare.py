"""Test metrics of many runs -> one table: mean and interval over seeds, paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uotft.statistics import Interval, interval, paired

BASELINES = ("none", "random")
HEADER = ("strategy", "seeds", "classes", "top-1 %", "mean per class %", "Δ none", "Δ random")


@dataclass(frozen=True)
class Row:
    """One strategy on one target; ``against`` holds the paired differences in top-1."""

    strategy: str
    classes: float
    top1: Interval
    mean_per_class: Interval
    against: dict[str, Interval]

    def cells(self) -> tuple[str, ...]:
        """The row as text, under HEADER."""
        differences = [self.against[b].signed() if b in self.against else "" for b in BASELINES]
        return (
            self.strategy,
            str(self.top1.n),
            f"{self.classes:g}",
            str(self.top1),
            str(self.mean_per_class),
            *differences,
        )


def table(results: dict[str, dict[str, Any]]) -> list[Row]:
    """{strategy: {seed: test metrics}} -> rows, in the order given."""
    top1 = {s: {int(k): m["top1"] for k, m in seeds.items()} for s, seeds in results.items()}
    rows = []
    for strategy, seeds in results.items():
        others = [b for b in BASELINES if b in results and b != strategy]
        rows.append(
            Row(
                strategy=strategy,
                classes=interval([m["source_classes"] for m in seeds.values()]).mean,
                top1=interval(list(top1[strategy].values())),
                mean_per_class=interval([m["mean_per_class"] for m in seeds.values()]),
                against={b: paired(top1[strategy], top1[b]) for b in others},
            )
        )
    return rows


def overlap_note(results: dict[str, dict[str, Any]]) -> str:
    """What the test images that are in the source too change; empty if there are none."""
    [*tested] = (m for seeds in results.values() for m in seeds.values())
    if "clean" not in tested[0]:
        return ""
    images, clean = tested[0]["images"], tested[0]["clean"]["images"]
    note = f"{images - clean} of {images} test images are in the source too."
    if not clean:
        return note
    means = (
        f"{strategy} {interval([m['top1'] for m in seeds.values()]).mean:.2f} / "
        f"{interval([m['clean']['top1'] for m in seeds.values()]).mean:.2f}"
        for strategy, seeds in results.items()
    )
    return f"{note} Mean top-1 with / without them, %: {', '.join(means)}."


def cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """The table in words, its header first."""
    return [HEADER, *(row.cells() for row in rows)]


def flat(row: Row) -> dict[str, Any]:
    """The row as numbers, for CSV and `dvc metrics show`; unknown intervals are left out."""
    numbers: dict[str, Any] = {"strategy": row.strategy, "seeds": row.top1.n}
    columns = {"top1": row.top1, "mean_per_class": row.mean_per_class}
    columns |= {f"minus_{name}": difference for name, difference in row.against.items()}
    for name, value in columns.items():
        numbers[name] = round(value.mean, 4)
        if value.n > 1:
            numbers[f"{name}_half"] = round(value.half, 4)
    return numbers
