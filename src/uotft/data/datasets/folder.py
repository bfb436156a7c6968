"""Your own images: a folder with one subfolder per class, an archive of that, or a list of files.

    FOLDER/train/CLASS/*.jpg    FOLDER/val/…    FOLDER/test/…

``train`` alone is enough, or the folders of the classes alone: missing parts are then cut from the
training images, stratified and seeded. `data.folders` documents the spellings of parts, and what is
left out. Or a CSV or Parquet file lists images, in the columns path (relative to its folder), label
and, optionally, split; inside a folder it is named manifest.csv or manifest.parquet. A zip or tar
of any of these is unpacked once, below cache/. In params.yaml:
``datasets: {birds: {kind: folder, path: photos/birds}}``.

    uotft data prepare birds
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import ImageSet
from uotft.data import archives, duplicates, files, folders, lists, walk
from uotft.data.lists import LISTS, Found


class Settings(files.View):
    """Settings of a folder of images."""

    path: str = Field(description="the folder, its zip or tar, or a CSV or Parquet list")
    val: float = Field(
        0.2, ge=0, lt=1, description="share to cut for validation, if there is no val"
    )
    test: float = Field(
        0.2, ge=0, lt=1, description="share to cut for tests, if there is no test; 0 for a source"
    )
    seed: int = Field(0, ge=0, description="seed of the cut into parts")
    labels: bool = Field(
        True,
        exclude_if=bool,  # sets that were prepared before there was this setting stay as they are
        description="false: its pictures have no labels, and all below it count; for a source",
    )


def load(
    settings: Settings, progress: Callable[..., Iterable[int]], root: Path = Path()
) -> ImageSet:
    """Find the images, read them, cut the parts. Copies nothing; unpacks an archive first."""
    listed = found(settings, progress, root)
    if settings.unreadable == "error":
        listed.must_be_there()
    folder, rows = listed.folder, listed.rows
    classes, splits = [name for _, name, _ in rows], np.array([part for _, _, part in rows], "U5")
    names = tuple(sorted({c for c, s in zip(classes, splits, strict=True) if s == "train"}))
    untrained = sorted(set(classes) - set(names))
    if untrained:
        raise UserError(f"{folder}: class {untrained[0]!r} has no training image")
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[name] for name in classes], np.int64)
    paths = [path for path, _, _ in rows]
    images = files.image_set(folder, paths, labels, splits, names, settings, progress)
    images = replace(images, notes=(*images.notes, *listed.notes))
    if not settings.labels:  # nothing to test by, and validation needs but one image
        return duplicates.parted(images, val=1 / len(images.labels), seed=settings.seed)
    return duplicates.parted(images, test=settings.test, val=settings.val, seed=settings.seed)


def found(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> Found:
    """Every image that the set has now; images without a part are in train."""
    path, notes = located(root, settings.path), list[str]()
    if path.is_file() and not path.name.lower().endswith(LISTS):
        path, notes = _unpacked(path, root / "cache" / "unpacked", progress)
    if not path.exists():
        raise UserError(f"{path}: no such folder or file (path in the data set's section)")
    if file := _list(path):
        listed = lists.read(file, labelled=settings.labels)
        return listed._replace(notes=(*notes, *listed.notes))
    scan = folders.scan(path) if settings.labels else folders.unlabelled(path)
    return Found(path, scan.rows, (*notes, *scan.notes))


def _list(path: Path) -> Path | None:
    """The list at ``path``, or the manifest in that folder, in any case."""
    if path.is_file():
        return path
    known = {f"manifest{end}" for end in LISTS}
    try:
        inside = sorted(entry for entry in path.iterdir() if entry.name.lower() in known)
    except OSError as error:
        raise UserError(f"{files.printable(path)}: {error.strerror}") from error
    if len(inside) > 1:
        names = ", ".join(entry.name for entry in inside)
        raise UserError(f"{path}: {len(inside)} lists ({names}); keep one, or set path to one")
    return inside[0] if inside else None


def _unpacked(
    path: Path, cache: Path, progress: Callable[..., Iterable[int]]
) -> tuple[Path, list[str]]:
    """(folder with an archive's content, notes on it); the same bytes are unpacked once."""
    if not path.name.lower().endswith(archives.SUFFIXES):
        known = ", ".join((*archives.SUFFIXES, *LISTS))
        raise UserError(f"{path}: neither a folder nor a file that ends in {known}")
    place = cache / f"{path.name.split('.')[0]}-{archives.digest(path, 'sha256', progress)[:16]}"
    if not place.is_dir():
        archives.unpack([(path, "", archives.FILES)], place, progress)
    inside = [entry for entry in place.iterdir() if not walk.is_junk(os.fsencode(entry.name))]
    is_wrapped = len(inside) == 1 and inside[0].is_dir() and not folders.part_of(inside[0].name)
    return inside[0] if is_wrapped else place, archives.notes(place)
