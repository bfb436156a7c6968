"""The cells of an experiment on the project's data, their cost and their results on disk.

`uotft experiment run NAME` trains them; analysis/paper_tables.py makes the tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uotft.analysis import paper_tables
from uotft.analysis.experiments import IMAGES, Experiment, Variation
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, ClassBank
from uotft.data import subset
from uotft.data.datasets import imagenet
from uotft.pipeline import freshness
from uotft.pipeline.readers import source_bank
from uotft.pipeline.select import bank_request
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, ranking
from uotft.selection.choosing import choose, expected
from uotft.training import objectives


@dataclass(frozen=True)
class Column:
    """The cells of one variation on one target, one per seed of ``seeds``."""

    ws: Workspace
    target: str
    variation: Variation
    seeds: tuple[int, ...]
    processes: int

    @property
    def strategy(self) -> str:
        """How source classes are selected."""
        return self.variation.strategy

    @property
    def metrics(self) -> Path:
        """The file with the test metrics of all seeds on disk, perhaps more than ``seeds``."""
        return self.ws.metrics(self.target, self.strategy)

    def folder(self, kind: str, seed: int) -> Path:
        """The folder of one of its cells; ``kind`` is selections or models."""
        return self.ws.cell(kind, Cell(self.target, self.strategy, seed))

    def finished(self, seed: int) -> dict[str, Any] | None:
        """The facts of a finished cell, else None."""
        return freshness.finished(self.ws, Cell(self.target, self.strategy, seed), self.processes)

    @cached_property
    def cost(self) -> int:
        """Number of images that one training reads."""
        settings = self.ws.params.train
        module, _ = config.objective(self.ws.params, settings.objective)
        of_source = len(objectives.parts(module) - {"target"}) if self.strategy != "none" else 0
        images = storage.read_images(self.ws.data(self.target))
        per_class = np.bincount(images.labels[images.rows("train")])
        labelled = int(subset.sizes(per_class, self.ws.params.subset, 0).sum())
        # as in training: epochs become steps by the number of labelled images
        recipe = settings.recipe.counted(labelled, settings.target_batch)
        batch = settings.target_batch + of_source * settings.source_batch
        head = settings.head_steps * settings.target_batch
        return recipe.steps * recipe.accumulate * batch + head


def columns(
    ws: Workspace,
    experiment: Experiment,
    targets: Sequence[str],
    seeds: int,
    processes: int,
    expect: Sequence[str],
    table: str,
) -> list[Column]:
    """The cells of an experiment on this source, scaled to its number of classes and images.

    Variations of the strategy label are left out unless ``expect`` names the labels.
    """
    whole = size(ws)
    found = []
    for variation in experiment.variations:
        overrides = paper_tables.scaled(variation.overrides, *whole)
        if variation.strategy == "label":
            if not expect:
                continue
            labels = {"classes": json.dumps(expect), "table": json.dumps(table)}
            overrides += tuple(f"selectors.label.{name}={value}" for name, value in labels.items())
        changed = ws.with_changes(overrides)
        config.selector_settings(changed.params, variation.strategy)
        found += [
            Column(changed, target, variation, tuple(range(seeds)), processes) for target in targets
        ]
    return found


def targets(ws: Workspace, name: str, on: Sequence[str]) -> tuple[str, ...]:
    """The data sets of an experiment: ``on``, else its definition's, else all of params.yaml."""
    chosen = tuple(on) or paper_tables.load(name).targets or tuple(ws.params.targets)
    missing = [target for target in chosen if target not in ws.params.datasets]
    if missing:
        raise UserError(
            f"experiment {name}: its targets {', '.join(missing)} have no section under datasets: "
            f"in params.yaml; add them, or choose others with --on "
            f"({', '.join(sorted({*ws.params.datasets} - {ws.params.source}))})"
        )
    return chosen


def size(ws: Workspace) -> tuple[int, int]:
    """How many classes and training images the source has; of one by class, in ImageNet itself."""
    if ws.by_class:
        return imagenet.CARD.classes, imagenet.CARD.images["train"]
    summary = storage.read_json(ws.data(ws.params.source).with_suffix(".json"))
    return summary["classes"], summary["images"]["train"]


def scale(ws: Workspace) -> str:
    """A sentence on how the paper's numbers of classes and images are scaled to this source."""
    return paper_tables.scale_note(ws.params.source, *size(ws))


def literature(ws: Workspace, names: Sequence[str]) -> dict[str, str]:
    """{target: the metric that its literature reports}, for the public sets among ``names``."""
    cards = {t: getattr(config.known_dataset(ws.params, t)[0], "CARD", None) for t in names}
    return {target: card.metric for target, card in cards.items() if card}


