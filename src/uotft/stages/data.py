"""The stages prepare, embed, units and select: images -> features -> the source units kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft import config, registry, store
from uotft.errors import UserError
from uotft.records import ClassBank, Selection, SourcePart
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
    """Features of every image of the training part."""
    from uotft import checkpoint, embed as room, runtime

    accelerator = runtime.start(0, ws.params.cpu_threads)
    network, facts = checkpoint.read(ws.pretrained())
    images = ws.images(dataset)
    rows = images.rows("train")
    features = room.features(network, images.images[rows], accelerator, progress=progress)
    store.write_arrays(
        ws.features(dataset),
        features=features,
        labels=images.labels[rows],
        rows=rows,
        names=np.array(images.names),
        backbone=np.array(facts["sha256"]),
    )
    return f"{dataset}: {features.shape[0]} training images, {features.shape[1]} features"


def units(ws: Workspace) -> str:
    """Make what strategies score, as select.unit says: classes, clusters or single images."""
    from uotft import cluster

    pool, unit = store.read_arrays(ws.features(ws.params.source)), ws.params.select.unit
    features, names = pool["features"], tuple(pool["names"].tolist())
    members, note = pool["labels"], ""
    labels: tuple[str, ...] = ()
    if unit == "cluster":
        found = cluster.kmeans(features, ws.params.cluster)
        members, names = found.labels, _numbered("cluster ", len(found.counts))
        note = (
            f", mean cosine {found.objective:.4f} after {found.iterations} iterations, "
            f"the last worth {found.gain:.1e}"
        )
    elif unit == "image":
        labels = tuple(pool["names"][members].tolist())
        members, names = np.arange(len(features)), _numbered("image ", len(features))
    means, counts = cluster.class_means(features, members, len(names))
    bank = ClassBank(means, names, counts, str(pool["backbone"]), unit, members, labels)
    store.write_bank(ws.embedding(ws.params.source), bank)
    return f"{ws.params.source}: {len(names)} x {unit} of {len(features)} training images{note}"


def _numbered(word: str, n: int) -> tuple[str, ...]:
    """Names whose alphabetical order is that of their numbers."""
    return tuple(f"{word}{i:0{len(str(n - 1))}}" for i in range(n))


def select(ws: Workspace, target: str, strategy: str, seed: int) -> Selection:
    """Score the source classes against one seed's target images, keep K, write the selection."""
    from uotft import selection

    settings = config.selector_settings(ws.params, strategy)
    module = registry.load("selectors", strategy, "strategy")
    source, bank = source_bank(ws), target_bank(ws, target, seed)
    if source.backbone != bank.backbone:
        raise UserError(
            f"{ws.embedding(target)} and {ws.embedding(ws.params.source)} were made with different "
            "backbones: run dvc repro"
        )
    scores = module.score(source, bank, settings, seed)
    wanted = ws.params.select
    kept = selection.keep(scores, source.names, wanted.top_k, source.labels, wanted.max_per_class)
    chosen = Selection(
        strategy=strategy,
        kept=kept,
        names=source.names,
        scores=scores,
        settings={**wanted.model_dump(), "seed": seed, **settings.model_dump()},
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


def source_bank(ws: Workspace) -> ClassBank:
    """The units that strategies score, refused when params.yaml asks for others."""
    path, unit = ws.embedding(ws.params.source), ws.params.select.unit
    bank = store.read_bank(path)
    if bank.unit != unit:
        raise UserError(f"{path} holds units {bank.unit!r}, select.unit is {unit!r}: run dvc repro")
    return bank


def source_part(ws: Workspace, kept: NDArray[np.int64]) -> SourcePart:
    """The training images of the units kept: a label is a class, but for clusters a cluster.

    Kept classes and clusters are numbered by rank, the classes of kept images in their own order.
    """
    bank, images = source_bank(ws), ws.images(ws.params.source)
    number = np.full(len(bank.names), -1)
    number[kept] = np.arange(len(kept))
    labels = number[bank.members]
    rows, labels = images.rows("train")[labels >= 0], labels[labels >= 0]
    names, classes = tuple(bank.names[row] for row in kept), kept
    if bank.unit == "image":
        classes, labels = np.unique(images.labels[rows], return_inverse=True)
        names = tuple(images.names[c] for c in classes)
    elif bank.unit == "cluster":
        classes = kept[:0]
    return SourcePart(images, rows, labels, names, classes, bank.means[kept])


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
