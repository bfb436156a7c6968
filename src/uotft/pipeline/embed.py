"""The stage embed: images of a data set -> features of its training part."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uotft.core import disk, storage
from uotft.core.errors import Interrupted
from uotft.pipeline.workspace import Progress, Stop, Workspace, never
from uotft.selection import features as pools
from uotft.training import checkpoints

if TYPE_CHECKING:
    from accelerate import Accelerator


def embed(
    ws: Workspace,
    dataset: str,
    accelerator: Accelerator,
    *,
    progress: Progress,
    stop: Stop = never,
) -> None:
    """Features of every image of the training part; goes on with the shards that are there."""
    from uotft.models import model_io
    from uotft.models.inputs import Views
    from uotft.selection import embedding
    from uotft.training import runtime

    network, facts = model_io.read(ws.pretrained())
    images, size = ws.images(dataset), ws.params.embed.batch_size
    rows, left = ws.rows(dataset, images, "train"), ws.unfinished(ws.features(dataset))
    size_of_one = network.head("target").weight.shape[1] * np.dtype(ws.params.embed.dtype).itemsize
    line = disk.need({"for features and their shards": 2 * len(rows) * size_of_one}, left)
    if accelerator.is_main_process:
        print(f"uotft: {line}", file=sys.stderr)  # noqa: T201
    shards = pools.cut(len(rows), size)
    for part, features in embedding.shards(
        network, Views(images, rows), _share(left, shards, embed_belongs(ws, dataset), accelerator),
        accelerator, batch_size=size, progress=progress, stop=stop,
    ):  # fmt: skip
        arrays = {"features": features}
        if hasattr(network.backbone, "project"):  # selection compares others than heads see
            arrays = {"features": embedding.projected(network, features), "trunk": features}
        pools.keep(left, part, arrays, ws.params.embed.dtype)
    if runtime.agreed(stop, accelerator):  # a process waits here until all others are done
        raise Interrupted("embedding was interrupted")
    if accelerator.is_main_process:
        pools.join(
            left,
            shards,
            ws.features(dataset),
            images.labels[rows],
            rows=rows,
            names=np.array(images.names),
            backbone=np.array(facts["sha256"]),
            data=np.array(storage.fingerprint(ws.data(dataset))),
        )
        checkpoints.remove(left)


def _share(
    left: Path, shards: list[range], belongs: dict[str, Any], accelerator: Accelerator
) -> list[range]:
    """This process's share of the shards that are not in the unfinished folder ``left`` yet."""
    if accelerator.is_main_process:
        if aside := checkpoints.claim(left, belongs):
            print(f"uotft: {aside}", file=sys.stderr)  # noqa: T201
        checkpoints.begin(left, belongs)
    accelerator.wait_for_everyone()
    missing = pools.missing(left, shards)
    accelerator.wait_for_everyone()  # until all have seen the same
    if accelerator.is_main_process and (there := len(shards) - len(missing)):
        print(f"uotft: going on with {there} of {len(shards)} shards", file=sys.stderr)  # noqa: T201
    return missing[accelerator.process_index :: accelerator.num_processes]


def embed_belongs(ws: Workspace, dataset: str) -> dict[str, Any]:
    """What shards of features belong to: settings, and fingerprints of data and weights."""
    return {
        "embed": ws.params.embed.model_dump(),
        "shard": pools.BATCHES,
        "files": ws.fingerprints([ws.pretrained() / "model.json", ws.data(dataset)]),
    }


def embedded(ws: Workspace, dataset: str) -> str:
    """A line that says what ``embed`` made."""
    images, size = pools.read(ws.features(dataset), hashed=False)["features"].shape
    return f"{dataset}: {images} training images, {size} features"
