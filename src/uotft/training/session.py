"""Runs one training from its first step to its files: validation, checkpoints, weights, history."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import disk, storage
from uotft.core.context import Context
from uotft.core.records import ImageSet
from uotft.models import model_io
from uotft.models.inputs import Views
from uotft.models.network import Network
from uotft.training import evaluation, metrics
from uotft.training.finish import Finish
from uotft.training.loop import Task, fit
from uotft.training.state import Keeper
from uotft.training.streams import decode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """Where a training writes: its model to ``folder``, its checkpoints to ``unfinished``.

    ``fingerprint`` identifies the training's inputs; ``facts`` go into model.json.
    """

    folder: Path
    unfinished: Path
    fingerprint: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """The validation images: some ``rows`` of ``images``."""

    images: ImageSet
    rows: NDArray[np.int64]

    @property
    def views(self) -> Views:
        """The images as the network sees them in a test: not distorted, cropped at the centre."""
        return Views(self.images, self.rows)

    def measure(self, network: Network, context: Context) -> dict[str, float]:
        """Top-1 accuracy and mean accuracy per class, in percent."""
        confusion = evaluation.confusion(
            network,
            self.views,
            self.images.labels[self.rows],
            context,
            classes=len(self.images.names),
        )
        return {
            "val/top1": metrics.top1(confusion),
            "val/mean_per_class": metrics.mean_per_class(confusion),
        }


def run(
    task: Task,
    validation: Validation,
    output: Output,
    context: Context,
    finish: Finish | None = None,
) -> None:
    """Train, validate on the way, and write weights, facts and history.

    Resumes from the checkpoint of the same training, if that was interrupted. ``finish`` may change
    the network after the last step; the last validation is the one in model.json. The caller
    removes the checkpoints when its own work is done too, since it may be killed before that.
    """
    accelerator = context.accelerator
    decode(validation.images, validation.rows, context)
    line = _need_space(task, output.unfinished, accelerator.num_processes)
    if accelerator.is_main_process:
        logger.info(line)
    history: dict[int, dict[str, float]] = {}
    keeper = Keeper(output.unfinished, output.fingerprint, history, context.log)

    def remember(step: int, numbers: dict[str, float]) -> None:
        history.setdefault(step, {}).update(numbers)
        context.log(step, numbers)

    remembering = replace(context, log=remember)

    def validate(network: Network) -> dict[str, float]:
        return validation.measure(network, context)

    network = fit(
        task,
        remembering,
        validate=validate,
        keeper=keeper,
        more=bool(finish),
        last=not finish or finish.head_steps > 0,
    )
    if finish:
        finish(replace(task, network=network), remembering, validate)
    if accelerator.is_main_process:
        _write(network, task, validation, output, keeper)


def _write(
    network: Network, task: Task, validation: Validation, output: Output, keeper: Keeper
) -> None:
    """history.csv, model.safetensors and model.json."""
    points = [{"step": step, **numbers} for step, numbers in sorted(keeper.history.items())]
    storage.write_csv(output.folder / "history.csv", points)
    mixed = {"processes": keeper.processes} if len(keeper.processes) > 1 else {}
    facts = {
        **output.facts,
        **mixed,
        "backbone": output.fingerprint["backbone"],
        "classes": list(validation.images.names),
        "source_classes": output.facts.get("source_classes", []),
        "image_size": list(validation.views.shape[1:]),
        "steps": task.recipe.steps,
        "validation": {k: v for k, v in points[-1].items() if k.startswith("val/")},
    }
    model_io.write(output.folder, network, facts)


def _need_space(task: Task, unfinished: Path, processes: int) -> str:
    """A line on the disk space that checkpoints and the model take; an error if it is not free.

    A new checkpoint is written before the oldest is removed, so three exist at a time. Checkpoints
    of an interrupted training are already on the disk and count towards the three.
    """
    weights = sum(t.nbytes for t in task.network.state_dict().values())
    state = weights * (1 + (task.recipe.momentum > 0) + (task.recipe.ema > 0)) * processes
    there = sum(path.stat().st_size for path in unfinished.rglob("*.safetensors"))
    wanted = {"for checkpoints": max(0, 3 * state - there), "for the model": weights}
    return disk.need(wanted, unfinished)
