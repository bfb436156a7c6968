"""One picture, one row: files of the same bytes inside one data set, found by their SHA-256.

A test picture that was also trained on tests memory alone. So a user's own set keeps one file of
each picture, before any part is cut; if two official parts share a picture, test keeps it, else
val. Public sets keep all rows that their makers list, with a note.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError
from uotft.core.records import Files, ImageSet
from uotft.core.text import indented
from uotft.data.files import cut

PARTS = ("test", "val", "train")  # the first part that has a picture keeps it

Rows = NDArray[np.int64]


class Copies(NamedTuple):
    """``rows`` (m,) are copies; each has the same bytes as its row in ``kept`` (m,)."""

    rows: Rows
    kept: Rows


def parted(images: ImageSet, *, seed: int, **shares: float) -> ImageSet:
    """A user's own set without copies; each part of ``shares`` that it lacks is cut from train.

    Raises `UserError` if a class is left without a training image.
    """
    images, root = without_copies(images), images.files.root if images.files else ""
    trained = np.bincount(images.labels[images.splits == "train"], minlength=len(images.names))
    if not trained.all():
        name = images.names[int(trained.argmin())]
        raise UserError(f"{root}: class {name!r} has no training image that is not in test or val")
    has = set(images.splits.tolist())
    for part, share in shares.items():
        if share and part not in has:
            cut(images.labels, images.splits, part, share, seed)
    return images


def without_copies(images: ImageSet) -> ImageSet:
    """The set with one row for each picture; notes count what is left out.

    Raises `UserError` for a picture with two labels; it names both files.
    """
    assert images.files is not None
    found = find(images.files, images.splits)
    if not len(found.rows):
        return images
    if apart := _two_labels(images, found):
        raise UserError(
            f"{images.files.root}: pictures with two labels, byte for byte: {len(apart)}. Remove "
            f"the file or row with the wrong label:{indented(apart)}"
        )
    keep = np.ones(len(images.labels), bool)
    keep[found.rows] = False
    notes = [
        f"{pairs}; " + ("one of each is kept" if where == other else f"left out of {where}")
        for where, other, pairs in _by_part(images, found)
    ]
    return replace(
        images,
        labels=images.labels[keep],
        splits=images.splits[keep],
        files=_of_rows(images.files, keep),
        notes=(*images.notes, *notes),
    )


def noted(images: ImageSet) -> ImageSet:
    """The set with all its rows, and notes that count the copies among them."""
    assert images.files is not None
    found = find(images.files, images.splits)
    notes = [
        f"{pairs}; kept, as the makers of the set list them"
        for where, other, pairs in _by_part(images, found)
    ]
    if apart := _two_labels(images, found):
        notes.append(f"pictures with two labels, byte for byte: {len(apart)} ({apart[0]})")
    return replace(images, notes=(*images.notes, *notes))


def find(files: Files, splits: NDArray[np.str_]) -> Copies:
    """The rows that are copies, ascending, and for each the row that is kept.

    Files that cannot be read have size 1 x 1 and never count as copies, since their content is
    unknown. A million rows take a second.
    """
    readable = np.flatnonzero((files.sizes > 1).any(1))
    digests = np.ascontiguousarray(files.sha256[readable]).view("V32").ravel()
    _, picture, counts = np.unique(digests, return_inverse=True, return_counts=True)
    many = counts[picture] > 1
    rows, picture = readable[many], picture[many]
    rank = np.full(len(rows), len(PARTS))
    for i, part in enumerate(PARTS):
        rank[splits[rows] == part] = i
    # by picture, then by part, then by row: the first row of each picture is kept
    order = np.lexsort((rows, rank, picture))
    rows, picture = rows[order], picture[order]
    first = np.r_[True, picture[1:] != picture[:-1]][: len(rows)]  # cut to () without copies
    kept = rows[np.flatnonzero(first)][np.cumsum(first) - 1]
    again = np.flatnonzero(~first)[np.argsort(rows[~first])]
    return Copies(rows[again], kept[again])


def _two_labels(images: ImageSet, found: Copies) -> list[str]:
    """A line for each copy whose label differs from that of the row it copies."""
    wrong = images.labels[found.rows] != images.labels[found.kept]

    def named(row: int) -> str:
        return f"{path_of(images, row)} is {images.names[images.labels[row]]!r}"

    pairs = zip(found.kept[wrong].tolist(), found.rows[wrong].tolist(), strict=True)
    return [f"{named(kept)}, {named(row)}" for kept, row in pairs]


def _by_part(images: ImageSet, found: Copies) -> list[tuple[str, str, str]]:
    """(part of the copies, part of the kept rows, a line with their number and an example)."""
    made = []
    for where in PARTS[::-1]:
        for other in PARTS[::-1]:
            here = images.splits[found.rows] == where
            here &= images.splits[found.kept] == other
            if here.any():
                row, kept = int(found.rows[here][0]), int(found.kept[here][0])
                example = f"{path_of(images, row)} = {path_of(images, kept)}"
                of = f"files in {other}" if where != other else "others there"
                what = f"copies in {where}, byte for byte, of {of}: {here.sum()} ({example})"
                made.append((where, other, what))
    return made


def _of_rows(files: Files, keep: NDArray[np.bool_]) -> Files:
    """The columns, with the rows in ``keep`` (n,) only."""
    columns: dict[str, Any] = {f.name: getattr(files, f.name) for f in fields(files)}
    columns |= {n: c[keep] for n, c in columns.items() if isinstance(c, np.ndarray) and len(c)}
    return Files(**columns)


def path_of(images: ImageSet, row: int) -> str:
    """The path of a row below its set's folder."""
    assert images.files is not None
    path = os.path.relpath(images.files.path(row), images.files.root)
    return os.fsencode(path).decode(errors="replace")
