"""WebDataset shards: many images in few tar files, read in place without unpacking.

    FOLDER/photos-000.tar …    with KEY.jpg (.png, …) and KEY.cls, KEY.txt or KEY.json for each

In params.yaml, under any name, as for a folder of images:

    datasets: {web: {kind: shards, path: /data/web, train_tars: "photos-{000..127}.tar", test: 0.0}}

    uotft prepare --dataset web

With ``urls``, addresses of tar files, `uotft data prepare web` fetches them into ``path`` first.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import ImageSet
from uotft.core.text import some
from uotft.data import duplicates, files, lists, shards
from uotft.data.lists import Found


class Settings(files.View):
    """Settings of a set of shards."""

    path: str = Field(description="the folder of the tar files")
    train_tars: str = Field(
        "*.tar",
        description="tar files to train on, without those of val and test; {000..127} and * stand "
        "for many",
    )
    val_tars: str = Field("", description="tar files of the validation part, if it has its own")
    test_tars: str = Field("", description="tar files of the test part, if it has its own")
    label: str = Field(
        "cls", description="the member with the class: cls, txt, or json.FIELD for a field of json"
    )
    names: str = Field("", description="a file of class names, where labels are its line numbers")
    val: float = Field(0.2, ge=0, lt=1, description="share to cut for validation, without val_tars")
    test: float = Field(
        0.2, ge=0, lt=1, description="share to cut for tests, without test_tars; 0 for a source"
    )
    seed: int = Field(0, ge=0, description="seed of the cut into parts")
    urls: str | list[str] = Field(
        "",
        description="addresses of the tar files, to be saved in path; {000..127} stands for many",
    )
    mirrors: list[str] = Field([], description="other addresses of a folder with the same files")
    sums: str = Field(
        "",
        description="a list of their SHA-256, as sha256sum writes it; default: first download's",
    )

    @field_validator("urls")
    @classmethod
    def _name_tar_files(cls, value: str | list[str]) -> str | list[str]:
        names = [shards.file_name(url) for url in _expanded(value)]
        if len(set(names)) < len(names):
            raise ValueError("two addresses end in one file name; write copies under mirrors")
        if value and not names:
            raise ValueError("the list names no file")
        return value

    @field_validator("mirrors")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for mirror in value:
            shards.file_name(f"{mirror}/a.tar")
        return value

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """{file name: where it can be fetched}, in their order; empty without ``urls``."""
        found = {shards.file_name(url): url for url in _expanded(self.urls)}
        others = [mirror.rstrip("/") for mirror in self.mirrors]
        return {n: (url, *(f"{other}/{n}" for other in others)) for n, url in found.items()}


def load(
    settings: Settings, progress: Callable[..., Iterable[int]], root: Path = Path()
) -> ImageSet:
    """Index the tars, read their images, cut the parts; a relative ``path`` starts at ``root``."""
    folder = _folder(settings, root)
    found = _parts(settings, folder)
    tars = sorted(found)
    steps, left_out = progress(range(len(tars)), "indexing shards"), Counter[str]()
    indices = [_index(tars[i], folder, settings.label, left_out) for i in steps]
    paths, archives, offsets, sizes, texts = (
        np.concatenate(column) for column in zip(*indices, strict=True)
    )
    splits = np.repeat(
        np.array([found[tar] for tar in tars], "U5"), [len(index[0]) for index in indices]
    )
    labels, names = _numbered(texts, splits == "train", folder)
    if settings.names:
        names = shards.named(names, located(root, settings.names))
    images = files.image_set(
        folder, paths, labels, splits, names, settings, progress,
        archives=archives, offsets=offsets, bytes=sizes,
    )  # fmt: skip
    notes = [f"{what} in the tar files: {n}, left out" for what, n in left_out.items() if n]
    images = replace(images, notes=(*images.notes, *notes, *lists.differ_in_case(names)))
    return duplicates.parted(images, test=settings.test, val=settings.val, seed=settings.seed)


def _expanded(urls: str | list[str]) -> list[str]:
    patterns = [urls] if isinstance(urls, str) else urls
    return [url for pattern in patterns if pattern for url in shards.expand(pattern)]


def _folder(settings: Settings, root: Path) -> Path:
    if "://" in settings.path:  # training reads single images in random order, in every epoch
        raise UserError(
            f"{settings.path}: path must be a folder, since shards are read from disk; write the "
            "addresses as urls: in the data set's section, and as path the folder to save them in"
        )
    folder = located(root, settings.path)
    absent = [name for name in settings.addresses() if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder}: missing {some(absent, 1)}, of the files that urls names; `uotft data "
            "prepare` with the data set's name fetches them"
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (path in the data set's section)")
    return folder


def _parts(settings: Settings, folder: Path) -> dict[Path, str]:
    """{tar: its part}; with ``urls``, only the tars that they name."""
    patterns = {"val": settings.val_tars, "test": settings.test_tars, "train": settings.train_tars}
    named, found = settings.addresses(), dict[Path, str]()
    for part, pattern in patterns.items():
        for tar in _matching(folder, pattern):
            if not named or tar.name in named:
                found.setdefault(tar, part)
    if not found:
        raise UserError(f"{folder}: no tar file matches train_tars in the data set's section")
    for tar, part in found.items():
        words = map(lists.part_of, re.split(r"[\W_\d]+", tar.name))
        means = next(filter(None, words), None)  # web-validation-000.tar, too
        if settings.train_tars == "*.tar" and part == "train" and means in ("val", "test"):
            raise UserError(
                f"{folder}: {tar.name} would be trained on, and its name says {means}: set "
                f"{means}_tars in the data set's section, or train_tars to its training files"
            )
    return found


def found(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> Found:
    """The tar files of the section that exist now, without class and part."""
    folder, named = located(root, settings.path), settings.addresses()
    patterns = (settings.train_tars, settings.val_tars, settings.test_tars)
    names = [name for pattern in patterns for name in shards.expand(pattern) if name]
    tars = sorted({tar for name in names for tar in folder.glob(name)})
    rows = [os.fsencode(tar.relative_to(folder)) for tar in tars if not named or tar.name in named]
    return Found(folder, [(row, "", "") for row in rows])


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The tar files that a setting names. Raises `UserError` if one of its names has none."""
    names = [name for name in shards.expand(pattern) if name]
    outside = [name for name in names if name[0] == "/" or ".." in Path(name).parts]
    if outside:
        raise UserError(
            f"{outside[0]}: not below {folder}; write tar files as paths relative to it"
        )
    found = {name: sorted(folder.glob(name)) for name in names}
    missing = [name for name, tars in found.items() if not tars]
    if missing:
        raise UserError(f"{folder}: no such file: {some(missing, 1)}, of {len(found)} named")
    return [tar for tars in found.values() for tar in tars]


