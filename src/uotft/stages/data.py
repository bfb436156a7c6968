"""The stages prepare, embed and select: images -> features -> the source classes kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from uotft import config, registry, store
from uotft.errors import UserError
from uotft.records import ClassBank, Selection
from uotft.stages.workspace import Progress, Workspace


def prepare(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Make data/DATASET.npz and its summary; returns a line that says what was made."""
    settings = config.dataset_settings(ws.params, dataset)
    images = registry.load("datasets", dataset, "data set").load(settings, progress)
    store.write_images(ws.data(dataset), images)
    counts = {split: len(images.rows(split)) for split in dict.fromkeys(images.splits.tolist())}
    summary = {"classes": len(images.names), "images": counts, "names": list(images.names)}
    store.write_json(ws.data(dataset).with_suffix(".json"), summary)
    parts = ", ".join(f"{n} {split}" for split, n in counts.items())
    return f"{dataset}: {len(images.names)} classes, {parts} images"


def embed(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Features of the training part: class means for the source, single images for a target."""
    from uotft import checkpoint, embed as room, runtime

    accelerator = runtime.start(0, ws.params.cpu_threads)
    network, facts = checkpoint.read(ws.pretrained())
    images = ws.images(dataset)
    rows = images.rows("train")
    features = room.features(network, images.images[rows], accelerator, progress=progress)
    if dataset == ws.params.source:
        means, counts = room.class_means(features, images.labels[rows], len(images.names))
        bank = ClassBank(means, images.names, counts, facts["sha256"])
        store.write_bank(ws.embedding(dataset), bank)
    else:
        store.write_arrays(
            ws.embedding(dataset),
            features=features,
            labels=images.labels[rows],
            rows=rows,
            names=np.array(images.names),
            backbone=np.array(facts["sha256"]),
        )
    return f"{dataset}: {features.shape[0]} training images, {features.shape[1]} features"


def select(ws: Workspace, target: str, strategy: str, seed: int) -> Selection:
    """Score the source classes against one seed's target images, keep K, write the selection."""
    from uotft import selection

    settings = config.selector_settings(ws.params, strategy)
    module = registry.load("selectors", strategy, "strategy")
    source, bank = store.read_bank(ws.embedding(ws.params.source)), target_bank(ws, target, seed)
    if source.backbone != bank.backbone:
        raise UserError(
            f"{ws.embedding(target)} and {ws.embedding(ws.params.source)} were made with different "
            "backbones: run dvc repro"
        )
    scores = module.score(source, bank, settings, seed)
    kept = selection.keep(scores, source.names, ws.params.select.top_k)
    chosen = Selection(
        strategy=strategy,
        kept=kept,
        names=source.names,
        scores=scores,
        settings={"top_k": ws.params.select.top_k, "seed": seed, **settings.model_dump()},
        fingerprints={
            "source": store.fingerprint(ws.embedding(ws.params.source)),
            "target": store.fingerprint(ws.embedding(target)),
        },
    )
    folder = ws.cell("selections", target, strategy, seed)
    if scores.plan is not None:
        from uotft import report

        store.write_arrays(folder / "plan.npz", plan=scores.plan.astype(np.float32), kept=kept)
        picture = report.plan_picture(scores.plan, kept, source.names, bank.names)
        store.write_bytes(folder / "plan.png", picture)
    store.write_json(folder / "selection.json", selection.to_json(chosen))
    return chosen


def target_bank(ws: Workspace, target: str, seed: int) -> ClassBank:
    """Class means of the target images that this seed may train on, and of no others."""
    from uotft.subset import few_shot

    pool = store.read_arrays(ws.embedding(target))
    drawn = few_shot(pool["labels"], ws.params.subset.shots, seed)
    labels, names = pool["labels"][drawn], tuple(pool["names"].tolist())
    means = np.stack([pool["features"][drawn][labels == c].mean(0) for c in range(len(names))])
    counts = np.bincount(labels, minlength=len(names))
    return ClassBank(means.astype(np.float64), names, counts, str(pool["backbone"]))


def read_selection(ws: Workspace, target: str, strategy: str, seed: int) -> dict[str, Any]:
    """A selection.json, refused when it was made from other embeddings than today's."""
    path = ws.cell("selections", target, strategy, seed) / "selection.json"
    chosen: dict[str, Any] = store.read_json(path)
    for side, dataset in (("source", ws.params.source), ("target", target)):
        if chosen["fingerprints"][side] != store.fingerprint(ws.embedding(dataset)):
            raise UserError(f"{path} belongs to another {ws.embedding(dataset)}: run dvc repro")
    return chosen
