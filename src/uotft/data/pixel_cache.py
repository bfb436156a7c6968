"""Image files -> pixels: each decoded once, kept as uint8 squares in a file mapped into memory.

A picture of any shape is stretched to a square of side S, and a crop of it is a box of that square.
So all pixels of a data set are one array (n, S, S, 3). A row is decoded when it is first read. The
file is sparse: it takes S * S * 3 bytes for each decoded row.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from uotft.core import disk, environment, storage
from uotft.core.errors import UserError
from uotft.core.records import Files

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held; TURNS undoes it
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
         6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
TURNING = b"eXIf", b"exif", b"adobe.xmp"  # in a PNG, these may hold an orientation
# First bytes of files that are often named .jpg but that Pillow cannot read.
BEGIN = {
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the picture",
    b"/annex/objects/": "a pointer of git-annex: `git annex get` fetches the picture",
    b"<!doctype html": "a web page", b"<html": "a web page", b"<svg": "an SVG drawing",
    b"<?xml": "a text in XML", b"%pdf": "a PDF",
}  # fmt: skip
HEIC = b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"
ALONE = b"\xff\xd8\xff", b"8BPS"  # JPEG and PSD: further images in them are its thumbnail or layers
Uint8 = NDArray[np.uint8]
T = TypeVar("T")
Bar = Callable[..., Iterable[int]]

NO_BACKGROUND = "none"  # transparency is ignored
WHITE = 2**16 - 1  # of 16 bits of grey

CHUNK = 48 * 2**20  # bytes of pixels that are decoded, written and marked as kept together
WHOLE = 16 * 2**30  # bytes up to which all pixels of a data set are kept, not only those selected


class Store:
    """The pixels of ``files``, kept below ``folder``; indexed like an array (n, S, S, 3)."""

    def __init__(self, files: Files, folder: Path) -> None:
        self.files, self.folder = files, folder
        self.shape = (len(files.paths), files.stored, files.stored, 3)
        _create(folder, self.shape)
        mapped = np.lib.format.open_memmap(folder / "pixels.npy", "r")
        self.kept, self.offset = np.asarray(mapped), mapped.offset
        self.there = np.lib.format.open_memmap(folder / "there.npy", "r+")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Uint8:
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        self.hold(np.atleast_1d(rows))
        return np.asarray(self.kept[rows])

    def hold(self, rows: NDArray[np.int64], progress: Bar = lambda starts, label: starts) -> None:
        """Decode and keep those of ``rows`` that are missing; `UserError` if one is unreadable."""
        self._must(self.fill(rows, progress))

    def read(self, rows: NDArray[np.int64]) -> list[Uint8]:
        """The squares of ``rows``; in a large data set, missing ones are decoded but not kept."""
        if self.is_small:
            self.hold(rows)
        if self.there[rows].all():
            return [self.kept[row] for row in rows.tolist()]
        found, bad = self._decoded(rows)
        self._must(bad)
        return found

    def fill(
        self,
        rows: NDArray[np.int64],
        progress: Bar = lambda starts, label: starts,
        *,
        keep: bool = True,
    ) -> dict[int, str]:
        """Decode those of ``rows`` that are missing; returns {row: why} for unreadable ones."""
        todo = np.unique(rows[~self.there[rows]])
        if keep:
            self._need_space(len(todo))
        bad: dict[int, str] = {}
        step = max(1, CHUNK // int(np.prod(self.shape[1:])))
        starts: Iterable[int] = range(0, len(todo), step)
        for start in progress(starts, "decoding") if len(todo) > step else starts:
            part = todo[start : start + step]
            found, reasons = self._decoded(part)
            bad |= reasons
            if keep:
                self._keep(np.array([row for row in part.tolist() if row not in reasons]), found)
        return bad

    @property
    def is_small(self) -> bool:
        """Whether all pixels of the data set are kept, not only those of the rows selected."""
        return bool(np.prod(self.shape) <= WHOLE)

    def _decoded(self, rows: NDArray[np.int64]) -> tuple[list[Uint8], dict[int, str]]:
        """The squares of the rows that can be read, and why the others cannot."""

        def one(row: int) -> Uint8 | str:
            try:
                files, content = self.files, content_of(self.files, row)
                side, path = files.stored, files.path(row)
                return square(content, side, path, files.background, files.white)
            except UserError as error:
                return str(error)

        found = [*zip(rows.tolist(), in_parts(one, rows.tolist()), strict=True)]
        good = [pixels for _, pixels in found if not isinstance(pixels, str)]
        return good, {row: why for row, why in found if isinstance(why, str)}

    def _keep(self, rows: NDArray[np.int64], found: list[Uint8]) -> None:
        """Write pixels first, then their states: after a kill in between they are decoded again.

        Several processes may write one row at once, since they write the same bytes. A write to a
        full disk raises an error; through the memory map it would kill the process (SIGBUS).
        """
        try:
            with (self.folder / "pixels.npy").open("r+b") as file:
                for row, pixels in zip(rows.tolist(), found, strict=True):
                    file.seek(self.offset + row * pixels.nbytes)
                    file.write(pixels.data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            size = sum(pixels.nbytes for pixels in found)
            full = disk.ran_out(error, self.folder / "pixels.npy", size)
            raise full or UserError(f"{self.folder}: {error.strerror}") from error
        if len(rows):
            self.there[rows] = True
            self.there.flush()

    def _must(self, bad: dict[int, str]) -> None:
        if bad:
            why = next(iter(bad.values()))
            raise UserError(f"{why}; put the file back, or run `uotft prepare` again")

    def _need_space(self, rows: int) -> None:
        sizes = {f"for the pixels of {rows} images": rows * int(np.prod(self.shape[1:]))}
        disk.need(sizes, self.folder, "make room, or lower `stored`")


def content_of(files: Files, row: int) -> bytes:
    """The bytes of a file; `UserError` if they changed since `uotft prepare` read them."""
    try:
        content = files.content(row)
    except OSError as error:
        raise UserError(f"{files.path(row)}: {error.strerror}") from error
    if hashlib.sha256(content).digest() != files.sha256[row].tobytes():
        raise UserError(f"{files.path(row)}: it changed since `uotft prepare` read it")
    return content


def square(
    content: bytes, side: int, path: Path, background: str = "white", white: int = 0
) -> Uint8:
    """An encoded picture, upright, stretched to uint8 (side, side, 3)."""
    pixels = np.array(picture_of(content, path, "RGB", side, background, white))
    # scaling would not change a picture of that size, and torch takes seconds to import
    return pixels if pixels.shape == (side, side, 3) else scaled(pixels, side)


def scaled(pixels: Uint8, side: int) -> Uint8:
    """uint8 (H, W, 3), contiguous -> (side, side, 3), bilinear with antialiasing.

    Torch gives the same as Pillow within one level of 255, in a fifth of the time if channels come
    last in memory (docs/decisions/0009-decoder.md).
    """
    import torch
    from torch.nn import functional

    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    image = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
    return np.asarray(image[0].permute(1, 2, 0).numpy())


def upright_size(content: bytes) -> tuple[int, int]:
    """Height and width of an encoded picture, upright; 1 x 1 if its header cannot be read."""
    from PIL import Image

    with suppress(*_faults()), Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
        turned = _may_turn(content) and _turn(picture) > 4
        return (width, height) if turned else (height, width)
    return 1, 1


def is_several(content: bytes) -> bool:
    """Whether a file holds several pictures, such as frames or pages; only the first is read."""
    from PIL import Image

    if content.startswith((*ALONE, b"\x89PNG")) and b"acTL" not in content[:4096]:
        return False
    with suppress(*_faults()), Image.open(io.BytesIO(content)) as picture:
        return bool(getattr(picture, "is_animated", False)) and picture.format != "MPO"
    return False


def _instead(content: bytes) -> str:
    """What an unreadable file is, judging by its first bytes; "" if they do not tell."""
    if not content:
        return "; it is empty"
    if content[4:].startswith(HEIC):
        return "; it is HEIC, whatever its name says: convert it to JPEG"
    begin = content[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    found = next((what for mark, what in BEGIN.items() if begin.startswith(mark)), "")
    return f"; it is {found}" if found else ""


def _may_turn(content: bytes) -> bool:
    """Whether a file may have an orientation. Asking Pillow would decode the whole of a PNG."""
    return content[:4] != b"\x89PNG" or any(word in content for word in TURNING)


def picture_of(
    content: bytes,
    path: Path,
    mode: str,
    side: int = 0,
    background: str = "white",
    white: int = 0,
) -> Image:
    """An encoded picture, upright, in the mode L or RGB; the first frame of an animated one.

    With ``side``, a JPEG may be decoded at a smaller scale, but at least that large. The error for
    an unreadable one begins with ``path``. ``background`` and ``white``: see `in_mode`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as file:
            if side:
                file.draft(mode, (side, side))
            raw = raw_mode(file)
            if white and ";16" in raw and file.mode[0] != "I":
                raise ValueError("Pillow keeps 8 of its 16 bits, so `white` does not apply")
            file.load()
            _scale_key(file, raw)
            turn, picture = TURNS.get(_turn(file)), in_mode(file, mode, background, white)
            return picture.transpose(Image.Transpose[turn]) if turn else picture
    except UnidentifiedImageError as error:
        why = f"not an image that Pillow can read{_instead(content)}"
        raise UserError(f"{path}: {why}") from error
    except _faults() as error:
        raise UserError(f"{path}: {error}") from error


