"""The commands data subset and data export: a part of the data -> files that others can read."""

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
from numpy.typing import NDArray

from uotft import config, shards, store, subset
from uotft.errors import UserError
from uotft.pixels import content_of
from uotft.records import ImageSet
from uotft.stages.overlap import read_overlap
from uotft.stages.selecting import read_selection, source_part
from uotft.stages.workspace import Progress, Workspace


def write_subset(ws: Workspace, dataset: str, words: str, seed: int, output: Path) -> str:
    """The manifest of the images that a seed may train on with ``words``, and of val and test.

    A line an image: path (or row, of a set that has no files of its own), label, split. The
    training part is what `uotft train --subset WORDS --seed SEED` draws. Returns a line that says
    what was written.
    """
    wanted, images = config.subset_settings(words), store.read_images(ws.data(dataset))
    pool = images.rows("train")
    train = np.sort(pool[subset.draw(images.labels[pool], wanted, seed)])
    rows = np.concatenate([train, images.rows("val"), images.rows("test")])

    files = images.files if images.files and not len(images.files.archives) else None

    def fill(file: BinaryIO) -> None:
        # surrogates: paths that are no UTF-8 keep their bytes
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        lines = csv.writer(text)
        lines.writerow(["path" if files else "row", "label", "split"])
        for row in rows.tolist():
            name = files.path(row) if files else row
            lines.writerow([name, images.names[images.labels[row]], images.splits[row]])
        text.detach()

    store.write(output, fill)
    counts = np.bincount(images.labels[train])
    return (
        f"{output}: {len(train)} of {len(pool)} training images, {counts.min()} to {counts.max()} "
        f"of a class, and {len(rows) - len(train)} of val and test"
    )


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
    """Write the source images that a training reuses as shards; returns a line that says so.

    OUTPUT/part-000000.tar, …: KEY.jpg (the file's own bytes; PNG of a set without files) and
    KEY.cls, the number of the line in OUTPUT/classes.txt. KEY is the row in data/SOURCE.npz.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output}: not empty; name a new folder")
    chosen = read_selection(ws, target, strategy, seed)
    if not chosen["classes"]:
        raise UserError(f"the strategy {strategy!r} keeps no class: there is nothing to export")
    part = source_part(ws, np.array([c["row"] for c in chosen["classes"]], np.int64))
    keep = np.ones(len(part.rows), bool)
    if ws.params.train.overlap == "exclude":
        keep = ~np.isin(part.rows, read_overlap(ws, target)["source"])
    rows, labels = part.rows[keep], part.labels[keep]
    starts = range(0, len(rows), per_shard)
    made = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        for start in progress(starts, "writing shards"):
            some = slice(start, start + per_shard)
            members = _members(part.data, rows[some], labels[some])
            path = made / f"part-{start // per_shard:06d}.tar"
            store.write(path, partial(shards.write, members=members))
        store.write_bytes(made / "classes.txt", "".join(f"{n}\n" for n in part.names).encode())
        made.rename(output)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return f"{output}: {len(rows)} images of {len(part.names)} classes in {len(starts)} tar files"


def _members(
    images: ImageSet, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> Iterator[tuple[str, bytes]]:
    """The members of some images: KEY.cls, then the picture."""
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
        yield f"{key}.cls", str(label).encode()
        yield key + suffix, content
