"""The 1,000 classes of ILSVRC2012: WordNet ids, in the order of published classifiers, and names.

imagenet_classes.tsv has a line ID<tab>NAME for each class. The ids are those of timm's
imagenet_synsets.txt, the names those of torchvision; this wrote it:

    ids = (Path(timm.__file__).parent / "data/_info/imagenet_synsets.txt").read_text().split()
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    table.write_text("".join(f"{i}\\t{n}\\n" for i, n in zip(ids, names, strict=True)))
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("imagenet_classes.tsv")
ID = re.compile(r"n\d{8}(?![^\W_])")


@cache
def _rows() -> dict[str, tuple[int, str]]:
    """{WordNet id: (row of a classifier, name)}."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {wnid: (i, name) for i, (wnid, name) in enumerate(line.split("\t") for line in lines)}


def imagenet() -> dict[str, str]:
    """{WordNet id: name} of the 1,000 classes, in the order of a published classifier's rows."""
    return {wnid: name for wnid, (_, name) in _rows().items()}


def id_of(class_name: str) -> str:
    """The WordNet id that a class name begins with, as ``n02085620-Chihuahua`` does; "" if none."""
    found = ID.match(class_name)
    return found[0] if found else ""


def named(wnid: str) -> str:
    """``n01440764 tench``; the id alone where it is none of the 1,000."""
    return f"{wnid} {_rows().get(wnid, (0, ''))[1]}".strip()


def rows(names: Iterable[str]) -> list[int] | None:
    """The rows of a classifier of the 1,000 classes for ``names``; None if one has no such id."""
    table, found = _rows(), [id_of(name) for name in names]
    return [table[wnid][0] for wnid in found] if all(wnid in table for wnid in found) else None
