"""Your own images: a folder of folders, one a class, an archive of that, or a list of files.

    FOLDER/train/CLASS/*.jpg    FOLDER/val/…    FOLDER/test/…

``train`` alone will do, or the folders of the classes alone: missing parts are then cut from the
training images, stratified and seeded. Or a CSV or Parquet file lists images, in the columns path
(from its own folder), label and, optionally, split; in a folder it is named manifest.csv or
manifest.parquet. A zip or tar of any of these is unpacked once, below cache/. In params.yaml:
``datasets: {birds: {kind: folder, path: photos/birds}}``.

    uotft data prepare birds
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.data import archives, files

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LISTS = (".csv", ".parquet")
Rows = list[tuple[bytes, str, str]]  # path, class, part


class Settings(files.View):
    """Settings of a folder of images."""

    path: str = Field(description="the folder, its zip or tar, or a CSV or Parquet list")
    val: float = Field(0.2, ge=0, lt=1, description="share for validation, where there is no val")
    test: float = Field(
        0.2, ge=0, lt=1, description="share for tests, where there is no test; 0 for a source"
    )
    seed: int = Field(0, ge=0, description="seed of the cut into parts")


def load(
    settings: Settings, progress: Callable[..., Iterable[int]], root: Path = Path()
) -> ImageSet:
    """Find the images, read them, cut the parts. Copies nothing, but unpacks an archive first."""
    folder, rows = found(settings, progress, root)
    classes, splits = [name for _, name, _ in rows], np.array([part for _, _, part in rows], "U5")
    names = tuple(sorted({c for c, s in zip(classes, splits, strict=True) if s == "train"}))
    untrained = sorted(set(classes) - set(names))
    if untrained:
        raise UserError(f"{folder}: class {untrained[0]!r} has no training image")
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[name] for name in classes], np.int64)
    for part, share in (("test", settings.test), ("val", settings.val)):
        if share and part not in splits:
            files.cut(labels, splits, part, share, settings.seed)
    paths = [path for path, _, _ in rows]
    return files.image_set(folder, paths, labels, splits, names, settings, progress)


def found(
    settings: Settings, progress: Callable[..., Iterable[int]], root: Path
) -> tuple[Path, Rows]:
    """(folder, every image that the set has now); images without a part are in train."""
    path = root / Path(settings.path).expanduser()
    if path.is_file() and not path.name.endswith(LISTS):
        path = _unpacked(path, root / "cache" / "unpacked", progress)
    for listed in (path, *(path / f"manifest{end}" for end in LISTS)):
        if listed.is_file():
            return listed.parent, _listed(listed)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or file (path in the data set's section)")
    return path, _by_folder(path)


def _by_folder(folder: Path) -> Rows:
    """CLASS/… is train, PART/CLASS/… is that part; images outside such folders are left out."""
    paths = list(files.below(folder))
    has_parts = any(p[0] in PARTS and len(p) > 2 for p in map(_pieces, paths))
    rows: Rows = []
    for path in paths:
        first, *rest = _pieces(path)
        part, below = (PARTS.get(first, ""), rest) if has_parts else ("train", [first, *rest])
        if part and len(below) > 1:
            # intern: a million rows share the names of their classes in memory
            rows.append((path, sys.intern(below[0]), part))
    if not rows:
        raise UserError(
            f"{folder}: no image in a folder named after its class; looked for "
            f"CLASS/image and train/CLASS/image that end in {', '.join(sorted(files.SUFFIXES))}"
        )
    return rows


def _pieces(path: bytes) -> list[str]:
    return path.decode(errors="backslashreplace").split("/")


def _listed(path: Path) -> Rows:
    """The rows of a list; an error names the row that it is in."""
    rows: Rows = []
    parts: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(_table(path), start=1):
        cells = [row.get(column) for column in ("path", "label", "split")]
        image, label, part = ("" if cell is None else str(cell) for cell in cells)
        if "row" in row and not image:
            raise UserError(
                f"{path}: it lists rows of another set and no files; `uotft data subset` with a "
                "folder as --output writes shards, which can be read again"
            )
        if not image or not label or "\0" in image:
            raise UserError(f"{path}: row {number}: path and label are needed, got {row}")
        if part and part not in PARTS:
            raise UserError(
                f"{path}: row {number}: split: got {part!r}; known are {', '.join(PARTS)}"
            )
        part = PARTS.get(part, "train")
        before, first = parts.setdefault(image, (part, number))
        if before != part:
            raise UserError(
                f"{path}: row {number}: {image} is {part} here, and {before} in row {first}"
            )
        rows.append((os.fsencode(image), label, part))
    if not rows:
        raise UserError(f"{path}: it lists no image")
    return rows


def _table(path: Path) -> Iterable[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        rows: list[dict[str, Any]]
        rows = (
            storage.read_csv(path)
            if path.suffix == ".csv"
            else parquet.read_table(path).to_pylist()
        )
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: the list cannot be read ({error})") from error
    return rows


def _unpacked(path: Path, cache: Path, progress: Callable[..., Iterable[int]]) -> Path:
    """The folder that an archive holds; the same bytes are unpacked once."""
    if not path.name.lower().endswith(archives.SUFFIXES):
        known = ", ".join((*archives.SUFFIXES, *LISTS))
        raise UserError(f"{path}: neither a folder nor a file that ends in {known}")
    place = cache / f"{path.name.split('.')[0]}-{archives.digest(path, 'sha256', progress)[:16]}"
    if not place.is_dir():
        archives.unpack([(path, "", archives.FILES)], place, progress)
    inside = list(place.iterdir())
    is_wrapped = len(inside) == 1 and inside[0].is_dir() and inside[0].name not in PARTS
    return inside[0] if is_wrapped else place
