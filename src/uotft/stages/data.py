"""The stages prepare, embed and units: images -> features -> what strategies score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft import banks, config, files, store
from uotft.errors import UserError
from uotft.pixels import Store
from uotft.records import ClassBank
from uotft.stages.workspace import Progress, Workspace


def prepare(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Make data/DATASET.npz and its summary; returns a line that says what was made."""
    module, settings = config.known_dataset(ws.params, dataset)
    images, bad = ws.decoding(dataset, module.load(settings, progress, ws.root)), {}
    if isinstance(images.images, Store):
        everything = np.arange(len(images.labels))
        bad = images.images.fill(everything, progress, keep=images.images.is_small)
        images = files.without(images, bad)
    store.write_images(ws.data(dataset), images)
    counts = {split: len(images.rows(split)) for split in dict.fromkeys(images.splits.tolist())}
    summary = {
        "classes": len(images.names),
        "images": counts,
        "names": list(images.names),
        **({"unreadable": [*bad.values()]} if bad else {}),
    }
    store.write_json(ws.data(dataset).with_suffix(".json"), summary)
    parts = ", ".join(f"{n} {split}" for split, n in counts.items())
    return f"{dataset}: {len(images.names)} classes, {parts} images"


def embed(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Features of every image of the training part."""
    from uotft import checkpoint, embed as room, runtime
    from uotft.images import Views

    accelerator = runtime.start(0, ws.params.cpu_threads)
    network, facts = checkpoint.read(ws.pretrained())
    images = ws.images(dataset)
    rows = images.rows("train")
    features = room.features(network, Views(images, rows), accelerator, progress=progress)
    trunk = {}
    if hasattr(network.backbone, "project"):  # selection compares other features than heads see
        features, trunk = room.projected(network, features), {"trunk": features}
    store.write_arrays(
        ws.features(dataset),
        features=features,
        labels=images.labels[rows],
        rows=rows,
        names=np.array(images.names),
        backbone=np.array(facts["sha256"]),
        **trunk,
    )
    return f"{dataset}: {features.shape[0]} training images, {features.shape[1]} features"


def units(ws: Workspace) -> str:
    """Make what strategies score, as select.unit says: classes, clusters or single images."""
    from uotft import cluster

    pool, unit = store.read_arrays(ws.features(ws.params.source)), ws.params.select.unit
    features, names = pool["features"], tuple(pool["names"].tolist())
    members, labels, backbone = pool["labels"], (), str(pool["backbone"])
    if unit == "cluster":
        bank, note = _clustered(features, ws.params.cluster, backbone)
    else:
        note = ""
        if unit == "image":
            labels = tuple(pool["names"][members].tolist())
            members, names = np.arange(len(features)), _numbered("image ", len(features))
        means, counts = cluster.class_means(features, members, len(names))
        bank = ClassBank(means, names, counts, backbone, "", unit, members, labels)
    if "trunk" in pool:
        trunk, _ = cluster.class_means(pool["trunk"], bank.members, len(bank.names))
        bank = replace(bank, trunk=trunk)
    banks.write(ws.embedding(ws.params.source), bank)
    made = f"{len(bank.names)} x {unit} of {len(features)} training images"
    return f"{ws.params.source}: {made}{note}"


def cluster_bank(features: str, output: str, wanted: dict[str, Any]) -> str:
    """Clusters of a file of features (n, D), written as a bank; returns a line that says so."""
    settings = config.cluster_settings(wanted)
    if not Path(features).is_file():
        raise UserError(f"{features}: no such file; an npz with an array 'means' is needed")
    pool = banks.read(Path(features))
    points = np.asarray(pool.means, np.float32)
    bank, note = _clustered(points, settings, pool.backbone)
    banks.write(Path(output), bank)
    return f"{output}: {len(bank.names)} clusters of {len(points)} rows{note}"


def _clustered(
    features: NDArray[np.float32], settings: config.Cluster, backbone: str
) -> tuple[ClassBank, str]:
    """Clusters as a bank of their means, and a note on how good they are."""
    from uotft import cluster

    found = cluster.kmeans(features, settings)
    names = _numbered("cluster ", len(found.counts))
    means, counts = cluster.class_means(features, found.labels, len(names))
    note = (
        f", mean cosine {found.objective:.4f} after {found.iterations} iterations, "
        f"the last worth {found.gain:.1e}"
    )
    return ClassBank(means, names, counts, backbone, "", "cluster", found.labels), note


def _numbered(word: str, n: int) -> tuple[str, ...]:
    """Names whose alphabetical order is that of their numbers."""
    return tuple(f"{word}{i:0{len(str(n - 1))}}" for i in range(n))
