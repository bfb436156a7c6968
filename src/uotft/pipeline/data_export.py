"""The commands data subset and data export: a part of the data -> files for other programs."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import yaml
from numpy.typing import NDArray

from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, ImageSet, Progress
from uotft.data import shards, subset
from uotft.data.files import is_image
from uotft.data.pixel_cache import content_of
from uotft.pipeline import image_places
from uotft.pipeline.readers import read_overlap, read_selection, source_part
from uotft.pipeline.workspace import Workspace

PER_SHARD = 1000
ROWS_ONLY = "its rows are those of data/{}.npz and cannot be read as a data set"


def write_subset(
    ws: Workspace, dataset: str, setting: str, seed: int, output: Path, *, progress: Progress
) -> list[str]:
    """Write the images that a seed may train on, and those of val and test, as a data set.

    The training part is what `uotft train --subset SETTING --seed SEED` samples. OUTPUT.csv is a
    list with one line an image: path (or row, in a set without files of its own), label, split. Any
    other OUTPUT is a folder of shards. Returns lines: what was written, and how to read it again.
    """
    _must_be_new(output)
    chosen, images = config.subset_settings(setting), image_places.read(ws, dataset)
    pool = images.rows("train")
    train = np.sort(pool[subset.sample(images.labels[pool], chosen, seed)])
    parts = {"train": train} | {part: images.rows(part) for part in ("val", "test")}
    section: dict[str, object] = {"path": os.path.relpath(output, ws.root)}
    if output.suffix == ".csv":
        section = {"kind": "folder", **section}
        _write_list(images, np.concatenate([*parts.values()]), output)
    else:
        section = {"kind": "shards", **section, "names": f"{section['path']}/classes.txt"}
        labelled = {part: (rows, images.labels[rows]) for part, rows in parts.items()}
        _write_shards(images, labelled, images.names, output, PER_SHARD, progress)
        section |= {f"{part}_tars": f"{part}-*.tar" for part, rows in parts.items() if len(rows)}
    section |= {part: 0.0 for part, rows in parts.items() if not len(rows)}
    if not getattr(config.dataset_settings(ws.params, dataset), "labels", True):
        section |= {"labels": False} if section["kind"] == "folder" else {}
    section |= _view(images)
    counts = np.bincount(images.labels[train])
    summary = (
        f"{output}: {len(train)} of {len(pool)} training images, {counts.min()} to {counts.max()} "
        f"of a class, and {sum(map(len, parts.values())) - len(train)} of val and test"
    )
    if section["kind"] == "folder" and not _stand_alone(images):
        note = f"{ROWS_ONLY.format(dataset)}; write shards instead: --output FOLDER"
        return [summary, note]
    text = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=2**16)
    return [summary, f"as a data set: {text.strip()}"]


def _stand_alone(images: ImageSet) -> bool:
    """Whether every image has a file of its own."""
    return images.files is not None and not len(images.files.archives)


def _view(images: ImageSet) -> dict[str, object]:
    """The settings with which the network sees the written images as it sees these."""
    if images.files is None:
        side = images.images.shape[1]
        return {"stored": side, "size": side, "share": 1.0}
    names = ("stored", "size", "share", "background", "white")
    return {name: getattr(images.files, name) for name in names}


def _write_list(images: ImageSet, rows: NDArray[np.int64], output: Path) -> None:
    files = images.files if _stand_alone(images) else None

    def fill(file: BinaryIO) -> None:
        # surrogateescape: paths that are not UTF-8 keep their bytes
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        lines = csv.writer(text)
        lines.writerow(["path" if files else "row", "label", "split"])
        for row in rows.tolist():
            name = files.path(row) if files else row
            lines.writerow([name, images.names[images.labels[row]], images.splits[row]])
        text.detach()

    storage.write(output, fill)


def export_source(
    ws: Workspace,
    target: str,
    strategy: str,
    seed: int,
    output: Path,
    per_shard: int,
    *,
    progress: Progress,
) -> str:
    """Write the source images that a training reuses as shards; returns a summary.

    OUTPUT/part-000000.tar, … hold KEY.jpg (the file's own bytes; a PNG in a set without files) and
    KEY.cls, a line number in OUTPUT/classes.txt. KEY is the row in data/SOURCE.npz.
    """
    _must_be_new(output)
    chosen = read_selection(ws, Cell(target, strategy, seed))
    if not chosen["classes"]:
        raise UserError(f"the strategy {strategy!r} keeps no class, so there is nothing to export")
    part = source_part(ws, np.array([c["row"] for c in chosen["classes"]], np.int64))
    keep = np.ones(len(part.rows), bool)
    if ws.params.train.overlap == "exclude":
        keep = ~np.isin(part.rows, read_overlap(ws, target)["source"])
    rows, labels = part.rows[keep], part.labels[keep]
    tars = _write_shards(
        part.data, {"part": (rows, labels)}, part.names, output, per_shard, progress
    )
    return f"{output}: {len(rows)} images of {len(part.names)} classes in {tars} tar files"


def _must_be_new(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output}: already there, and not empty; name a new one")


def _write_shards(
    images: ImageSet,
    parts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    names: tuple[str, ...],
    output: Path,
    per_shard: int,
    progress: Progress,
) -> int:
    """Write {part: (rows, labels)} to OUTPUT/PART-000000.tar, …, with classes.txt.

    Returns the number of tar files. The folder gets its final name once it is complete.
    """
    made = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    starts = [(part, at) for part in parts for at in range(0, len(parts[part][0]), per_shard)]
    try:
        for number in progress(range(len(starts)), "writing shards"):
            part, at = starts[number]
            rows, labels = (column[at : at + per_shard] for column in parts[part])
            path = made / f"{part}-{at // per_shard:06d}.tar"
            storage.write(path, partial(shards.write, members=_members(images, rows, labels)))
        storage.write_bytes(made / "classes.txt", "".join(f"{n}\n" for n in names).encode())
        made.rename(output)
        storage.sync(output.parent)  # so that the rename survives a power cut
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return len(starts)


def _members(
    images: ImageSet, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> Iterator[tuple[str, bytes]]:
    """The members of a tar: KEY.cls, then the picture, for each image."""
    from PIL import Image

    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        key = f"{row:09d}"
        if images.files is None:
            picture = io.BytesIO()
            Image.fromarray(images.images[row]).save(picture, "PNG")
            suffix, content = ".png", picture.getvalue()
        else:
            content = content_of(images.files, row)
            suffix = images.files.path(row).suffix.lower()
            if not is_image(f"x{suffix}"):  # from a list, under any name; readers go by the bytes
                suffix = ".jpg"
        yield f"{key}.cls", str(label).encode()
        yield key + suffix, content
