"""The cells of an experiment on the project's data, their cost and their results on disk.

`uotft experiment run NAME` trains them; analysis/paper_tables.py makes the tables.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uotft.analysis import experiment_settings, paper_tables
from uotft.analysis.experiments import IMAGES, Experiment, Variation
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, ClassBank
from uotft.core.text import plural
from uotft.data.datasets import imagenet
from uotft.pipeline import cost, freshness, readers
from uotft.pipeline.select import bank_request
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, ranking
from uotft.selection.choosing import choose, expected

logger = logging.getLogger(__name__)
CLASSES = "selectors.label.classes"  # the setting without which a row of `label` has no classes


@dataclass(frozen=True)
class Plan:
    """Which experiment runs, and how.

    ``on`` names targets; if empty, the experiment's own. ``jobs`` cells are trained at a time (0:
    as many as GPUs or cores allow), each by ``num_processes`` workers. With ``train`` false, cells
    are selected and not trained. ``expect`` holds patterns for source classes whose recall is
    measured, and ``table`` is a file with their labels.

    ``settings`` are those of --set and ``top_k`` that of --top-k. ``rows`` are the labels to train,
    or shell patterns; all if empty. ``part`` is (I, N): the I-th of N parts of the cells, from 1.
    ``scheduler`` names the one whose workers train; "" is this machine.
    """

    experiment: Experiment
    on: Sequence[str] = ()
    seeds: Sequence[int] = range(5)
    jobs: int = 0
    num_processes: int = 1
    train: bool = True
    expect: Sequence[str] = ()
    table: str = ""
    settings: Sequence[str] = ()
    top_k: int | None = None
    rows: Sequence[str] = ()
    part: tuple[int, int] = (1, 1)
    scheduler: str = ""


@dataclass(frozen=True)
class Column:
    """The cells of one variation on one target, one per seed of ``seeds``.

    ``own`` are the seeds that this command trains and tests.
    """

    ws: Workspace
    target: str
    variation: Variation
    seeds: tuple[int, ...]
    processes: int
    own: tuple[int, ...]

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

    def costs(self) -> list[tuple[int, float]]:
        """(images, seconds) of its finished cells."""
        facts = filter(None, map(self.finished, self.seeds))
        return [(self.cost, float(found["seconds"])) for found in facts]

    def is_of(self, ws: Workspace, cell: Cell) -> bool:
        """Whether a cell is one of its own."""
        same = (self.ws.variant, self.target, self.strategy)
        return (ws.variant, cell.target, cell.strategy) == same and cell.seed in self.seeds

    @cached_property
    def cost(self) -> int:
        """Number of images that one training reads."""
        return cost.of(self.ws, Cell(self.target, self.strategy, 0))


def settled(ws: Workspace, plan: Plan) -> tuple[Plan, list[str]]:
    """The plan with the settings of each row on this source; lines on what --set replaced."""
    whole = size(ws) if plan.experiment.scaled else (0, 0)
    given = plan.settings, plan.top_k
    experiment, notes = experiment_settings.settled(plan.experiment, ws.params, whole, *given)
    if plan.settings or plan.top_k is not None:
        notes += experiment_settings.alike(experiment)
    return replace(plan, experiment=experiment), notes


def columns(ws: Workspace, plan: Plan) -> list[Column]:
    """The cells of a ``settled`` plan. Which of them are its own: those of its rows and its part.

    Rows of the strategy label whose classes nothing names are left out, with a warning.
    """
    chosen = experiment_settings.matching(plan.experiment, plan.rows)
    first: dict[tuple[str, str, str], int] = {}
    found: list[Column] = []
    for variation in plan.experiment.variations:
        if variation.strategy == "label" and not (plan.expect or _names_classes(ws, variation)):
            logger.warning(
                "experiment %s: row %r is left out: nothing names its classes; give --expect, or "
                "set %s in the row or in params.yaml",
                plan.experiment.name, variation.label, CLASSES,
            )  # fmt: skip
            continue
        changed = _changed(ws, plan, variation)
        for target in targets(ws, plan):
            # rows with the same settings are the same cells, and so of the same part
            place = first.setdefault((changed.variant, target, variation.strategy), len(found))
            part, parts = plan.part
            is_chosen = variation.label in chosen
            own = [s for s in plan.seeds if is_chosen and (place + s) % parts == part - 1]
            seeds = tuple(plan.seeds)
            found.append(Column(changed, target, variation, seeds, plan.num_processes, tuple(own)))
    if not found:
        raise UserError(
            f"experiment {plan.experiment.name}: every row is left out; why stands above"
        )
    return found


def _names_classes(ws: Workspace, variation: Variation) -> bool:
    """Whether a row of the strategy label, or params.yaml, names the classes to keep."""
    return _has_own_classes(variation) or "classes" in ws.params.selectors.get("label", {})


def _has_own_classes(variation: Variation) -> bool:
    return any(override.startswith(f"{CLASSES}=") for override in variation.overrides)


def _changed(ws: Workspace, plan: Plan, variation: Variation) -> Workspace:
    """The workspace of a row. `UserError` names the row whose settings are wrong."""
    overrides = variation.overrides
    if variation.strategy == "label" and plan.expect and not _has_own_classes(variation):
        labels = {"classes": json.dumps(plan.expect), "table": json.dumps(plan.table)}
        named = [f"selectors.label.{name}={value}" for name, value in labels.items()]
        overrides = experiment_settings.layered(named, overrides)  # a row may have its own table
    try:
        changed = ws.with_changes(overrides)
        config.selector_settings(changed.params, variation.strategy)
    except UserError as error:
        name = plan.experiment.name
        raise UserError(f"experiment {name}: row {variation.label!r}: {error}") from error
    return changed


def targets(ws: Workspace, plan: Plan) -> tuple[str, ...]:
    """The data sets of an experiment: ``on``, else its definition's, else all of params.yaml."""
    chosen = tuple(plan.on) or plan.experiment.targets or tuple(ws.params.targets)
    missing = [target for target in chosen if target not in ws.params.datasets]
    if missing:
        raise UserError(
            f"experiment {plan.experiment.name}: its targets {', '.join(missing)} have no section "
            f"under datasets: in params.yaml; add them, or choose others with --on "
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


def results(all_columns: Sequence[Column], plan: Plan) -> dict[str, paper_tables.Results]:
    """{target: {label: {seed: numbers}}} of the finished cells.

    A cell with a selection but no model has its number of classes and their recall of ``expect``.
    """
    found: dict[str, paper_tables.Results] = {}
    for column in all_columns:
        rows = np.empty(0, np.int64)
        keeps = config.keeps(column.ws.params, column.strategy)
        if plan.expect and keeps and column.ws.params.select.unit == "class":
            rows = expected(readers.source_bank(column.ws), [*plan.expect], plan.table)
        for seed in column.seeds:
            numbers = measured(column, seed, on_validation=plan.experiment.on_validation)
            chosen = column.folder("selections", seed) / "selection.json"
            if len(rows) and chosen.is_file():
                kept = np.array([c["row"] for c in storage.read_json(chosen)["classes"]], np.int64)
                numbers |= {"classes": len(kept), "recall": ranking.recall(kept, rows)}
            if numbers:
                labels = found.setdefault(column.target, {})
                labels.setdefault(column.variation.label, {})[seed] = numbers
    return found


def measured(column: Column, seed: int, *, on_validation: bool) -> dict[str, float]:
    """What a finished cell reached, and what it took; nothing before its test.

    ``on_validation`` leaves the test part out: then a finished cell needs no test.
    """
    if not (facts := column.finished(seed)):
        return {}
    model = storage.read_json(column.folder("models", seed) / "model.json")
    numbers = {
        "classes": len(model["reused"]),
        "val_top1": model["validation"]["val/top1"],
        "val_mean_per_class": model["validation"]["val/mean_per_class"],
        "images": column.cost,
        "seconds": facts["seconds"],
    }
    if on_validation:
        return numbers
    tested = storage.read_json(column.metrics) if column.metrics.is_file() else {}
    own = tested.get(str(seed), {})
    if own.get("model") != model["sha256"]:
        return {}
    return {name: own[name] for name in ("top1", "mean_per_class")} | numbers


def bank_results(
    experiment: Experiment,
    source: str,
    target: str,
    expect: Sequence[str],
    table: str,
    top_k: int | None = None,
) -> paper_tables.Results:
    """{label: {0: kept classes and recall}} from two files of class means, without training.

    ``top_k`` replaces the K of every row.
    """
    means = banks.brought(source), banks.brought(target)
    if not experiment.recalls or not expect:
        raise UserError("--source-bank and --target-bank need --expect, and an experiment that "
                        "measures recall: table4 or fig4a")  # fmt: skip
    rows = expected(means[0], [*expect], table)
    found: paper_tables.Results = {}
    for variation in experiment.variations:
        own = variation.overrides
        if experiment.scaled:
            own = experiment_settings.scaled(own, len(means[0].names), IMAGES)
        if variation.strategy != "none":
            own = experiment_settings.layered(own, experiment_settings.given((), top_k))
            kept = _kept(replace(variation, overrides=own), *means)
            numbers = {"classes": len(kept), "recall": ranking.recall(kept, rows)}
            found[variation.label] = {0: numbers}
    return found


def _kept(variation: Variation, source: ClassBank, target: ClassBank) -> Any:
    """The rows that a variation keeps of a source, best first."""
    overrides = config.parsed(variation.overrides)
    own = {
        name.rpartition(".")[2]: value
        for name, value in overrides.items()
        if name.startswith(f"selectors.{variation.strategy}.")
    }
    request = bank_request(variation.strategy, own, {"top_k": overrides["select.top_k"]})
    return choose(source, target, request).kept


def missing(
    all_columns: Sequence[Column],
    found: dict[str, paper_tables.Results],
    failed: dict[tuple[str, str, int], str],
) -> dict[str, list[str]]:
    """{target: a line for each row without some of its seeds}.

    ``failed`` is {(target, label, seed): why}. Rows that this command does not train and that have
    no result are left out.
    """
    notes: dict[str, list[str]] = {}
    for column in all_columns:
        label, target = column.variation.label, column.target
        have = found.get(target, {}).get(label, {})
        lacking = [seed for seed in column.seeds if seed not in have]
        if not lacking or not (have or column.own):
            continue
        why = {seed: failed[target, label, seed] for seed in lacking
               if (target, label, seed) in failed}  # fmt: skip
        others = ", ".join(str(seed) for seed in lacking if seed not in why)
        parts = [f"seed {seed} failed: {' '.join(text.split())}" for seed, text in why.items()]
        parts += [f"no result of {'seeds' if ',' in others else 'seed'} {others}"] if others else []
        have_all = f"{label}: {len(have)} of {plural(len(column.seeds), 'seed')}"
        notes.setdefault(target, []).append("; ".join([have_all, *parts]))
    return notes


def write_runs(
    folder: Path, experiment: Experiment, found: dict[str, paper_tables.Results]
) -> None:
    """Write runs.csv, a line for each training that is finished and measured."""
    storage.write_csv(folder / "runs.csv", paper_tables.runs(experiment, found))


def write_results(
    folder: Path,
    experiment: Experiment,
    found: dict[str, paper_tables.Results],
    metrics: dict[str, str],
    note: str,
    notes: dict[str, list[str]] | None = None,
) -> list[tuple[str, list[tuple[str, ...]], list[str]]]:
    """Write table.md, table.csv, runs.csv and picture.png.

    ``metrics`` is {target: the metric that its literature reports}, ``notes`` {target: lines below
    its table}. Returns for each target its table as text and the lines below it.
    """
    tables = {
        target: paper_tables.rows(experiment, target, results) for target, results in found.items()
    }
    texts = {
        target: paper_tables.cells(experiment, table, metrics.get(target, ""))
        for target, table in tables.items()
    }
    below = {
        target: [
            *paper_tables.corrected(table),
            *(notes or {}).get(target, []),
            *paper_tables.collapses(experiment, found[target]),
        ]
        for target, table in tables.items()
    }
    flat = [
        paper_tables.flat(experiment, target, row)
        for target, table in tables.items()
        for row in table
    ]
    document = paper_tables.document(experiment, texts, note, below)
    storage.write_bytes(folder / "table.md", document.encode())
    storage.write_csv(folder / "table.csv", flat)
    write_runs(folder, experiment, found)
    storage.write_bytes(folder / "picture.png", paper_tables.picture(experiment, tables))
    return [(target, text, below[target]) for target, text in texts.items()]