def _index(
    tar: Path, root: Path, label: str, left_out: Counter[str]
) -> tuple[NDArray[np.generic], ...]:
    """Columns (n,) of one shard: names, the shard's own name, offsets, bytes, labels as text."""
    extension, _, field = label.partition(".")
    found = [*shards.pictures(tar, files.suffixes(), extension, left_out)]
    if not found:
        raise UserError(
            f"{tar}: no picture, such as KEY.jpg; known are {', '.join(sorted(files.suffixes()))}"
        )
    names, offsets, sizes, labels = zip(*found, strict=True)
    return (
        np.array([os.fsencode(name) for name in names]),
        np.full(len(names), os.fsencode(tar.relative_to(root))),
        np.array(offsets),
        np.array(sizes),
        np.array(
            [
                shards.label_of(text, field, f"{tar}: the label of {name}")
                for text, name in zip(labels, names, strict=True)
            ]
        ),
    )


def _numbered(
    texts: NDArray[np.generic], trained: NDArray[np.bool_], folder: Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels 0..C-1 and the names of the classes, in numerical order if all are numbers."""
    found, labels = np.unique(texts, return_inverse=True)
    known: list[str] = found.tolist()
    order = shards.ordered(known)
    labels, known = np.argsort(order)[labels], [known[i] for i in order]
    counts = np.bincount(labels[trained], minlength=len(known))
    if not counts.all():
        raise UserError(f"{folder}: class {known[int(counts.argmin())]!r} has no training image")
    return labels.astype(np.int64), tuple(known)
