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

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import ImageSet
from uotft.data import archives, files, lists
from uotft.data.lists import LISTS, PARTS, Rows


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
    path = located(root, settings.path)
    if path.is_file() and not path.name.endswith(LISTS):
        path = _unpacked(path, root / "cache" / "unpacked", progress)
    for listed in (path, *(path / f"manifest{end}" for end in LISTS)):
        if listed.is_file():
            return listed.parent, lists.rows(listed)
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
