"""Assembles one fine-tuning: objective, network and heads, streams, loss terms.

This module decides how each head starts, which source images are left out, and which objective
replaces that of params.yaml when no source class is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotft.core import config
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Floats, ImageSet, SourcePart
from uotft.core.settings import Params, Train
from uotft.models.embedding import features
from uotft.models.inputs import Views
from uotft.models.network import (
    Network,
    as_head,
    freeze_norms,
    nearest_mean_rows,
    random_rows,
    separate_norms,
)
from uotft.training import objectives
from uotft.training.loop import Task
from uotft.training.streams import Place, Sampling, Stream, decode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """The inputs of one fine-tuning.

    ``rows`` (n,) are the seed's labelled images of ``target``, and ``part`` holds the kept source
    images. ``copies`` (m,) are the source rows that are also test images of the target, read from
    the file ``overlap``. The target head can start from the class means (T, D) that
    ``target_means`` returns, or from the weight (T, D) and bias (T,) of ``target_probe``.
    """

    params: Params
    seed: int
    pretrained: Network
    target: ImageSet
    rows: NDArray[np.int64]
    part: SourcePart
    copies: NDArray[np.int64]
    overlap: Path
    target_means: Callable[[], Floats]
    target_probe: Callable[[], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Objective:
    """An objective, its settings, the parts of a batch that it reads, the heads that it trains."""

    name: str
    module: ModuleType
    settings: Any

    @property
    def parts(self) -> set[str]:
        """Parts of the batch that it reads: some of target, source, strong."""
        return objectives.parts(self.module)

    @property
    def heads(self) -> set[str]:
        """Heads that it trains: some of target, source."""
        return objectives.heads(self.module)


def objective_for(params: Params, part: SourcePart) -> Objective:
    """The objective of params.yaml; ``plain`` if it reads source images and none are kept.

    Settings that contradict it are a ``UserError``.
    """
    found = Objective(params.train.objective, *config.objective(params, params.train.objective))
    objectives.check(params.train)
    if "source" in found.parts and not len(part.names):
        return Objective("plain", *config.objective(params, "plain"))
    return found


def assemble(
    material: Material, objective: Objective, source_names: tuple[str, ...], context: Context
) -> tuple[Task, int]:
    """The task, and the number of source images left out because they are also test images.

    ``source_names`` are the classes of the source head; empty if the objective has no such head.
    """
    settings, images = material.params.train, material.target
    network = build(material, objective, source_names)
    if settings.batch_norm == "frozen":
        count = freeze_norms(network)
        if not count and context.accelerator.is_main_process:
            name = material.params.backbone["name"]
            logger.warning("train.batch_norm: frozen changes nothing: %s has no batch norm", name)
    streams, left_out = _streams(material, objective, network.channels, context)
    recipe = objectives.recipe(settings, len(material.rows))
    network.to(context.accelerator.device)
    start = objectives.StartingPoint(
        settings.source_weight,
        network.backbone,
        network.head("target"),
        lambda: seen(material.pretrained, images, material.rows, context),
        lambda: _seen_source(material, objective, context),
        material.part.classes,
    )
    terms = objectives.ready(objective.module, objective.settings, start)
    return Task(network, streams, terms, recipe, objective.module.ROUTES), left_out


def build(material: Material, objective: Objective, source_names: tuple[str, ...]) -> Network:
    """The pre-trained backbone with new heads, which start as the settings say."""
    settings, part = material.params.train, material.part
    torch.manual_seed(material.seed)
    network = Network(
        material.pretrained.backbone, target=len(material.target.names), source=len(source_names)
    )
    if settings.batch_norm == "target":
        separate_norms(network)
    classifier, known = material.pretrained.head("target"), part.classes
    starts = {"target": settings.target_head, "source": settings.source_head}
    # An objective that reads no source images (co_tuning) may still have a source head. That head
    # is then the whole pre-trained classifier, over all source classes.
    if "source" not in objective.parts:
        starts["source"], known = "classifier", np.arange(len(classifier.weight))
    for head in network.heads:
        if starts[head] == "random":
            start = random_rows(head, network.head(head).weight.shape, material.seed)
        elif starts[head] == "probe":
            start = as_head(*material.target_probe())
        elif starts[head] == "classifier" and len(known):
            start = classifier.weight[known], classifier.bias[known]
        else:  # also for clusters: the pre-trained classifier has no rows for them
            means = material.target_means() if head == "target" else part.means
            start = start_from_means(means, settings)
        network.start_head(head, *start)
    return network


def start_from_means(means: Floats, settings: Train) -> tuple[Tensor, Tensor]:
    """Weight (T, D) and bias (T,) of a head that ranks classes by distance to ``means`` (T, D)."""
    return nearest_mean_rows(torch.as_tensor(means, dtype=torch.float32), settings.head_scale)


def _streams(
    material: Material, objective: Objective, channels: int, context: Context
) -> tuple[dict[str, Stream], int]:
    """The streams of target and kept source images, and the number of source images left out."""
    settings, images, rows = material.params.train, material.target, material.rows

    def sampling(name: str, batch_size: int) -> Sampling:
        return Sampling(name, batch_size, material.seed, settings.augment, 1, channels)

    of_target = sampling("target", settings.target_batch)
    streams = {"target": stream(images, rows, images.labels[rows], of_target, context)}
    if "source" not in objective.parts:
        return streams, 0
    part = material.part
    keep = np.ones(len(part.rows), bool)
    if settings.overlap == "exclude":
        keep = ~np.isin(part.rows, material.copies)
    if not keep.any():
        raise UserError(
            "every image of the selected source classes is also a test image of the target "
            f"({material.overlap}): select other classes, or prepare another source"
        )
    kept = part.data, part.rows[keep], part.labels[keep]
    of_source = sampling("source", settings.source_batch)
    streams["source"] = stream(*kept, of_source, context)
    if "strong" in objective.parts:
        # the same name and seed as of_source, so the same images; view 2 distorts them differently
        strong = Sampling(
            "source", settings.source_batch, material.seed, settings.strong, 2, channels
        )
        streams["strong"] = stream(*kept, strong, context)
    return streams, int((~keep).sum())


def stream(
    images: ImageSet,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    sampling: Sampling,
    context: Context,
) -> Stream:
    """This process's stream of some rows; decodes their pictures first."""
    accelerator = context.accelerator
    world = accelerator.num_processes
    # batch norm has no variance over a single image
    if sampling.batch_size % world or sampling.batch_size // world < 2:
        raise UserError(
            f"the {sampling.name} batch of {sampling.batch_size} cannot be shared by {world} "
            f"processes: set it in params.yaml to a multiple of {world} that gives each process at "
            "least two images"
        )
    decode(images, rows, context)
    place = Place(accelerator.device, accelerator.process_index, world)
    return Stream(images.images, labels, sampling, place, origin=rows, files=images.files)


def seen(
    pretrained: Network, images: ImageSet, rows: NDArray[np.int64], context: Context
) -> tuple[Tensor, Tensor]:
    """The pre-trained classifier's logits (n, classes) for some images, and their labels (n,)."""
    found = torch.as_tensor(features(pretrained, Views(images, rows), context))
    with torch.no_grad():
        return pretrained.head("target")(found), torch.as_tensor(images.labels[rows])


def _seen_source(
    material: Material, objective: Objective, context: Context
) -> tuple[Tensor, Tensor]:
    """The same for the source's validation images; labels (n,) are rows of the classifier."""
    part, (rows, labels) = material.part, material.part.held_out
    if not len(rows):
        raise UserError(
            f"the source {material.params.source} has no validation image here to fit the "
            f"temperature on: set objectives.{objective.name}.calibrate: false"
        )
    logits, _ = seen(material.pretrained, part.data, rows, context)
    return logits, torch.as_tensor(labels)
