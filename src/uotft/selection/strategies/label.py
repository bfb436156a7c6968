"""Label selection: keep the source classes whose labels say that they overlap with the target.

Liu et al. (2022), section 3.2. A class is kept when one of its labels equals an entry of
``classes``; an entry that equals none is read as a shell pattern: "digit *" keeps digit zero to
digit nine, "dog [black]" the class of that name if there is one. Its labels are its name in the
source bank and, where a ``table`` is given, every cell of its row there: a WordNet id, a concept,
each synonym of "tench, Tinca tinca". Where images are selected, the names are those of their
classes. K does not apply.
"""

from __future__ import annotations

import csv
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the strategy ``label``."""

    FILES: ClassVar = ("table",)
    IGNORES_K: ClassVar = True

    classes: list[str] = Field(
        ["digit *"],
        min_length=1,
        description="names, WordNet ids, concepts, or else shell patterns",
    )
    table: str = Field("", description="a JSON list or CSV file with one row a source class")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """0 for a class that matches, -inf for all others."""
    words = _words(source)
    if settings.table:
        if source.unit == "image":
            raise UserError("selectors.label.table: goes with select.unit: class, not with images")
        for own, row in zip(words, _table(settings.table, len(words)), strict=True):
            for cell in map(str, row.values()):
                own |= {cell, *(part.strip() for part in cell.split(","))}
    words = [{normalize("NFC", word) for word in own} for own in words]
    kept = np.zeros(len(words), bool)
    for pattern in settings.classes:
        hits = _hits(words, normalize("NFC", pattern))
        if not hits.any():
            known = [*dict.fromkeys(_shown(source))]
            raise UserError(
                f"selectors.label.classes: {pattern!r} matches none of the {len(known)} "
                f"source classes, which are {', '.join(known[:8])}, ..."
            )
        kept |= hits
    return Scores(values=np.where(kept, 0.0, -np.inf))


def _words(source: ClassBank) -> list[set[str]]:
    """What each row answers to: the class of an image, else its name and a label that is no number.

    Numbers that another tool left in ``labels`` are its ids of classes, not names.
    """
    if source.unit == "image" and source.labels:
        return [{label} for label in source.labels]
    labels = source.labels or source.names
    named = zip(source.names, labels, strict=True)
    return [{name} if _is_number(label) else {name, label} for name, label in named]


def _shown(source: ClassBank) -> tuple[str, ...]:
    """The names that a message lists."""
    ids = source.unit != "image" and all(map(_is_number, source.labels))
    return source.names if ids else source.labels


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _hits(words: list[set[str]], pattern: str) -> NDArray[np.bool_]:
    """Which rows have a word that equals ``pattern``; where none has, those that match it."""
    equal = np.array([pattern in own for own in words])
    if equal.any():
        return equal
    return np.array([any(fnmatchcase(word, pattern) for word in own) for own in words])


def _table(name: str, classes: int) -> list[dict[str, Any]]:
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.split("\n")))
        )
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"selectors.label.table: {path} cannot be read ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"selectors.label.table: {path} is not a list of rows with named cells")
    if len(rows) != classes:
        raise UserError(
            f"selectors.label.table: {path} has {len(rows)} rows for {classes} source classes; "
            "one row a class, in the bank's order, is needed"
        )
    return rows
