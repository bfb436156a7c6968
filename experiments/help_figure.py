"""The picture of docs/does-it-help.md: what UOT gains over three controls, by target.

    python experiments/help_figure.py      # from the root; writes docs/images/does-it-help.png

Each dot is a mean difference over paired seeds with its 95 % t-interval, from the CSV files of the
pages: mean per class, or top-1 where the page compares that.
"""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

from uotft.analysis.statistics import Interval, paired

HELP, FLOWERS = "docs/experiments/help", "docs/experiments/cifar100-flowers102"
#: {its row in the CSV: its name in the picture}
CONTROLS = {
    "none": "plain fine-tuning",
    "equal compute": "as many images",
    "random": "random classes",
}
#: What, its CSV, whether norms are frozen, and the metric
TARGETS = (
    ("Flowers-102, 2 images, from nothing", f"{FLOWERS}/flowers20-own.csv", 0, "top1"),
    ("39 animals, 6 images, statistics move", f"{HELP}/animals.csv", 0, "mean_per_class"),
    ("7 vehicles, 6 images, statistics move", f"{HELP}/vehicles.csv", 0, "mean_per_class"),
    ("Caltech-101, 6 images, statistics move", f"{HELP}/caltech.csv", 0, "mean_per_class"),
    ("39 animals, 6 images, frozen", f"{HELP}/animals.csv", 1, "mean_per_class"),
    ("7 vehicles, 6 images, frozen", f"{HELP}/vehicles.csv", 1, "mean_per_class"),
    ("Caltech-101, 3 images, frozen", f"{HELP}/shots3.csv", 1, "mean_per_class"),
    ("Caltech-101, 6 images, frozen", f"{HELP}/caltech.csv", 1, "mean_per_class"),
    ("Caltech-101, 20 images, frozen", f"{HELP}/shots20.csv", 1, "mean_per_class"),
)  # fmt: skip


def main(path: Path) -> None:
    """Write the picture."""
    found = [differences(Path(file), bool(frozen), metric) for _, file, frozen, metric in TARGETS]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, sharex=True)
    for number, (panel, control) in enumerate(zip(panels, CONTROLS.values(), strict=True)):
        panel.axvline(0, color="grey", linewidth=1)
        for place, (row, (_, _, frozen, _)) in enumerate(zip(found, TARGETS, strict=True)):
            if (one := row[number]) is not None:
                colour = "C0" if frozen else "C1"
                panel.errorbar(one.mean, -place, xerr=one.half, fmt="o", color=colour, capsize=3)
        panel.set(xlabel="points")
        panel.set_title(f"UOT − {control}", fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set(
        yticks=[-i for i in range(len(TARGETS))], yticklabels=[name for name, *_ in TARGETS]
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})


def differences(path: Path, frozen: bool, metric: str) -> list[Interval | None]:
    """UOT less each control; None where the file has no such row."""
    values: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            values.setdefault(line["row"], {})[int(line["seed"])] = float(line[metric])
    kind = ", frozen" if frozen else ""
    uot, rows = values[f"uot{kind}"], [values.get(f"{row}{kind}") for row in CONTROLS]
    return [paired(uot, row) if row else None for row in rows]


if __name__ == "__main__":
    main(Path("docs/images/does-it-help.png"))