def unmeasured(column: Column) -> tuple[list[int], dict[str, Any]]:
    """(finished seeds without valid test metrics, {seed: metrics} of the others).

    All seeds in the folder count, because one file has the metrics of all. Metrics are valid if
    they are of the model on disk and not older than it: a model that was trained again after its
    test may have been tested on other images.
    """
    made = column.folder("models", 0).parent.glob(f"*/{freshness.FINGERPRINT}")
    seeds = sorted(int(path.parent.name) for path in made)
    done = [seed for seed in seeds if column.finished(seed)]
    written = storage.read_json(column.metrics) if column.metrics.is_file() else {}
    known = {}
    for seed in map(str, done):
        folder = column.folder("models", int(seed))
        model = storage.read_json(folder / "model.json")["sha256"]
        newer = written and _modified(column.metrics) >= _modified(folder / freshness.FINGERPRINT)
        if newer and written.get(seed, {}).get("model") == model:
            known[seed] = written[seed]
    return [seed for seed in done if str(seed) not in known], known


def _modified(path: Path) -> int:
    """When a file was last written, in ns."""
    return path.stat().st_mtime_ns


def results(
    all_columns: Sequence[Column], expect: Sequence[str], table: str
) -> dict[str, paper_tables.Results]:
    """{target: {label: {seed: numbers}}} of the finished cells.

    A cell with a selection but no model has its number of classes and their recall of ``expect``.
    """
    found: dict[str, paper_tables.Results] = {}
    for column in all_columns:
        tested = storage.read_json(column.metrics) if column.metrics.is_file() else {}
        rows = np.empty(0, np.int64)
        if expect and column.strategy != "none" and column.ws.params.select.unit == "class":
            rows = expected(source_bank(column.ws), [*expect], table)
        for seed in column.seeds:
            numbers: dict[str, float] = {}
            if column.finished(seed) and (own := tested.get(str(seed))):
                numbers = {name: own[name] for name in ("top1", "mean_per_class")}
                numbers["classes"] = own["source_classes"]
            chosen = column.folder("selections", seed) / "selection.json"
            if len(rows) and chosen.is_file():
                kept = np.array([c["row"] for c in storage.read_json(chosen)["classes"]], np.int64)
                numbers |= {"classes": len(kept), "recall": ranking.recall(kept, rows)}
            if numbers:
                labels = found.setdefault(column.target, {})
                labels.setdefault(column.variation.label, {})[seed] = numbers
    return found


def bank_results(
    experiment: Experiment, source: str, target: str, expect: Sequence[str], table: str
) -> paper_tables.Results:
    """{label: {0: kept classes and recall}} from two files of class means, without training."""
    means = banks.brought(source), banks.brought(target)
    if not experiment.recalls or not expect:
        raise UserError("--source-bank and --target-bank need --expect, and an experiment that "
                        "measures recall: table4 or fig4a")  # fmt: skip
    rows = expected(means[0], [*expect], table)
    found: paper_tables.Results = {}
    for variation in experiment.variations:
        if variation.strategy != "none":
            kept = _kept(variation, *means)
            numbers = {"classes": len(kept), "recall": ranking.recall(kept, rows)}
            found[variation.label] = {0: numbers}
    return found


def _kept(variation: Variation, source: ClassBank, target: ClassBank) -> Any:
    """The rows that a variation keeps of a source, best first."""
    overrides = config.parsed(paper_tables.scaled(variation.overrides, len(source.names), IMAGES))
    own = {
        name.rpartition(".")[2]: value
        for name, value in overrides.items()
        if name.startswith(f"selectors.{variation.strategy}.")
    }
    request = bank_request(variation.strategy, own, {"top_k": overrides["select.top_k"]})
    return choose(source, target, request).kept


def write_results(
    folder: Path,
    experiment: Experiment,
    found: dict[str, paper_tables.Results],
    metrics: dict[str, str],
    note: str,
) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Write table.md, table.csv, runs.csv and picture.png; returns each target's table as text.

    ``metrics`` is {target: the metric that its literature reports}.
    """
    tables = {
        target: paper_tables.rows(experiment, target, results) for target, results in found.items()
    }
    texts = {
        target: paper_tables.cells(experiment, table, metrics.get(target, ""))
        for target, table in tables.items()
    }
    flat = [paper_tables.flat(target, row) for target, table in tables.items() for row in table]
    document = paper_tables.document(experiment, texts, note)
    storage.write_bytes(folder / "table.md", document.encode())
    storage.write_csv(folder / "table.csv", flat)
    storage.write_csv(folder / "runs.csv", paper_tables.runs(found))
    storage.write_bytes(folder / "picture.png", paper_tables.picture(experiment, tables))
    return [*texts.items()]
