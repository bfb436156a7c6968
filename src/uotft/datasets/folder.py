"""Your own images: a folder of folders, one a class, cut into parts or not.

    FOLDER/train/CLASS/*.jpg    FOLDER/val/…    FOLDER/test/…

``train`` may stand alone, or the classes themselves: what is missing is a seeded stratified cut
from it. In params.yaml any name will do: ``datasets: {birds: {kind: folder, path: photos/birds}}``.

    uotft prepare --dataset birds
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydantic import Field

from uotft import files
from uotft.errors import UserError
from uotft.records import ImageSet

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Settings(files.View):
    """Settings of a folder of images."""

    path: str = Field(description="the folder")
    val: float = Field(0.2, gt=0, lt=1, description="share for validation, where there is no val/")
    test: float = Field(0.2, gt=0, lt=1, description="share for tests, where there is no test/")
    seed: int = Field(0, ge=0, description="seed of the cut into parts")


def load(settings: Settings, progress: Callable[..., Iterable[int]]) -> ImageSet:
    """Find, read and cut; nothing is copied."""
    root = Path(settings.path).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder (path in the data set's section of params.yaml)")
    paths = list(files.below(root))
    pieces = [path.decode(errors="backslashreplace").split("/") for path in paths]
    whole = any(p[0] in PARTS and len(p) > 2 for p in pieces)  # it has parts of its own
    parted = [(PARTS.get(p[0], ""), p[1:]) if whole else ("train", p) for p in pieces]
    good = [i for i, (part, rest) in enumerate(parted) if part and len(rest) > 1]
    if not good:
        raise UserError(
            f"{root}: no image in a folder named after its class; looked for "
            f"CLASS/image and train/CLASS/image that end in {', '.join(sorted(files.SUFFIXES))}"
        )
    splits = np.array([parted[i][0] for i in good], "U5")
    words = [parted[i][1][0] for i in good]
    names = tuple(sorted({w for w, s in zip(words, splits, strict=True) if s == "train"}))
    strangers = sorted(set(words) - set(names))
    if strangers:
        raise UserError(f"{root}: class {strangers[0]!r} has no training image")
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[word] for word in words], np.int64)
    for part, share in (("test", settings.test), ("val", settings.val)):
        if part not in splits:
            rows = np.flatnonzero(splits == "train")
            splits[rows[files.hold_out(labels[rows], share, settings.seed)[1]]] = part
    return files.image_set(
        root, [paths[i] for i in good], labels, splits, names, settings, progress
    )
