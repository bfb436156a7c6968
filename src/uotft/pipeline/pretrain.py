"""The stage pretrain: a backbone on every source class, or weights that are brought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uotft.core.errors import Interrupted
from uotft.core.records import ImageSet
from uotft.pipeline.train import _decisive, _fit_and_write, _Stream
from uotft.pipeline.workspace import Log, Progress, Stop, Workspace, never

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uotft.models.weights import Pretrained


def pretrain(
    ws: Workspace,
    accelerator: Accelerator,
    *,
    log: Log,
    progress: Progress,
    stop: Stop = never,
) -> None:
    """Train the backbone on every source class; writes pretrained/SOURCE/.

    A backbone that brings weights is not trained: it gets a classifier and is written.
    """
    import torch

    from uotft.models import model_io
    from uotft.training.objectives import plain

    settings, images = ws.params.pretrain, ws.images(ws.params.source)
    with accelerator.main_process_first():  # one process downloads, the others find the file
        found = model_io.pretrained(ws.params.backbone)
    if found is not None:
        _adopt(ws, found, images, accelerator, log, progress, stop)
        return
    torch.manual_seed(settings.seed)
    network = model_io.build(ws.params.backbone, len(images.names))
    stream = _Stream(accelerator, settings.seed, settings.augment, network.channels, progress, stop)
    rows = ws.rows(ws.params.source, images, "train")
    streams = {"target": stream("target", images, rows, images.labels[rows], settings.batch_size)}
    recipe = settings.recipe.counted(len(rows), settings.batch_size)
    facts = {"stage": "pretrain", "source": ws.params.source, "seed": settings.seed}
    belongs = pretrain_belongs(ws)
    _fit_and_write(
        ws, ws.pretrained(), network, streams, lambda o, b: plain.terms(o, b, 0), plain.ROUTES,
        recipe, images, facts, belongs, accelerator, log, progress, stop,
    )  # fmt: skip


def _adopt(
    ws: Workspace,
    found: Pretrained,
    images: ImageSet,
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
    stop: Stop,
) -> None:
    """Write pre-trained weights as pretrained/SOURCE/, validated and with a row a source class.

    The rows are those of the weights' own classifier if it has as many, else of class means.
    """
    import torch

    from uotft.models.inputs import Views
    from uotft.models.network import Network, nearest_mean_rows
    from uotft.selection import embedding, features as pools
    from uotft.training.objectives import plain

    settings, classes = ws.params.pretrain, len(images.names)
    network = Network(found.backbone, target=classes).to(accelerator.device)
    own = found.classifier
    if own is not None and own[0].shape == network.head("target").weight.shape:
        head = "classifier"
        network.start_head("target", *own)
    else:
        head = "class means"
        rows = ws.rows(ws.params.source, images, "train")
        size = ws.params.embed.batch_size
        shards = embedding.shards(
            network, Views(images, rows), pools.cut(len(rows), size), accelerator,
            batch_size=size, progress=progress, stop=stop,
        )  # fmt: skip
        means, _ = pools.class_means((part for _, part in shards), images.labels[rows], classes)
        if stop():  # there may be shards missing
            raise Interrupted("embedding was interrupted")
        rows_of_means = nearest_mean_rows(torch.as_tensor(means).float(), settings.head_scale)
        network.start_head("target", *rows_of_means)
    facts = {
        "stage": "pretrain",
        "source": ws.params.source,
        "seed": settings.seed,
        "weights": found.origin,
        "head": head,
    }
    _fit_and_write(
        ws, ws.pretrained(), network, {}, lambda o, b: {}, plain.ROUTES,
        settings.recipe.model_copy(update={"steps": 0}), images, facts,
        pretrain_belongs(ws), accelerator, log, progress, stop,
    )  # fmt: skip


def pretrain_belongs(ws: Workspace) -> dict[str, Any]:
    """What an unfinished pre-training belongs to: settings, and fingerprints of what it reads."""
    return {
        "backbone": ws.params.backbone,
        "pretrain": _decisive(ws.params.pretrain.model_dump()),
        "files": ws.fingerprints([ws.data(ws.params.source)]),
    }
