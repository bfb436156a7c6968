"""The stage units: features of the source -> what strategies score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import ClassBank
from uotft.core.settings import Cluster
from uotft.core.text import some
from uotft.data import wordnet
from uotft.pipeline import freshness, readers
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, features as pools
from uotft.selection.classifier import classifier_bank

if TYPE_CHECKING:
    from torch import Tensor


def units(ws: Workspace) -> str:
    """Make what strategies score, according to select.unit: classes, clusters or images."""
    if ws.params.source_means != "images":
        return _without_features(ws)
    pool, unit = _source_pool(ws), ws.params.select.unit
    features, names = pool["features"], tuple(pool["names"].tolist())
    members, note, backbone = pool["labels"], "", str(pool["backbone"])
    if unit == "class":
        means, counts = pool["features_means"], pool["counts"]
        bank = ClassBank(means, names, counts, backbone, "", unit, members)
    elif unit == "cluster":
        bank, note = _clustered(features, ws.params.cluster, backbone)
    else:
        labels, one = tuple(pool["names"][members].tolist()), np.arange(len(features))
        means, counts = pools.class_means(storage.blocks(features), one, len(one))
        names = _numbered("image ", len(one))
        bank = ClassBank(means, names, counts, backbone, "", unit, one, labels)
    if "trunk" in pool:
        trunk = pool["trunk_means"]
        if unit != "class":
            trunk, _ = pools.class_means(
                storage.blocks(pool["trunk"]), bank.members, len(bank.names)
            )
        bank = replace(bank, trunk=trunk)
    index = storage.fingerprint(ws.features(ws.params.source) / pools.INDEX)
    _write(ws, replace(bank, data=str(pool.get("data", "")), features=index))
    made = f"{len(bank.names)} x {unit} of {len(features)} training images"
    return f"{ws.params.source}: {made}{note}"


def _without_features(ws: Workspace) -> str:
    """Class means that no image of the source is embedded for: rows of the classifier, or a bank.

    Counts and members are those of the source's images, where all of them are here.
    """
    from uotft.models import model_io  # torch, which takes seconds
    from uotft.models.weights import fingerprint

    network, facts = model_io.read(ws.pretrained())
    names, origin = tuple(facts["classes"]), ws.params.source_means
    if origin == "classifier":
        bank = _rows(ws, network.head("target").weight.detach(), facts)
        bank = replace(bank, weights=fingerprint(network.backbone))
    else:
        bank = _brought(ws, located(ws.root, origin), names)
    bank = replace(bank, backbone=facts["sha256"])
    if not ws.by_class:
        images = readers.source(ws)
        members = images.labels[images.rows("train")]
        counts = np.bincount(members, minlength=len(names))
        made_of = storage.fingerprint(ws.data(ws.params.source))
        bank = replace(bank, counts=counts, members=members, data=made_of)
    _write(ws, bank)
    return f"{ws.params.source}: {len(names)} classes, from {origin}"


def _rows(ws: Workspace, head: Tensor, facts: dict[str, Any]) -> ClassBank:
    """The rows of the classifier in ``head`` (S, D), of the network with these ``facts``."""
    names = tuple(facts["classes"])
    if facts.get("head") == "class means":
        raise UserError(
            f"source_means: classifier: {facts['weights'].get('file', 'the weights')} has no "
            f"classifier of the classes of {ws.params.source}: set source_means: images"
        )
    if facts.get("head") == "none":  # weights without a classifier: for rows that keep no class
        return ClassBank(head.numpy(), names, np.ones(len(names), np.int64))
    known = wordnet.rows(names)
    if facts.get("head") == "classifier" and known and len(names) < len(wordnet.imagenet()):
        from uotft.models import model_io  # a part of ImageNet's classes: all rows are needed

        found = model_io.pretrained(ws.params.backbone, ws.root)
        if found and found.classifier and len(found.classifier[0]) == len(wordnet.imagenet()):
            return classifier_bank(found.classifier[0].numpy(), names, "", known)
    return classifier_bank(head.numpy(), names, "")


def _brought(ws: Workspace, path: Path, names: tuple[str, ...]) -> ClassBank:
    """A bank from elsewhere, its rows in the order of the source's classes ``names``."""
    from uotft.pipeline import bank_weights

    bank = bank_weights.for_network(path, ws.pretrained())
    place = {name: row for row, name in enumerate(bank.names)}
    if missing := [name for name in names if name not in place]:
        raise UserError(
            f"source_means: {path} has no row for {some(missing)}: its names must be those of the "
            "source's classes"
        )
    rows = [place[name] for name in names]
    trunk = bank.trunk[rows] if len(bank.trunk) else bank.trunk
    return replace(bank, means=bank.means[rows], names=names, counts=bank.counts[rows], trunk=trunk,
                   members=bank.members[:0], labels=(), file="")  # fmt: skip


def _write(ws: Workspace, bank: ClassBank) -> None:
    """Write the bank; for a variant with units of its own, also what they are of."""
    record = freshness.units_record(ws)
    record.unlink(missing_ok=True)
    banks.write(ws.embedding(ws.params.source), bank)
    if ws.upstream:
        ws.note_overrides()
        storage.write_json(record, freshness.of_units(ws))


def own_units(ws: Workspace) -> str:
    """Make the units of a variant that needs its own and lacks them; returns a line, or ""."""
    return units(ws) if ws.upstream and not freshness.has_units(ws) else ""


def _source_pool(ws: Workspace) -> dict[str, NDArray[Any]]:
    """The features of the source; with a ``source_fraction``, of the images that it keeps."""
    of_index = ws.params.select.unit == "class" and ws.params.source_fraction == 1
    pool = readers.pool(ws, ws.params.source, hashed=not of_index)
    rows = readers.sampled(ws, pool["labels"])
    if len(rows) == len(pool["labels"]):
        return pool  # memory-mapped; its means are in the index already
    pool["labels"] = pool["labels"][rows]
    for name in (name for name in pools.ARRAYS if name in pool):
        pool[name] = storage.taken(pool[name], rows, ws.features(ws.params.source))
        parts = storage.blocks(pool[name])
        means = pools.class_means(parts, pool["labels"], len(pool["names"]))
        pool[f"{name}_means"], pool["counts"] = means
    return pool


def cluster_bank(features: str, output: str, overrides: dict[str, Any]) -> str:
    """Cluster a file of features (n, D) and write the bank; returns a line that says so."""
    settings = config.cluster_settings(overrides)
    points, backbone = banks.points(features)
    if points.itemsize > np.float32().itemsize:
        points = np.asarray(points, np.float32)
    bank, note = _clustered(points, settings, backbone)
    banks.write(Path(output), bank)
    return f"{output}: {len(bank.names)} clusters of {len(points)} rows{note}"


def _clustered(features: NDArray[Any], settings: Cluster, backbone: str) -> tuple[ClassBank, str]:
    """The bank of the clusters' means, and a note on the quality of the clusters."""
    from uotft.selection import clustering

    found = clustering.kmeans(features, settings)
    names = _numbered("cluster ", len(found.counts))
    means, counts = pools.class_means(storage.blocks(features), found.labels, len(names))
    note = (
        f", mean cosine {found.objective:.4f} after {found.iterations} iterations, "
        f"the last worth {found.gain:.1e}"
    )
    return ClassBank(means, names, counts, backbone, "", "cluster", found.labels), note


def _numbered(prefix: str, n: int) -> tuple[str, ...]:
    """Names whose alphabetical order is that of their numbers."""
    return tuple(f"{prefix}{i:0{len(str(n - 1))}}" for i in range(n))
