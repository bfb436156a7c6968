"""The stages prepare, embed and units: images -> features -> what strategies score."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, disk, locks, storage
from uotft.core.errors import Interrupted
from uotft.core.records import ClassBank
from uotft.data import files
from uotft.data.pixel_cache import Store
from uotft.pipeline.fetch import card_of
from uotft.pipeline.workspace import Progress, Stop, Workspace, never
from uotft.selection import banks, features as pools
from uotft.training import checkpoints

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Make data/DATASET.npz and its summary; returns a line that says what was made."""
    lock = ws.root / "cache" / f".{dataset}.prepare.lock"
    with locks.alone(lock, f"{ws.data(dataset)} is being made by another process"):
        return _prepare(ws, dataset, progress)


def _prepare(ws: Workspace, dataset: str, progress: Progress) -> str:
    module, settings = config.known_dataset(ws.params, dataset)
    images, bad = ws.decoding(dataset, module.load(settings, progress, ws.root)), {}
    if isinstance(images.images, Store):
        everything = np.arange(len(images.labels))
        bad = images.images.fill(everything, progress, keep=images.images.is_small)
        images = files.without(images, bad)
    storage.write_images(ws.data(dataset), images)
    if isinstance(images.images, Store):
        _remove_others(images.images.folder)
    counts = {split: len(images.rows(split)) for split in dict.fromkeys(images.splits.tolist())}
    summary = {
        "classes": len(images.names),
        "images": counts,
        "names": list(images.names),
        "settings": ws.prepared_as(dataset),
        **({"unreadable": [*bad.values()]} if bad else {}),
    }
    storage.write_json(ws.data(dataset).with_suffix(".json"), summary)
    parts = ", ".join(f"{n} {split}" for split, n in counts.items())
    return f"{dataset}: {len(images.names)} classes, {parts} images{_official(module, counts)}"


def _official(module: Any, counts: dict[str, int]) -> str:
    """What the makers of a public set count, where it is not this: a list may have been cut off."""
    card = card_of(module)
    made = card.images if card else counts
    here = counts | {"train": counts["train"] + counts.get("val", 0) * ("val" not in made)}
    if all(here.get(part) == n for part, n in made.items()):
        return ""
    return f"; its makers count {', '.join(f'{n} {part}' for part, n in made.items())}"


def _remove_others(folder: Path) -> None:
    """What is kept of the data set as it was before, and what a kill has left."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


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
    from uotft.selection import embedding
    from uotft.training import runtime
    from uotft.training.streams import Views

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


def units(ws: Workspace) -> str:
    """Make what strategies score, as select.unit says: classes, clusters or single images."""
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
        means, counts = pools.class_means([features], one, len(one))
        names = _numbered("image ", len(one))
        bank = ClassBank(means, names, counts, backbone, "", unit, one, labels)
    if "trunk" in pool:
        trunk = pool["trunk_means"]
        if unit != "class":
            trunk, _ = pools.class_means([pool["trunk"]], bank.members, len(bank.names))
        bank = replace(bank, trunk=trunk)
    record = _units_record(ws)
    record.unlink(missing_ok=True)
    index = storage.fingerprint(ws.features(ws.params.source) / pools.INDEX)
    bank = replace(bank, data=str(pool.get("data", "")), features=index)
    banks.write(ws.embedding(ws.params.source), bank)
    if ws.upstream:
        ws.note_words()
        storage.write_json(record, units_belong(ws))
    made = f"{len(bank.names)} x {unit} of {len(features)} training images"
    return f"{ws.params.source}: {made}{note}"


def own_units(ws: Workspace) -> str:
    """Make the units of a variant that needs its own, if need be; a line that says so, or ""."""
    made, record = ws.embedding(ws.params.source), _units_record(ws)
    there = made.is_file() and record.is_file() and storage.read_json(record) == units_belong(ws)
    return units(ws) if ws.upstream and not there else ""


def units_belong(ws: Workspace) -> dict[str, Any]:
    """What units belong to: settings, and the fingerprint of the features they are made of."""
    unit = ws.params.select.unit
    return {
        "unit": unit,
        "cluster": ws.params.cluster.model_dump() if unit == "cluster" else {},
        "source_fraction": ws.params.source_fraction,
        "files": ws.fingerprints([ws.features(ws.params.source) / pools.INDEX]),
    }


def _units_record(ws: Workspace) -> Path:
    return ws.embedding(ws.params.source).with_suffix(".json")


def _source_pool(ws: Workspace) -> dict[str, NDArray[Any]]:
    """The pool of the source; with a ``source_fraction``, of the rows that it leaves."""
    of_index = ws.params.select.unit == "class" and ws.params.source_fraction == 1
    pool = ws.pool(ws.params.source, hashed=not of_index)
    rows = ws.drawn(pool["labels"])
    if len(rows) == len(pool["labels"]):
        return pool  # mapped, and its means are taken
    pool["labels"] = pool["labels"][rows]
    for name in (name for name in pools.ARRAYS if name in pool):
        pool[name] = pool[name][rows]
        means = pools.class_means([pool[name]], pool["labels"], len(pool["names"]))
        pool[f"{name}_means"], pool["counts"] = means
    return pool


def cluster_bank(features: str, output: str, wanted: dict[str, Any]) -> str:
    """Clusters of a file of features (n, D), written as a bank; returns a line that says so."""
    settings = config.cluster_settings(wanted)
    pool = banks.brought(features)
    points = np.asarray(pool.means, np.float32)
    bank, note = _clustered(points, settings, pool.backbone)
    banks.write(Path(output), bank)
    return f"{output}: {len(bank.names)} clusters of {len(points)} rows{note}"


def _clustered(
    features: NDArray[Any], settings: config.Cluster, backbone: str
) -> tuple[ClassBank, str]:
    """Clusters as a bank of their means, and a note on how good they are."""
    from uotft.selection import clustering

    found = clustering.kmeans(features, settings)
    names = _numbered("cluster ", len(found.counts))
    means, counts = pools.class_means([features], found.labels, len(names))
    note = (
        f", mean cosine {found.objective:.4f} after {found.iterations} iterations, "
        f"the last worth {found.gain:.1e}"
    )
    return ClassBank(means, names, counts, backbone, "", "cluster", found.labels), note


def _numbered(word: str, n: int) -> tuple[str, ...]:
    """Names whose alphabetical order is that of their numbers."""
    return tuple(f"{word}{i:0{len(str(n - 1))}}" for i in range(n))
