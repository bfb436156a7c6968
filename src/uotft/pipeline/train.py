"""The stage train: target images and the selected source images -> weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from uotft.core import storage
from uotft.core.context import Context
from uotft.core.records import Cell, Floats, ImageSet, SourcePart
from uotft.data import subset
from uotft.models import model_io
from uotft.models.inputs import Views
from uotft.pipeline import compatible, freshness, readers
from uotft.pipeline.freshness import claim_together
from uotft.pipeline.readers import (
    labelled_features,
    read_overlap,
    read_selection,
    source_part,
    target_bank,
)
from uotft.pipeline.workspace import Workspace
from uotft.training import assembly, probe, session
from uotft.training.assembly import Material, Objective
from uotft.training.finish import Finish
from uotft.training.probe import Probe

logger = logging.getLogger(__name__)


def train(ws: Workspace, cell: Cell, context: Context) -> None:
    """Fine-tune on one seed's target images and the selected units; writes models/…/SEED/.

    Raises `UserError` if an input is missing, or was not made from today's settings and images.
    """
    ws = ws.of(cell.strategy)
    folder, fingerprint = ws.cell("models", cell), freshness.of_training(ws, cell)
    claim_together(ws.unfinished(folder), fingerprint, context)
    fitted = cache(partial(_probe, ws, cell, context))
    material, facts = _read(ws, cell, lambda: fitted().head)
    has_classifier = facts.get("head") != "none"
    compatible.check_starts(ws, [cell.strategy], classifier=has_classifier)
    objective = assembly.objective_for(ws.params, material.part)
    if "source" in objective.parts:
        compatible.check_images(ws, cell.target, material.part.data, material.target)
    source_names = _source_names(objective, material.part, facts)
    task, left_out = assembly.assemble(material, objective, source_names, context)
    settings = ws.params.train
    output = session.Output(
        folder,
        ws.unfinished(folder),
        fingerprint,
        {
            "stage": "train",
            "target": cell.target,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "objective": objective.name,
            "source_classes": list(source_names),
            "reused": list(material.part.names) if "source" in objective.parts else [],
            "overlap": {"found": len(material.copies), "excluded": left_out},
            "pretrained": facts["sha256"],
            "selection": storage.fingerprint(ws.cell("selections", cell) / "selection.json"),
            "data": storage.fingerprint(ws.data(cell.target)),
            **({"probe": fitted().facts} if settings.target_head == "probe" else {}),
            "made_of": freshness.of_finished(ws, cell, context.accelerator.num_processes),
            "dataset": _shown(ws, cell.target, material.target),
        },
    )
    labelled = Views(material.target, material.rows)
    finish = Finish(labelled, settings.reestimate_norm, settings.head_steps)
    validation = session.Validation(material.target, ws.rows(cell.target, material.target, "val"))
    session.run(task, validation, output, context, finish)


def _read(
    ws: Workspace, cell: Cell, probed: Callable[[], tuple[Floats, Floats]]
) -> tuple[Material, dict[str, Any]]:
    """Read the inputs of a training, and the facts in model.json of the pre-trained network.

    ``probed`` returns the weight and bias of a linear probe, if the target head starts from it.
    """
    chosen = read_selection(ws, cell)
    pretrained, facts = model_io.read(ws.pretrained())
    images = readers.images(ws, cell.target)
    pool = ws.rows(cell.target, images, "train")
    part = source_part(ws, np.array([c["row"] for c in chosen["classes"]], np.int64))
    freshness.check_pretrained(ws, facts, part)
    material = Material(
        ws.params,
        cell.seed,
        pretrained,
        images,
        pool[subset.sample(images.labels[pool], ws.params.subset, cell.seed)],
        part,
        read_overlap(ws, cell.target)["source"],
        ws.overlap(cell.target),
        lambda: target_bank(ws, cell.target, cell.seed).head_means(),
        probed,
    )
    return material, facts


def _probe(ws: Workspace, cell: Cell, context: Context) -> Probe:
    """Logistic regression on the features of the labelled images."""
    found = labelled_features(ws, cell.target, cell.seed)
    made = probe.fit(*found, progress=context.progress, stop=context.stop)
    if context.accelerator.is_main_process:
        logger.info("%s", made)
    return made


def _shown(ws: Workspace, target: str, images: ImageSet) -> dict[str, Any]:
    """How prediction must read a picture: the section of the set, and the colours it was given."""
    section = {"kind": target, **ws.params.datasets[target]}
    if images.files is None:
        return section
    return {**section, "background": images.files.background, "white": images.files.white}


def _source_names(
    objective: Objective, part: SourcePart, pretrained: dict[str, Any]
) -> tuple[str, ...]:
    """The classes of the source head; () if the objective has no source head.

    Without source images, the source head is the whole pre-trained classifier.
    """
    if "source" not in objective.heads:
        return ()
    return part.names if "source" in objective.parts else tuple(pretrained["classes"])
