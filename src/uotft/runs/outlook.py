"""What the user reads around a training: what runs first, how good it is, what is there.

uotft train --dataset birds --strategy uot
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from uotft.core import config, dvc, storage
from uotft.core.records import Cell
from uotft.core.settings import Recipe
from uotft.pipeline.workspace import Workspace
from uotft.training import metrics

NAMED = 5  # kept classes that a line names


def first(ws: Workspace, target: str) -> str:
    """A line on the stages that run before the training of ``target``, or "" if all are made."""
    sets = dict.fromkeys(() if ws.by_class else (ws.params.source,)) | {target: None}
    stages = [f"prepare@{name}" for name in sets] + ["pretrain"]
    stages += [f"embed@{name}" for name in sets] + ["units"]
    stages += [f"overlap@{target}"] * (target in ws.params.targets and not ws.by_class)
    if not (missing := dvc.unmade(ws.root, stages)):
        return ""
    lengths = {"pretrain": ws.params.pretrain.recipe}
    if "pretrain" in missing and not _pretrains(ws):
        lengths = {}
    named = [f"{s} ({_length(lengths[s])})" if s in lengths else s for s in missing]
    return (
        f"to be made once, before the training: {', '.join(named)}; then the training itself "
        f"({_length(ws.params.train.recipe)}). What takes more than a minute says after its first "
        "steps how long it takes on this machine"
    )


def _length(recipe: Recipe) -> str:
    return f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs} epochs"


def _pretrains(ws: Workspace) -> bool:
    """Whether the backbone learns the source here, and brings no weights."""
    module, settings = config.backbone(ws.params.backbone)
    return not hasattr(module, "pretrained") or getattr(settings, "weights", "") == "none"


def validation(ws: Workspace, dataset: str, facts: dict[str, Any]) -> str:
    """Accuracy on the validation images of a data set."""
    top1, mean = facts["validation"]["val/top1"], facts["validation"]["val/mean_per_class"]
    images = f" ({n} images)" if (n := _images(ws, dataset)) else ""
    return f"validation top-1 {top1:.2f} %, mean per class {mean:.2f} %{images}"


def weights(facts: dict[str, Any]) -> str:
    """A line on the weights that a source without images begins with."""
    classes, file = len(facts["classes"]), facts["weights"].get("file", "random weights")
    if facts["head"] == "none":
        return f"{file}, without a classifier of its {classes:,} classes"
    return f"{file}, with a classifier of its {classes:,} classes"


def chance(ws: Workspace, dataset: str, facts: dict[str, Any], made: Path) -> str:
    """A line, if the validation cannot be told from guessing, else ""."""
    top1, classes, n = facts["validation"]["val/top1"], len(facts["classes"]), _images(ws, dataset)
    if not n or not metrics.at_chance(round(top1 * n / 100), n, classes):
        return ""
    history = os.path.relpath(made / "history.csv")
    return (
        f"validation accuracy {top1:.1f} % of {n} images cannot be told from chance "
        f"({100 / classes:.1f} %, {classes} classes): look at the pictures and their classes "
        f"(`uotft data show {dataset} --output {dataset}.png`), and whether the loss falls in "
        f"{history}; if it does not, change learning_rate, steps or size in params.yaml"
    )


def _images(ws: Workspace, dataset: str) -> int:
    """How many validation images a data set has; 0 if its summary is gone."""
    summary = ws.data(dataset).with_suffix(".json")
    count: int = storage.read_json(summary)["images"].get("val", 0) if summary.is_file() else 0
    return count


def made(ws: Workspace, cell: Cell, chosen: dict[str, Any]) -> str:
    """Lines on a finished training: what was kept, where the model is, the next commands."""
    names = [str(entry["name"]) for entry in chosen["classes"]]
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    listed = f": {', '.join(names[:NAMED])}{more}" if names else ""
    folder = ws.cell("models", cell)
    words = ["--dataset", cell.target, "--strategy", cell.strategy]
    if ws.overrides:
        which = ["--model", str(folder.relative_to(ws.root))]
        changes = [word for change in ws.overrides for word in ("--set", change)]
        further = shlex.join(["uotft", "evaluate", *words, *changes]), "reads the test images"
    else:
        which = [*words, "--seed", str(cell.seed)]
        further = "dvc repro", "trains every strategy and seed, and compares them on test images"
    commands = [
        (shlex.join(["uotft", "predict", *which, "photo.jpg"]), "says what a picture shows"),
        further,
        ("uotft ui", "opens the runs in MLflow"),
    ]
    width = max(len(command) for command, _ in commands)
    inside = Path.cwd().is_relative_to(ws.root)
    return "\n".join(
        [
            f"kept {len(names)} of {len(chosen['scores'])} of {ws.params.source}{listed}",
            f"model: {_short(folder)}",
            f"next{'' if inside else f', after cd {shlex.quote(_short(ws.root))}'}:",
            *(f"  {command:<{width}}  {what}" for command, what in commands),
        ]
    )


def _short(path: Path) -> str:
    """A path from the current folder, if it is below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
