"""The stage embed: images of a data set -> features of its training part."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uotft.core import disk, removal, storage
from uotft.core.context import Context
from uotft.core.errors import Interrupted
from uotft.pipeline import freshness, readers
from uotft.pipeline.freshness import Fingerprint, claim_together
from uotft.pipeline.workspace import Workspace
from uotft.selection import features

if TYPE_CHECKING:
    from uotft.models.network import Network

logger = logging.getLogger(__name__)


def embed(ws: Workspace, dataset: str, context: Context) -> None:
    """Compute features of every training image; resumes from the shards that are there."""
    from uotft.models import model_io

    network, facts = model_io.read(ws.pretrained())
    shards = compute(ws, dataset, network, freshness.of_features(ws, dataset), context)
    if context.accelerator.is_main_process:
        images, left = readers.images(ws, dataset), ws.unfinished(ws.features(dataset))
        rows = ws.rows(dataset, images, "train")
        features.join(
            left,
            shards,
            ws.features(dataset),
            images.labels[rows],
            ws.params.embed.dtype,
            rows=rows,
            names=np.array(images.names),
            backbone=np.array(facts["sha256"]),
            data=np.array(storage.fingerprint(ws.data(dataset))),
        )
        removal.remove(left)


def compute(
    ws: Workspace, dataset: str, network: Network, fingerprint: Fingerprint, context: Context
) -> list[range]:
    """Write shards of the features of every training image; returns the rows of each shard.

    Each process computes its share of those that are missing, and waits for the others.
    """
    from uotft.models import embedding
    from uotft.models.inputs import Views
    from uotft.training import runtime

    images, size = readers.images(ws, dataset), ws.params.embed.batch_size
    rows, left = ws.rows(dataset, images, "train"), ws.unfinished(ws.features(dataset))
    bytes_of_one = sum(np.dtype(kind).itemsize for kind in (features.SHARDS, ws.params.embed.dtype))
    wanted = bytes_of_one * len(rows) * network.head("target").weight.shape[1]
    line = disk.need({"for features and their shards": wanted}, left)
    if context.accelerator.is_main_process:
        logger.info(line)
    shards = features.cut(len(rows), size)
    mine = _share(left, shards, fingerprint, context)
    views = Views(images, rows)
    for part, found in embedding.shards(network, views, mine, context, batch_size=size):
        arrays = {"features": found}
        if hasattr(
            network.backbone, "project"
        ):  # selection compares projected features, heads see the trunk's
            arrays = {"features": embedding.projected(network, found), "trunk": found}
        features.keep(left, part, arrays, ws.params.embed.dtype)
    if runtime.agreed(context.stop, context.accelerator):  # every process waits here for the others
        raise Interrupted("embedding was interrupted")
    return shards


def _share(
    left: Path, shards: list[range], fingerprint: Fingerprint, context: Context
) -> list[range]:
    """This process's share of the missing shards."""
    accelerator = context.accelerator
    claim_together(left, fingerprint, context)
    if accelerator.is_main_process:
        freshness.begin(left, fingerprint)
    accelerator.wait_for_everyone()
    missing = features.missing(left, shards)
    accelerator.wait_for_everyone()  # no process writes a shard before all have listed them
    if accelerator.is_main_process and (there := len(shards) - len(missing)):
        logger.info(f"resuming: {there} of {len(shards)} shards are done")
    return missing[accelerator.process_index :: accelerator.num_processes]


def embedded(ws: Workspace, dataset: str) -> str:
    """A line that says what ``embed`` made."""
    images, size = features.read(ws.features(dataset), hashed=False)["features"].shape
    return f"{dataset}: {images} training images, {size} features"