def _turn(picture: Image) -> int:
    """The EXIF orientation, 1 to 8, that is still to be undone; 1 if it is missing or unreadable.

    Pillow undoes a TIFF's itself: in the size when it opens the file, in the pixels later.
    """
    with suppress(*_faults()):
        if ORIENTATION not in getattr(picture, "tag_v2", ()):
            return int(picture.getexif().get(ORIENTATION, 1))
    return 1


def _faults() -> tuple[type[Exception], ...]:
    """What Pillow raises on files that are not pictures, are cut off, or are too large."""
    from PIL import Image

    corners = LookupError, TypeError, ArithmeticError, struct.error  # from malicious files
    return OSError, SyntaxError, ValueError, *corners, Image.DecompressionBombError


def in_mode(picture: Image, mode: str, background: str = "white", white: int = 0) -> Image:
    """The picture with 8 bits of grey (L) or colour (RGB).

    ``background`` is the colour behind transparent pixels; "none" ignores transparency, and shows
    the colours that a file has there. ``white`` is the value of 16 bits of grey that becomes 255;
    0 stands for 65535.
    """
    from PIL import Image as pillow

    if picture.mode[0] == "F":
        raise ValueError("floating point pixels have no known white")
    if picture.mode[0] == "I":
        values, key = np.asarray(picture, np.float64), picture.info.get("transparency")
        scaled_down = (values / ((white or WHITE) / 255)).clip(0, 255).round()
        picture = pillow.fromarray(scaled_down.astype(np.uint8))
        if key is not None:
            picture.putalpha(pillow.fromarray((values != key) * np.uint8(255)))
    if background != NO_BACKGROUND and picture.has_transparency_data:
        ground = pillow.new("RGBA", picture.size, background)
        picture = pillow.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    if picture.mode == "P":  # Pillow warns when transparency becomes grey without its colours
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)


