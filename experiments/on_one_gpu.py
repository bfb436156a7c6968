"""An experiment on one GPU within some minutes, in one process, without DVC and MLflow.

    python experiments/on_one_gpu.py DEFINITION.yaml --project FOLDER --out FOLDER --minutes 8

FOLDER of the project holds params.yaml and the images, for example those of
docs/experiments/help/, with `size: 128` and `stored: 128` for both data sets. The definition is
what `uotft experiment run DEFINITION.yaml` takes, with one target. Seed by seed every row is
trained and tested; each training is at once a line of runs.csv in --out, so what the time was long
enough for is there. Only whole seeds belong into a table:

    python experiments/help_tables.py DEFINITION.yaml OUT/runs.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # this checkout, also where uotft is not installed

from uotft.analysis import experiment_settings, paper_tables  # noqa: E402
from uotft.core import config  # noqa: E402
from uotft.core.context import Context  # noqa: E402
from uotft.core.records import Cell  # noqa: E402
from uotft.pipeline import (  # noqa: E402
    embed,
    evaluate,
    overlap,
    prepare,
    pretrain,
    select,
    train,
    units,
)
from uotft.pipeline.workspace import Workspace  # noqa: E402
from uotft.training import runtime  # noqa: E402

LINE = ("row", "strategy", "seed", "images", "seconds", "top1", "mean_per_class")


def quiet(items: Any, label: str) -> Any:
    """A line in place of a progress bar."""
    print(label, flush=True)
    return items


def upstream(ws: Workspace, target: str) -> None:
    """All that comes before the first selection."""
    p = ws.params
    for name in (p.source, target):
        prepare.prepare(ws, name, progress=quiet)
    pretrain.pretrain(ws, Context(runtime.start(0, p.cpu_threads), progress=quiet))
    for name in (p.source, target):
        embed.embed(ws, name, Context(runtime.start(0, p.cpu_threads), progress=quiet))
    units.units(ws)
    overlap.overlap(p.source, target, ws.overlap(target), progress=quiet, workspace=lambda: ws)


def trained(ws: Workspace, definition: Path, target: str) -> Iterator[dict[str, Any]]:
    """Train and test every row with every seed of the definition, seed by seed."""
    experiment = paper_tables.load(str(definition))
    experiment, _ = experiment_settings.settled(experiment, ws.params, (1, 1))
    for seed in experiment_settings.seeds(str(experiment.seeds)):
        for row in experiment.variations:
            changed, cell = ws.with_changes(row.overrides), Cell(target, row.strategy, seed)
            changed.note_overrides()
            began = time.monotonic()
            recipe = changed.params.train.recipe
            select.select(changed, cell)
            threads = changed.params.cpu_threads
            train.train(changed, cell, Context(runtime.start(seed, threads, recipe.precision)))
            seconds = time.monotonic() - began
            found = evaluate.evaluate(changed, target, row.strategy, progress=quiet, seeds=[seed])
            accuracy = {name: found[str(seed)][name] for name in ("top1", "mean_per_class")}
            keeps = config.keeps(changed.params, row.strategy)
            batch = config.images_a_step(changed.params, keeps=keeps)
            yield {
                "row": row.label, "strategy": row.strategy, "seed": seed,
                "images": recipe.steps * batch, "seconds": round(seconds, 2), **accuracy,
            }  # fmt: skip


def main() -> None:
    """Run what the minutes are long enough for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("definition", type=Path)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    until, longest = time.monotonic() + 60 * given.minutes, 0.0
    ws = Workspace.find(given.project.resolve())
    [target] = paper_tables.load(str(given.definition)).targets
    upstream(ws, target)
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, LINE, lineterminator="\n")
        lines.writeheader()
        began = time.monotonic()
        for line in trained(ws, given.definition, target):
            lines.writerow(line)
            file.flush()
            print(line, flush=True)
            longest, began = max(longest, time.monotonic() - began), time.monotonic()
            if time.monotonic() + longest > until:
                print("no time is left for another training")
                return


if __name__ == "__main__":
    main()
