"""Messages around a training: what runs before it, its accuracy, and what to do next.

uotft train --dataset birds --strategy uot
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from uotft.analysis import endings
from uotft.core import config, dvc, storage
from uotft.core.records import Cell
from uotft.core.settings import Recipe
from uotft.core.text import some
from uotft.data import subset
from uotft.pipeline import compatible
from uotft.pipeline.readers import validation_images, validations
from uotft.pipeline.workspace import Workspace
from uotft.training import metrics, objectives

FEW = 10  # labelled images a class; docs/does-it-help.md has the runs


def first(ws: Workspace, target: str) -> str:
    """A line that names the stages to run before ``target`` is trained; "" if all have run."""
    sets = [target] if ws.by_class else [*dict.fromkeys((ws.params.source, target))]
    stages = [f"prepare@{name}" for name in sets] + ["pretrain"]
    stages += [f"embed@{name}" for name in sets] + ["units"]
    stages += [f"overlap@{target}"] * (target in ws.params.targets and not ws.by_class)
    if not (missing := dvc.unmade(ws.root, stages)):
        return ""
    train = ws.params.train
    length = _length(train.recipe) if objectives.trains(train) else "no step"
    lengths = {"pretrain": ws.params.pretrain.recipe}
    if "pretrain" in missing and compatible.brings_weights(ws.params.backbone):
        lengths = {}
    named = [f"{s} ({_length(lengths[s])})" if s in lengths else s for s in missing]
    return (
        f"to run once before the training: {', '.join(named)}; then the training itself "
        f"({length}). A stage of more than a minute says after its first steps how "
        "long it will take on this machine"
    )


def _length(recipe: Recipe) -> str:
    return f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs} epochs"


def validation(ws: Workspace, dataset: str, facts: dict[str, Any]) -> str:
    """Top-1 and mean accuracy per class in percent, on the validation images of a data set."""
    top1, mean = facts["validation"]["val/top1"], facts["validation"]["val/mean_per_class"]
    images = f" ({n} images)" if (n := validation_images(ws, dataset)) else ""
    return f"validation top-1 {top1:.2f} %, mean per class {mean:.2f} %{images}"


def weights(facts: dict[str, Any]) -> str:
    """A line on the weights that a source without images, or without labels, begins with."""
    classes, file = len(facts["classes"]), facts["weights"].get("file", "random weights")
    if classes == 1:
        return f"{file}; no labels to make a classifier of"
    if facts["head"] == "none":
        return f"{file}, without a classifier of its {classes:,} classes"
    return f"{file}, with a classifier of its {classes:,} classes"


def chance(ws: Workspace, dataset: str, facts: dict[str, Any], made: Path) -> str:
    """A warning if the validation accuracy cannot be told from chance; otherwise ""."""
    top1, classes = facts["validation"]["val/top1"], len(facts["classes"])
    n = validation_images(ws, dataset)
    if not n or not metrics.at_chance(round(top1 * n / 100), n, classes):
        return ""
    history, root = os.path.relpath(made / "history.csv"), _root(ws)
    show = f"uotft data show {dataset} --output {dataset}.png"
    return (
        f"validation accuracy {top1:.1f} % of {n} images cannot be told from chance "
        f"({100 / classes:.1f} %, {classes} classes): look at the pictures and their classes "
        f"(`{f'cd {root} && ' * bool(root)}{show}`), and whether the loss falls in "
        f"{history}; if it does not, change learning_rate, steps or size in params.yaml"
    )


def labelled(ws: Workspace, images: int, classes: Callable[[], int]) -> int:
    """About how many of the target's training ``images`` a seed trains on.

    ``classes`` counts the target's classes; it is called for shots and longtail alone.
    """
    wanted = ws.params.subset
    if wanted.fraction or not wanted.given:
        return max(1, round((wanted.fraction or 1) * images))
    alike = np.full(count := classes(), images // count)
    return min(images, int(subset.sizes(alike, wanted, 0).sum()))


def norms(ws: Workspace, target: str) -> str:
    """A line where few labelled images replace the norm statistics of published weights; or ""."""
    train, summary = ws.params.train, ws.data(target).with_suffix(".json")
    moves = train.batch_norm != "frozen" and objectives.trains(train)
    if not moves or not compatible.brings_weights(ws.params.backbone) or not summary.is_file():
        return ""
    images = storage.read_json(summary)
    classes = int(images["classes"])
    shots = round(labelled(ws, images["images"]["train"], lambda: classes) / classes, 1)
    if shots > FEW or not _has_statistics(ws.pretrained()):
        return ""
    return (
        f"{shots:g} labelled images a class are few for new norm statistics; try those of the "
        "weights: train.batch_norm: frozen, with a low learning_rate (as --preset few has it)"
    )


def _has_statistics(pretrained: Path) -> bool:
    """Whether the weights in a folder have batch norm's statistics."""
    weights = pretrained / "model.safetensors"
    if not weights.is_file():
        return False
    with safe_open(weights, "np") as file:
        return any(name.endswith("running_mean") for name in file.keys())  # noqa: SIM118


