"""Small folders of drawn pictures, read as data sets of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from support import pictures
from uotft.data.datasets import folder

SMALL = {"stored": 16, "size": 12}


def quiet(items: range, label: str) -> range:
    return items


def load(root: Path, **settings: object) -> object:
    return folder.load(folder.Settings(path=str(root), **SMALL, **settings), quiet)


def tree(root: Path, *names: str) -> Path:
    return pictures.write(
        root, {n: pictures.encoded(pictures.scene(i)) for i, n in enumerate(names)}
    )


def many(part: str, classes: Iterable[str], n: int) -> list[str]:
    return [f"{part}{c}/{i}.png" for c in classes for i in range(n)]
