"""Checks of a data set's pixels: are many pictures nearly black, of one colour, or equal?

Such files are read without an error, and a network learns nothing from them: 12 bits of a camera in
16-bit files, drawings in the alpha channel alone, one picture written again and again.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from uotft.core.records import Files, ImageSet, Progress
from uotft.data.pixel_cache import NO_BACKGROUND, Store, in_parts, raw_mode

SAMPLE = 4096  # pictures that are checked, spread over the set
BLOCK = 256  # pictures in memory at once
DARK = 65  # level of 255 that no pixel of a nearly black picture reaches; 14 bits of 16 give 64
FLAT = 8  # most levels by which the pixels of a picture of one colour differ
MANY = 0.05  # share of the pictures that is worth a note; so is a whole class
OPENED = 64  # most files that are opened again to look for 16 bits or transparency
HALF = 0.5  # share of a picture's pixels


@dataclass(frozen=True)
class Look:
    """One picture: its brightest value, how far its pixels differ, and a hash of them."""

    brightest: int
    spread: int
    digest: bytes


def looks(images: ImageSet, dataset: str, progress: Progress) -> list[str]:
    """Notes on the readable pictures of a set of files; empty if nothing looks wrong."""
    files, pixels = images.files, images.images
    if files is None or not isinstance(pixels, Store):
        return []
    rows = np.flatnonzero(images.splits != "unreadable")
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).round().astype(np.int64)]
    found: list[Look] = []
    starts: Iterable[int] = range(0, len(rows), BLOCK)
    for start in starts if pixels.is_small else progress(starts, "checking a sample"):
        squares = pixels.read(rows[start : start + BLOCK])
        found += in_parts(partial(_look, squares), range(len(squares)))
    kinds = _kinds(found)
    lines = _veils(files, rows, dataset)
    for what, which in kinds.items():
        if _is_much(which, images.labels[rows]):
            line = _line(what, rows[which], len(rows), images)
            lines.append(f"{line}{_why(files, rows[which].tolist(), dataset)}")
    if lines:
        lines[-1] += f"; `uotft data show {dataset} --output {dataset}.png` shows some of them"
    return lines


def _veils(files: Files, rows: NDArray[np.int64], dataset: str) -> list[str]:
    """A note if many pictures are half transparent: the fourth channel of a TIFF may be infrared.

    A file says only that it has a fourth channel; tools take it for alpha, whatever it is.
    """
    if files.background == NO_BACKGROUND or not len(rows):
        return []
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), OPENED)).round().astype(np.int64)]
    shares = in_parts(partial(_half_clear, files), some.tolist())
    veiled = [row for row, share in zip(some.tolist(), shares, strict=True) if share > HALF]
    if len(veiled) < max(2, MANY * len(some)):
        return []
    return [
        f"{len(veiled)} of {len(some)} pictures opened are half transparent in most of their "
        f"pixels, such as {files.path(veiled[0])}: `background: {files.background}` shows "
        "through. If their last channel is something else, such as near infrared, `background: "
        f"none` in datasets.{dataset} leaves it out"
    ]


def _half_clear(files: Files, row: int) -> float:
    """The share of a picture's pixels that are neither transparent nor solid."""
    from PIL import Image

    with Image.open(io.BytesIO(files.content(row))) as picture:
        if picture.mode not in ("RGBA", "LA"):
            return 0.0
        alpha = np.asarray(picture.getchannel("A"))
    return float(((alpha > 0) & (alpha < 255)).mean())


def _look(squares: Sequence[NDArray[np.uint8]], number: int) -> Look:
    square = np.ascontiguousarray(squares[number])
    spread = _spread(square[::8, ::8])
    if spread <= FLAT:  # a coarse grid is enough for most pictures; this one needs all pixels
        spread = _spread(square)
    digest = hashlib.blake2b(square.data, digest_size=16).digest()
    return Look(int(square.max()), spread, digest)


def _spread(pixels: NDArray[np.uint8]) -> int:
    """How far the pixels (H, W, 3) of a picture differ, in its channel of most contrast."""
    return int(np.ptp(pixels.reshape(-1, 3), 0).max())


def _kinds(found: list[Look]) -> dict[str, NDArray[np.bool_]]:
    """{finding: for which pictures it holds (n,)}; at most one finding a picture."""
    dark = np.array([look.brightest < DARK for look in found], bool)
    flat = np.array([look.spread <= FLAT for look in found], bool) & ~dark
    often = Counter(look.digest for look in found)
    equal = np.array([often[look.digest] > 1 for look in found], bool) & ~dark & ~flat
    brightest = max((look.brightest for look in found if look.brightest < DARK), default=0)
    return {
        f"are nearly black (their brightest value is {brightest} of 255)": dark,
        "are of one colour": flat,
        "have the same pixels as another one": equal,
    }


def _is_much(which: NDArray[np.bool_], labels: NDArray[np.int64]) -> bool:
    """Whether a finding is worth a note: it holds for MANY of all, or for a whole class."""
    count = int(which.sum())
    if count < 2:
        return False
    of_class, those = np.bincount(labels), np.bincount(labels[which])
    whole = (of_class[: len(those)] == those) & (those > 1)
    return bool(count >= MANY * len(which) or whole.any())


def _line(what: str, rows: NDArray[np.int64], n: int, images: ImageSet) -> str:
    """How many of ``n`` pictures, an example, and the classes that they are of."""
    assert images.files is not None
    path = images.files.path(int(rows[0]))
    classes = np.unique(images.labels[rows])
    of = f"{len(classes)} of {len(images.names)} classes"
    if len(classes) == 1:
        of = f"class {images.names[classes[0]]!r}"
    return f"{len(rows):,} of {n:,} pictures checked {what}, such as {path}, of {of}"


def _why(files: Files, rows: list[int], dataset: str) -> str:
    """A likely reason, from the files themselves: 16 bits, or transparency."""
    opened = [_opened(files, row) for row in rows[:OPENED]]
    values = [value for value, _, _ in opened if value]
    if values:
        brightest = max(values)
        white = 2 ** max(8, brightest.bit_length()) - 1
        if white not in (files.white, 2**16 - 1):
            return (
                f"; the brightest value of {len(values)} of its 16-bit files is {brightest}: "
                f"`white: {white}` in datasets.{dataset} makes that white"
            )
    if any(deep for _, deep, _ in opened):
        return "; they have 16 bits of colour, of which only the upper 8 are read: convert them"
    if any(clear for _, _, clear in opened):
        return (
            f"; they have transparent pixels, which show `background: {files.background}`: another "
            f"colour in datasets.{dataset} may make the drawing visible"
        )
    return ""


def _opened(files: Files, row: int) -> tuple[int, bool, bool]:
    """(brightest value of 16 bits of grey or 0, has 16 bits of colour, has transparency)."""
    from PIL import Image

    with Image.open(io.BytesIO(files.content(row))) as picture:
        deep = ";16" in raw_mode(picture) and picture.mode[0] != "I"
        clear = picture.has_transparency_data
        value = int(np.asarray(picture).max()) if picture.mode[:2] == "I;" else 0
    return value, deep, clear
