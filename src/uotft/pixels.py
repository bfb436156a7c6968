"""Image files -> pixels: each decoded once, kept as uint8 squares in a file mapped into memory.

Whatever its shape, a picture is kept as a square of side S; a crop of the picture is a box of that
square, so that all pixels of a data set are one array (n, S, S, 3). Only the rows that somebody
asks for are decoded: the file is sparse, and costs S * S * 3 bytes for each of them.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.errors import UserError
from uotft.records import Files

if TYPE_CHECKING:
    from PIL.Image import Image

Uint8 = NDArray[np.uint8]

CHUNK = 256  # rows between two writes of the states, which a power cut can take back
WHOLE = (
    16 * 2**30
)  # bytes up to which all pixels of a data set are kept, not the selected ones only


class Store:
    """The pixels of ``files``, kept below ``folder``; an array (n, S, S, 3) for its users."""

    def __init__(self, files: Files, folder: Path) -> None:
        self.files, self.folder = files, folder
        self.shape = (len(files.paths), files.stored, files.stored, 3)
        _create(folder, self.shape)
        self.kept: Any = np.lib.format.open_memmap(folder / "pixels.npy", "r")
        self.there = np.lib.format.open_memmap(folder / "there.npy", "r+")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Uint8:
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        self._must(self.fill(np.atleast_1d(rows)))
        return np.asarray(self.kept[rows])

    def read(self, rows: NDArray[np.int64]) -> Uint8:
        """The pixels of ``rows``; of a large data set those not there yet are not kept either."""
        if self.is_small or self.there[rows].all():
            return self[rows]
        found, bad = self._decoded(rows)
        self._must(bad)
        return np.stack(found)

    def fill(
        self,
        rows: NDArray[np.int64],
        progress: Callable[..., Iterable[int]] = lambda starts, label: starts,
        *,
        keep: bool = True,
    ) -> dict[int, str]:
        """Decode those of ``rows`` that are not there yet; {row: why} of those that cannot be."""
        todo = rows[~self.there[rows]]
        if keep:
            self._need_space(len(todo))
        bad: dict[int, str] = {}
        starts: Iterable[int] = range(0, len(todo), CHUNK)
        for start in progress(starts, "decoding") if len(todo) > CHUNK else starts:
            part = todo[start : start + CHUNK]
            found, reasons = self._decoded(part)
            bad |= reasons
            if keep:
                self._keep(np.array([row for row in part.tolist() if row not in reasons]), found)
        return bad

    @property
    def is_small(self) -> bool:
        """Whether there is room for all pixels of the data set."""
        return bool(np.prod(self.shape) <= WHOLE)

    def _decoded(self, rows: NDArray[np.int64]) -> tuple[list[Uint8], dict[int, str]]:
        """The squares of the rows that can be read, and why the others cannot."""

        def one(row: int) -> Uint8 | str:
            path = self.files.path(row)
            try:
                content = path.read_bytes()
                if hashlib.sha256(content).digest() != self.files.sha256[row].tobytes():
                    return f"{path}: other bytes"
                return square(content, self.files.stored, path)
            except OSError as error:
                return f"{path}: {error.strerror}"
            except UserError as error:
                return str(error)

        found = [*zip(rows.tolist(), pool().map(one, rows.tolist()), strict=True)]
        good = [pixels for _, pixels in found if not isinstance(pixels, str)]
        return good, {row: why for row, why in found if isinstance(why, str)}

    def _keep(self, rows: NDArray[np.int64], found: list[Uint8]) -> None:
        """Pixels first, then their states: whatever is killed in between is decoded again.

        Written, not mapped: a full disk is an error then, and not the end of the process.
        """
        with (self.folder / "pixels.npy").open("r+b", buffering=0) as file:
            for row, pixels in zip(rows.tolist(), found, strict=True):
                os.pwrite(file.fileno(), pixels.tobytes(), self.kept.offset + row * pixels.nbytes)
            os.fsync(file.fileno())
        if len(rows):
            self.there[rows] = True
            self.there.flush()

    def _must(self, bad: dict[int, str]) -> None:
        if bad:
            raise UserError(f"{next(iter(bad.values()))}: it changed since `uotft prepare` read it")

    def _need_space(self, rows: int) -> None:
        needed, free = rows * int(np.prod(self.shape[1:])), shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"{self.folder}: {needed / 2**30:.1f} GiB are needed for the pixels of {rows} "
                f"images, {free / 2**30:.1f} GiB are free: make room, or lower `stored`"
            )


def square(content: bytes, side: int, path: Path) -> Uint8:
    """An encoded picture, upright, as uint8 (side, side, 3), stretched to fill it."""
    from PIL.Image import Resampling

    picture = picture_of(content, path, "RGB", side)
    return np.asarray(picture.resize((side, side), Resampling.BILINEAR))


def picture_of(content: bytes, path: Path, mode: str, side: int = 0) -> Image:
    """An encoded picture, upright, in the mode L or RGB; the first one, where it is animated.

    With ``side``, a JPEG may come smaller than it is, but at least that large. ``path`` opens the
    error where it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as file:
            if side:
                file.draft(mode, (side, side))
            return in_mode(ImageOps.exif_transpose(file), mode)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: {error}") from error


def in_mode(picture: Image, mode: str) -> Image:
    """8 bits of grey (L) or colour (RGB); of 16 bits the upper 8."""
    from PIL import Image as pillow

    if picture.mode[0] == "F":
        raise ValueError("floating point pixels have no known white")
    if picture.mode[0] == "I":
        pixels = np.asarray(picture, np.float64) / 257
        picture = pillow.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    # Pillow warns when a palette with transparency becomes grey without its colours
    return (picture.convert("RGBA") if picture.mode == "P" else picture).convert(mode)


@cache
def pool() -> ThreadPoolExecutor:
    """A thread a core, for whatever lets other threads run: Pillow's decoders, torch's scaling."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def _create(folder: Path, shape: tuple[int, ...]) -> None:
    """An empty store, once, whoever comes first."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    np.lib.format.open_memmap(made / "pixels.npy", "w+", np.uint8, shape)
    np.lib.format.open_memmap(made / "there.npy", "w+", np.bool_, shape[:1])
    try:
        made.rename(folder)
    except OSError:  # somebody else was first
        shutil.rmtree(made)
