"""A CSV or Parquet file that lists images -> its rows: path, class and part.

    path,label,split
    photos/1.jpg,robin,train

Paths count from the folder of the list. Without the column split, all rows are in train.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uotft.core import storage
from uotft.core.errors import UserError

# How people spell the parts; `part_of` ignores case, spaces, "_" and "-".
PARTS = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validset", "validationset"), "val"),
    **dict.fromkeys(("dev", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "testingset", "tst"), "test"),
}
LISTS = (".csv", ".parquet")
Rows = list[tuple[bytes, str, str]]  # path, class, part


def part_of(name: str) -> str | None:
    """train, val or test for a name that means this part: " Test", TRAIN, Training, val-set."""
    return PARTS.get(re.sub(r"[\s_-]", "", name).casefold())


def rows(path: Path) -> Rows:
    """The rows of a list; an error names the row that it is in."""
    found: Rows = []
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
        found.append((os.fsencode(image), label, part))
    if not found:
        raise UserError(f"{path}: it lists no image")
    return found


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
