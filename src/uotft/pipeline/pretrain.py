"""The stage pretrain: a backbone trained on every source class, or given weights."""

from __future__ import annotations

import torch
from torch import Tensor

from uotft.core import config, removal, storage
from uotft.core.context import Context
from uotft.core.records import ImageSet
from uotft.data import wordnet
from uotft.models import model_io
from uotft.models.network import Network, nearest_mean_rows
from uotft.models.weights import Pretrained
from uotft.pipeline import embed, freshness, readers
from uotft.pipeline.freshness import claim_together
from uotft.pipeline.workspace import Workspace
from uotft.selection import features
from uotft.training import assembly, session
from uotft.training.loop import Task
from uotft.training.objectives import plain
from uotft.training.streams import Sampling


def pretrain(ws: Workspace, context: Context) -> None:
    """Train the backbone on every source class; writes pretrained/SOURCE/.

    A backbone with given weights is not trained; it only gets a classifier.
    """
    fingerprint = freshness.of_pretraining(ws)
    claim_together(ws.unfinished(ws.pretrained()), fingerprint, context)
    if ws.by_class:
        if context.accelerator.is_main_process:
            _take(ws)
        return
    settings, images = ws.params.pretrain, readers.images(ws, ws.params.source)
    with context.accelerator.main_process_first():  # one downloads, the others find the file
        found = model_io.pretrained(ws.params.backbone, ws.root)
    facts = {"stage": "pretrain", "source": ws.params.source, "seed": settings.seed}
    if found is None:
        task = _task(ws, images, context)
    else:
        task, head = _adopted(ws, found, images, context)
        facts |= {"weights": found.origin, "head": head}
    output = session.Output(ws.pretrained(), ws.unfinished(ws.pretrained()), fingerprint, facts)
    validation = session.Validation(images, ws.rows(ws.params.source, images, "val"))
    session.run(task, validation, output, context)
    left = ws.unfinished(ws.features(ws.params.source))
    if context.accelerator.is_main_process and _has_features(ws) and left.exists():
        removal.remove(left)  # else embed joins the shards that the means were made of


def _has_features(ws: Workspace) -> bool:
    """Whether the source's features are there and of the network that was written now."""
    made = ws.features(ws.params.source)
    if not (made / features.INDEX).is_file():
        return False
    index, facts = features.read_index(made), storage.read_json(ws.pretrained() / "model.json")
    of = str(index["backbone"]), str(index.get("data", ""))
    return of == (facts["sha256"], storage.fingerprint(ws.data(ws.params.source)))


def _take(ws: Workspace) -> None:
    """Write the given weights with their own classifier, of a source without images yet.

    Its rows are the classes of the source, in the order of published classifiers. Where the weights
    have no such rows, the head is zero: `compatible` refuses what would start from it.
    """
    module, settings = config.dataset(ws.params, ws.params.source)
    classes = module.every_class()
    found = model_io.pretrained(ws.params.backbone, ws.root)
    torch.manual_seed(ws.params.pretrain.seed)
    network = model_io.build(ws.params.backbone, len(classes))
    head, start = (
        "none",
        (torch.zeros_like(network.head("target").weight), torch.zeros(len(classes))),
    )
    if found is not None:
        network = Network(found.backbone, target=len(classes))
        if found.classifier is not None and found.classifier[0].shape == start[0].shape:
            head, start = "classifier", found.classifier
    network.start_head("target", *start)
    facts = {
        "stage": "pretrain",
        "source": ws.params.source,
        "weights": found.origin if found else {},
        "head": head,
        "backbone": ws.params.backbone,
        "classes": list(classes),
        "source_classes": [],
        "image_size": [settings.size, settings.size, 3],
        "validation": {},
    }
    model_io.write(ws.pretrained(), network, facts)


def _task(ws: Workspace, images: ImageSet, context: Context) -> Task:
    """Training from random weights on all classes."""
    settings = ws.params.pretrain
    torch.manual_seed(settings.seed)
    network = model_io.build(ws.params.backbone, len(images.names))
    rows = ws.rows(ws.params.source, images, "train")
    sampling = Sampling(
        "target",
        settings.batch_size,
        settings.seed,
        settings.augment,
        channels=network.channels,
    )
    stream = assembly.stream(images, rows, images.labels[rows], sampling, context)
    recipe = settings.recipe.counted(len(rows), settings.batch_size)
    terms = lambda outputs, labels: plain.terms(outputs, labels, 0)  # noqa: E731
    return Task(network, {"target": stream}, terms, recipe, plain.ROUTES)


def _rows_of(
    names: tuple[str, ...], classifier: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """The classifier's rows for the classes of a source that is a part of ImageNet-1k.

    The classes carry their WordNet ids in their names. Any other classifier stays as it is.
    """
    known = wordnet.imagenet()
    if classifier is None or len(classifier[0]) != len(known) or len(names) == len(known):
        return classifier
    rows = wordnet.rows(names)
    return classifier if rows is None else (classifier[0][rows], classifier[1][rows])


def _adopted(
    ws: Workspace, found: Pretrained, images: ImageSet, context: Context
) -> tuple[Task, str]:
    """A task of 0 steps with the given weights, and the origin of its classifier.

    The classifier has a row per source class: the weights' own classifier if it has as many rows,
    its rows of these classes if they are some of ImageNet's, else class means.
    """
    settings, classes = ws.params.pretrain, len(images.names)
    network = Network(found.backbone, target=classes)
    # in memory as model_io.read gives it to embed, which then makes the same features bit by bit
    network = network.to(memory_format=torch.channels_last).to(context.accelerator.device)
    own = _rows_of(images.names, found.classifier)
    if own is not None and own[0].shape == network.head("target").weight.shape:
        head, start = "classifier", own
    else:
        shards = embed.compute(
            ws, ws.params.source, network, freshness.of_given_features(ws, found.origin), context
        )
        labels = images.labels[ws.rows(ws.params.source, images, "train")]
        left = ws.unfinished(ws.features(ws.params.source))
        means = features.class_means_of_shards(left, shards, labels, classes)
        head = freshness.CLASS_MEANS
        start = nearest_mean_rows(torch.as_tensor(means).float(), settings.head_scale)
    network.start_head("target", *start)
    recipe = settings.recipe.model_copy(update={"steps": 0})
    return Task(network, {}, lambda outputs, labels: {}, recipe, plain.ROUTES), head
