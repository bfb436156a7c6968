"""Choose settings on validation data: each variation of params.yaml, 12 seeds, no test image read.

    dvc repro units embed overlap && python experiments/settings.py  # all, about 15 minutes
    python experiments/settings.py "uot train.lambda=0.3"      # one of your own

Prints the mean validation top-1 with its 95 % interval, and the paired difference from the first
line. Seeds 100 to 111 are used here, so that the seeds of the table decide nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import yaml

from uotft.analysis.statistics import interval, paired
from uotft.core import config, storage
from uotft.core.context import Context
from uotft.core.records import Cell
from uotft.pipeline import select, train, workspace
from uotft.training import runtime

SEEDS = range(100, 112)
SLOW = "train.recipe.learning_rate=0.01 train.recipe.head_lr_factor=1.0"
VARIATIONS = (
    "none",
    "uot",
    "random",
    f"none {SLOW}",
    f"uot {SLOW}",
    f"random {SLOW}",
    "none train.recipe.learning_rate=0.1 train.recipe.head_lr_factor=0.1",
    "uot train.recipe.learning_rate=0.1 train.recipe.head_lr_factor=0.1",
    "none train.recipe.steps=600",
    "none train.target_head=random train.recipe.head_lr_factor=2.5",
    "uot select.top_k=20",
    "uot select.top_k=120",
    "uot train.lambda=0.3",
    "uot train.batch_norm=mixed",
    "uot train.source_head=random",
)


@contextmanager
def scratch(root: Path, variation: str) -> Iterator[tuple[workspace.Workspace, str]]:
    """A workspace in a scratch folder with the variation's settings, and its strategy."""
    strategy, *changes = variation.split()
    raw = yaml.safe_load((root / "params.yaml").read_text())
    for change in changes:
        path, value = change.split("=")
        *parents, last = path.split(".")
        section = raw
        for parent in parents:
            section = section[parent]
        section[last] = yaml.safe_load(value)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "pretrained", "embeddings", "overlap"):
            (Path(folder) / name).symlink_to(root / name)
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(raw))
        yield workspace.Workspace(Path(folder), config.load(Path(folder))), strategy


def run(root: Path, variation: str, seed: int) -> float:
    """Select and train one seed in a scratch folder; returns validation top-1 in percent."""
    with scratch(root, variation) as (ws, strategy):
        target = ws.params.targets[0]
        select.select(ws, Cell(target, strategy, seed))
        accelerator = runtime.start(seed, ws.params.cpu_threads)
        quiet = {"log": lambda *_: None, "progress": lambda items, label: items}
        train.train(ws, Cell(target, strategy, seed), Context(accelerator, **quiet))
        facts = storage.read_json(ws.cell("models", Cell(target, strategy, seed)) / "model.json")
        return float(facts["validation"]["val/top1"])


def compare(
    file: Path, seeds: Iterable[int], groups: list[tuple[str, ...]], baselines: tuple[str, ...]
) -> None:
    """Train what is missing in ``file``, group by group and seed by seed; print its table."""
    root = workspace.Workspace.find().root
    rows = storage.read_csv(file) if file.exists() else []
    there = {(row["seed"], row["variation"]) for row in rows}
    for variations in groups:
        for seed, variation in product(seeds, variations):
            if (str(seed), variation) not in there:
                top1 = str(run(root, variation, seed))
                rows.append({"seed": str(seed), "variation": variation, "top1": top1})
                storage.write_csv(file, rows)
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        values.setdefault(row["variation"], {})[int(row["seed"])] = float(row["top1"])
    columns = ["variation", "seeds", "validation top-1 %", *(f"Δ {b}" for b in baselines)]
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for variation in (v for variations in groups for v in variations):
        found = values[variation]
        cells = [str(len(found)), str(interval(list(found.values())))]
        cells += [paired(found, values[b]).signed() if variation != b else "" for b in baselines]
        print(f"| {variation} | {' | '.join(cells)} |")


def main(variations: list[str]) -> None:
    """Print one line a variation."""
    root = workspace.Workspace.find().root
    first: dict[int, float] = {}
    for variation in variations:
        values = {seed: run(root, variation, seed) for seed in SEEDS}
        first = first or values
        difference = "" if values is first else f"  {paired(values, first).signed()}"
        print(f"{variation:66} {interval(list(values.values()))}{difference}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(VARIATIONS))
