"""Caltech-101: 101 kinds of objects (Fei-Fei et al., CVPR workshop 2004; CaltechDATA 2022).

There is no official split. The literature samples 30 images of each class for training and tests on
the rest: 3,030 and 5,647 images, without the class of background clutter. It reports the mean of
the per-class accuracies. Here the 30 are those with the smallest SHA-256 of "SEED/CLASS/FILE", so
that anyone can reproduce the list, in any language.

    uotft data prepare caltech
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files, walk
from uotft.data.archives import Archive, Card

CARD = Card(
    name="caltech",
    home="https://data.caltech.edu/records/mzrjq-6wc02",
    licence="CC BY 4.0",
    classes=101,
    images={"train": 3_030, "test": 5_647},
    metric="mean per class",
    archives=(
        Archive(
            "caltech-101.zip",
            "caltech-101/101_ObjectCategories",
            137_414_764,
            "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            (
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "https://data.caltech.edu/api/records/mzrjq-6wc02/files/caltech-101.zip/content",
            ),
        ),
    ),
)


class Settings(files.PublicSettings):
    """Settings of the data set ``caltech``."""

    path: str = Field("downloads/caltech", description="the folder of its archive")
    shots: int = Field(30, ge=2, description="images of each class for training and validation")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """caltech-101/101_ObjectCategories/accordion/image_0001.jpg; the zip holds a tar of these."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    folder = folder / "caltech-101" / "101_ObjectCategories"
    classes: dict[str, list[str]] = {}
    for path in map(os.fsdecode, walk.below(folder)):
        classes.setdefault(path.split("/")[0], []).append(path)
    classes.pop("BACKGROUND_Google", None)
    rows: list[tuple[str, str, str]] = []
    for name, paths in classes.items():
        paths.sort(key=lambda path: hashlib.sha256(f"{settings.seed}/{path}".encode()).digest())
        parts = ["train"] * settings.shots + ["test"] * (len(paths) - settings.shots)
        rows += [(path, name, part) for path, part in zip(paths, parts, strict=False)]
    names = {name: name.replace("_", " ") for name in classes}
    return files.listed(folder, sorted(rows), names, settings, progress)