def ending(ws: Workspace, cell: Cell, facts: dict[str, Any]) -> str:
    """What is wrong with the end of a training, as its MLflow run and the report say; or ""."""
    curve = validations(ws.cell("models", cell))
    return endings.warning(curve, validation_images(ws, cell.target), len(facts["classes"]))


def fallen(ws: Workspace, cell: Cell) -> str:
    """A line, with what to try, on a training that ended below where it began; or ""."""
    why = endings.fall(validations(ws.cell("models", cell)), validation_images(ws, cell.target))
    return f"{cell}: {why}: {endings.ADVICE}" if why else ""


def unread(ws: Workspace) -> str:
    """Why a training reads none of the kept classes; or ""."""
    name = ws.params.train.objective
    # joint by its name: to load an objective imports torch, which takes seconds
    if name == "joint" or "source" in objectives.parts(config.objective(ws.params, name)[0]):
        return ""
    return f"train.objective: {name} trains on none of them"


def made(ws: Workspace, cell: Cell, chosen: dict[str, Any]) -> str:
    """Lines after a training: the classes kept, the folder of the model, the next commands."""
    names = [str(entry["name"]) for entry in chosen["classes"]]
    listed = f": {some(names)}" if names else ""
    if names and (why := unread(ws)):
        listed += f"; {why}"
    folder = ws.cell("models", cell)
    arguments = ["--dataset", cell.target, "--strategy", cell.strategy]
    if ws.overrides:
        which = ["--model", str(folder.relative_to(ws.root))]
        changes = [part for change in ws.overrides for part in ("--set", change)]
        further = (
            shlex.join(["uotft", "evaluate", *arguments, *changes]),
            "measures accuracy on the test images",
        )
    else:
        which = [*arguments, "--seed", str(cell.seed)]
        further = "dvc repro", "trains every strategy and seed, and compares them on test images"
    commands = [
        (shlex.join(["uotft", "predict", *which, "photo.jpg"]), "classifies a picture"),
        further,
        ("uotft ui", "opens the runs in MLflow"),
    ]
    width, root = max(len(command) for command, _ in commands), _root(ws)
    return "\n".join(
        [
            f"kept {len(names)} of {len(chosen['scores'])} of {ws.params.source}{listed}",
            f"model: {short(folder)}",
            f"next{f', after cd {root}' * bool(root)}:",
            *(f"  {command:<{width}}  {what}" for command, what in commands),
        ]
    )


def _root(ws: Workspace) -> str:
    """The folder to change to before the next commands, for a shell; "" in the project itself."""
    return "" if Path.cwd().is_relative_to(ws.root) else shlex.quote(short(ws.root))


def short(path: Path) -> str:
    """``path`` relative to the current folder if it lies in it; otherwise the whole path."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
