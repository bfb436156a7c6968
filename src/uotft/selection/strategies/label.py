"""Label selection: keep the source classes whose labels say that they overlap with the target.

Liu et al. (2022), section 3.2. A class is kept when one of its labels equals an entry of
``classes`` or matches it as a shell pattern: "digit *" keeps digit zero to digit nine. Its labels
are its name in the source bank and, where a ``table`` is given, every cell of its row there: a
WordNet id, a concept, each synonym of "tench, Tinca tinca". Where images are selected, the names
are those of their classes. K does not apply.
"""

from __future__ import annotations

import csv
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the strategy ``label``."""

    FILES: ClassVar = ("table",)

    classes: list[str] = Field(
        ["digit *"], min_length=1, description="names, WordNet ids, concepts, or shell patterns"
    )
    table: str = Field("", description="a JSON list or CSV file with one row a source class")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """0 for a class that matches, -inf for all others."""
    names = source.labels or source.names
    words = {name: {name} for name in names}
    if settings.table:
        if source.labels:
            raise UserError("selectors.label.table: goes with select.unit: class, not with images")
        for name, row in zip(names, _table(settings.table, len(names)), strict=True):
            for cell in map(str, row.values()):
                words[name] |= {cell, *(part.strip() for part in cell.split(","))}
    kept: set[str] = set()
    for pattern in settings.classes:
        hits = {name for name in words if any(fnmatchcase(word, pattern) for word in words[name])}
        if not hits:
            raise UserError(
                f"selectors.label.classes: {pattern!r} matches none of the {len(words)} "
                f"source classes, which are {', '.join(list(words)[:8])}, ..."
            )
        kept |= hits
    match = np.array([name in kept for name in names])
    return Scores(values=np.where(match, 0.0, -np.inf), exact=True)


def _table(name: str, classes: int) -> list[dict[str, Any]]:
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.split("\n")))
        )
    except (OSError, ValueError) as error:
        raise UserError(f"selectors.label.table: {path} cannot be read ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"selectors.label.table: {path} is not a list of rows with named cells")
    if len(rows) != classes:
        raise UserError(
            f"selectors.label.table: {path} has {len(rows)} rows for {classes} source classes; "
            "one row a class, in the bank's order, is needed"
        )
    return rows
