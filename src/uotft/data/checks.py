"""Checks of a data set before anything is trained on it: notes for the user.

uotft data prepare birds
"""

from __future__ import annotations

import numpy as np

from uotft.core.records import ImageSet, Progress
from uotft.core.text import some
from uotft.data import duplicates, overlap
from uotft.data.pixel_cache import in_parts

NAMED = 10  # classes that a note names
NEAR = 20_000  # most images of a set that is searched for near copies; each takes one or two ms


def classes_without(images: ImageSet) -> list[str]:
    """A note for val and for test, if the part has images but lacks some classes."""
    notes = []
    for part in ("val", "test"):
        counts = np.bincount(images.labels[images.rows(part)], minlength=len(images.names))
        absent = np.flatnonzero(counts == 0)
        if counts.any() and len(absent):
            names = some((images.names[label] for label in absent), NAMED)
            of = f"{len(absent)} of {len(counts)}"
            notes.append(f"classes without an image in {part}: {of} ({names})")
    return notes


def near_copies(images: ImageSet, progress: Progress) -> list[str]:
    """A note that counts test images that look like one of train or val, in a set of files.

    Uses `overlap.find` on the kept pixels. There is no note for a set of more than NEAR images, or
    one whose test images look alike among themselves: there, similar does not mean the same.
    """
    from PIL import Image

    tested = images.rows("test")
    others = np.flatnonzero(np.isin(images.splits, ("train", "val")))
    if images.files is None or not len(tested) or len(tested) + len(others) > NEAR:
        return []
    if not getattr(images.images, "is_small", True):  # its pixels are not kept
        return []
    files = images.files

    def one(row: int) -> overlap.Picture:
        digest, stem = files.sha256[row].tobytes().hex(), files.path(row).stem
        return overlap.picture(Image.fromarray(images.images[row]), row, digest, stem)

    pictures = []
    rows = np.r_[tested, others]
    for start in progress(range(0, len(rows), overlap.BLOCK), "looking for near copies"):
        pictures += in_parts(one, rows[start : start + overlap.BLOCK].tolist())
    target = pictures[: len(tested)]
    found = overlap.find(target, pictures[len(tested) :])
    pairs = {int(m.target): int(m.source) for m in found if m.reason != "bytes"}
    if not pairs or overlap.alike(target) > overlap.ALIKE:
        return []
    example = " = ".join(duplicates.path_of(images, row) for row in next(iter(pairs.items())))
    return [
        f"test images that look the same as an image of train or val but differ in bytes: "
        f"{len(pairs)} of {len(tested)} ({example}); `uotft data overlap` with the set's name "
        "lists them"
    ]