def raw_mode(file: Image) -> str:
    """How an opened file stores its pixels, such as RGB;16B; Pillow's mode says less."""
    args = next((tile.args for tile in getattr(file, "tile", ())), "")
    return str(args if isinstance(args, str) else next(iter(args or ()), ""))


def _scale_key(file: Image, raw: str) -> None:
    """Scale the transparent grey or colour of a PNG to the 8 bits of its pixels.

    Pillow scales pixels of 2 or 4 bits up to 8, and cuts 16 bits down to 8, but leaves the
    transparent value as it is in the file.
    """
    key = file.info.get("transparency")
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        file.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw]
    if isinstance(key, tuple) and ";16" in raw:
        file.info["transparency"] = tuple(value >> 8 for value in key)


@cache
def pool() -> ThreadPoolExecutor:
    """One thread a core, for code that releases the GIL: Pillow's decoders, torch's scaling."""
    return ThreadPoolExecutor(environment.cores())


def in_parts(make: Callable[[int], T], rows: Iterable[int]) -> list[T]:
    """``make`` of every row, in order; all threads share the work, a chunk of rows each."""
    every = list(rows)
    # eight chunks a core: slow rows are shared evenly, and a chunk is worth its overhead
    step = max(1, len(every) // (8 * environment.cores()))
    parts = [every[start : start + step] for start in range(0, len(every), step)]
    return [
        made for part in pool().map(lambda part: [make(r) for r in part], parts) for made in part
    ]


def _create(folder: Path, shape: tuple[int, ...]) -> None:
    """Make an empty store, unless this or another process has made it."""
    if folder.is_dir():
        return
    made = storage.new_folder(folder)
    try:
        np.lib.format.open_memmap(made / "pixels.npy", "w+", np.uint8, shape)
        # not sparse: writing to a page that the full disk cannot hold kills the process (SIGBUS)
        np.save(made / "there.npy", np.zeros(shape[:1], np.bool_))
        made.rename(folder)
    except OSError as error:
        if full := disk.ran_out(error, folder / "pixels.npy", int(np.prod(shape))):
            raise full from error
        if not folder.is_dir():
            raise
        # another process was first
    finally:
        shutil.rmtree(made, ignore_errors=True)
