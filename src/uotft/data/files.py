"""A folder of image files -> the columns of `records.Files`, and the cut into parts.

All data sets of image files share this: which files are images, their bytes, hashes and sizes, the
official lists, and a seeded stratified cut where no part is official.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from uotft.core.errors import UserError
from uotft.core.records import Files, ImageSet, Settings
from uotft.core.text import indented
from uotft.data.pixel_cache import NO_BACKGROUND, in_parts, is_several, upright_size

T = TypeVar("T")

#: Formats that Pillow lists but cannot read as pictures by itself: pages, which need the outside
#: program Ghostscript, and films.
NO_PICTURES = {"EPS", "PDF", "MPEG"}
CHUNK = 1024
TOLERATED = 0.01  # share of the files that `unreadable: skip` may leave out


class View(Settings):
    """How image files are stored and shown to the network; settings of every set of files."""

    stored: int = Field(256, ge=8, description="pixels a side at which each picture is kept")
    size: int = Field(224, ge=8, description="pixels a side that the network sees")
    share: float = Field(
        0.875,
        gt=0,
        le=1,
        description="side of the centred square that tests see, as a share of the shorter side",
    )
    unreadable: Literal["error", "skip"] = Field(
        "error",
        description="what to do with unreadable files: stop with an error, or skip and count them",
    )
    background: str = Field(
        "white", description="colour behind transparent pixels: black, '#808080', ...; none: as is"
    )
    white: int = Field(
        0, ge=0, lt=2**16, description="value that is white in 16-bit grey files; 0 means 65535"
    )

    @field_validator("background")
    @classmethod
    def _colour(cls, name: str) -> str:
        from PIL import ImageColor

        if name != NO_BACKGROUND and len(ImageColor.getrgb(name)) > 3:
            raise ValueError("the background itself cannot be transparent")
        return name


class PublicSettings(View):
    """Settings that all public data sets share; each has its own ``path``."""

    path: str = Field(description="the folder of its archives, or of their unpacked content")
    val: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the training part to cut for validation, if there is no official one",
    )
    seed: int = Field(0, ge=0, description="seed of that cut")


@cache
def suffixes() -> frozenset[str]:
    """Endings of the files that the installed Pillow can read as pictures, in lower case."""
    from PIL import Image, ImageFile

    def reads(form: str) -> bool:
        opens = Image.OPEN.get(form, (None,))[0]
        # a stub only recognises its format: another library would have to read it
        is_stub = isinstance(opens, type) and issubclass(opens, ImageFile.StubImageFile)
        return opens is not None and not is_stub and form not in NO_PICTURES

    known = Image.registered_extensions()
    # several JPEGs in one file, which Pillow opens as a JPEG
    return frozenset({".mpo", *(ending for ending, form in known.items() if reads(form))})


def is_image(name: str) -> bool:
    """Whether a file's name has the ending of a picture, in any case."""
    return os.path.splitext(name)[1].lower() in suffixes()


def __getattr__(name: str) -> Any:
    """``SUFFIXES``, made on first use, since Pillow takes a moment to import."""
    if name == "SUFFIXES":
        return suffixes()
    raise AttributeError(name)


def image_set(
    root: Path,
    paths: Sequence[bytes] | NDArray[np.bytes_],
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    names: tuple[str, ...],
    view: View,
    progress: Callable[..., Iterable[int]],
    **inside: NDArray[Any],
) -> ImageSet:
    """The data set of some files below ``root``; reads each once for its hash and its size.

    ``paths``, ``labels`` and ``splits`` are (n,). ``inside`` holds the columns archives, offsets
    and bytes (n,) of files inside tar files.
    """
    n = len(paths)
    columns: dict[str, Any] = {"bytes": np.empty(n, np.int64), **inside}
    files = Files(
        root=str(root.absolute()),
        paths=np.asarray(paths, np.bytes_),
        sha256=np.empty((n, 32), np.uint8),
        sizes=np.empty((n, 2), np.int32),
        **columns,
        **view.model_dump(include=set(View.model_fields)),
    )
    several: list[int] = []
    for start in progress(range(0, n, CHUNK), f"reading {root.name}"):
        part = slice(start, min(start + CHUNK, n))
        found = in_parts(partial(_facts, files), range(n)[part])
        size, digest, more, *sides = zip(*found, strict=True)
        several += [start + i for i, is_more in enumerate(more) if is_more]
        files.bytes[part] = size
        files.sha256[part] = np.frombuffer(b"".join(digest), np.uint8).reshape(-1, 32)
        files.sizes[part] = np.array(sides).T
    notes: tuple[str, ...] = ()
    if several:
        example = printable(bytes(files.paths[several[0]]))
        notes = (
            f"files that hold several pictures, such as frames or pages: {len(several):,} of "
            f"{n:,} (such as {example}); only the first of each is read",
        )
    return ImageSet(np.empty(0, np.uint8), labels, splits, names, files, notes)


def listed(
    root: Path,
    rows: list[tuple[str, Any, str]],
    names: dict[Any, str],
    settings: PublicSettings,
    progress: Callable[..., Iterable[int]],
) -> ImageSet:
    """The data set of an official list of (path below ``root``, class, part).

    ``names`` maps classes, in the order of their labels, to names. Without a part val, a share of
    every class is cut from train. Raises `UserError` for a class that is not in ``names``.
    """
    number = {key: label for label, key in enumerate(names)}
    unknown = next((row for row in rows if row[1] not in number), None)
    if unknown or not rows:
        what = f"{unknown[0]} is of an unknown class, {unknown[1]!r}" if unknown else "no image"
        raise UserError(f"{root}: {what}; the lists and the images of the set do not match")
    paths, keys, parts = zip(*rows, strict=True)
    labels, splits = np.array([number[key] for key in keys]), np.array(parts, "U5")
    if "val" not in parts:
        cut(labels, splits, "val", settings.val, settings.seed)
    content = [os.fsencode(path) for path in paths]
    return image_set(root, content, labels, splits, tuple(names.values()), settings, progress)


def lines(path: Path, parse: Callable[[str], T]) -> list[T]:
    """``parse`` of every line of a list, which must have some. Raises `UserError`."""

    def parsed(line: bytes) -> T:
        return parse(text(line.decode("utf-8-sig")).strip())

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read: {error.strerror}") from error
    numbered = enumerate(content.split(b"\n"), start=1)
    found = [(number, (line,)) for number, line in numbered if line.strip()]
    if not found:
        raise UserError(f"{path}: the list is empty")
    return _each(path, "line", found, parsed)


def mat(path: Path, names: tuple[str, ...], parse: Callable[..., T]) -> list[T]:
    """``parse`` of every entry of some variables of a MATLAB file; executes nothing from it.

    Raises `UserError` for an unreadable file and for an entry that ``parse`` refuses.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(path, squeeze_me=True, variable_names=names)
        columns = [np.atleast_1d(found[name]) for name in names]
    except Exception as error:  # noqa: BLE001  a broken file raises nearly anything
        raise UserError(f"{path}: {', '.join(names)} cannot be read ({error!r})") from error
    if len({len(column) for column in columns}) > 1:
        sizes = ", ".join(f"{len(c)} of {n}" for n, c in zip(names, columns, strict=True))
        raise UserError(f"{path}: got {sizes}; all must have as many entries")
    return _each(path, "entry", enumerate(zip(*columns, strict=True), start=1), parse)


def text(value: Any) -> str:
    """The value itself. Raises `ValueError` unless it is text that can be a file name."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("it must be text")
    return value


def _each(
    path: Path, kind: str, entries: Iterable[tuple[int, Any]], parse: Callable[..., T]
) -> list[T]:
    """``parse`` of every (number, arguments). The error names the first entry that fails.

    ``kind`` is line or entry.
    """
    made = []
    for number, entry in entries:
        try:
            made.append(parse(*entry))
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise UserError(
                f"{path}: {kind} {number} is not in the format of the set's makers: got "
                f"{', '.join(map(repr, entry))[:200]} ({error!r})"
            ) from error
    return made


def differences(files: Files, progress: Callable[..., Iterable[int]]) -> list[str]:
    """One line for each file that is missing, changed or unreadable since the columns were made."""

    def one(row: int) -> str:
        path = files.path(row)
        try:
            content = files.content(row)
        except FileNotFoundError:
            return f"{printable(path)}: missing"
        except OSError as error:
            return f"{printable(path)}: unreadable ({error.strerror})"
        same = hashlib.sha256(content).digest() == files.sha256[row].tobytes()
        return "" if same else f"{printable(path)}: changed"

    found: list[str] = []
    for start in progress(range(0, len(files.paths), CHUNK), "hashing"):
        found += in_parts(one, range(start, min(start + CHUNK, len(files.paths))))
    return [line for line in found if line]


def printable(path: Path | bytes) -> str:
    """A path as text that every terminal can show."""
    return os.fsencode(path).decode(errors="replace")


def without(images: ImageSet, bad: dict[int, str]) -> ImageSet:
    """The set with the split of unreadable rows {row: why} changed to "unreadable".

    Raises `UserError` if the settings do not allow it, if more than TOLERATED of all files are
    unreadable, and if a class is left without a training image.
    """
    assert images.files is not None
    if bad and (images.files.unreadable == "error" or len(bad) > TOLERATED * len(images.labels)):
        raise UserError(
            f"{len(bad)} of {len(images.labels)} image files cannot be read; unreadable: skip in "
            f"the data set's section leaves out up to {TOLERATED:.0%} of them:"
            f"{indented(bad.values())}"
        )
    splits = images.splits.astype("U10")
    splits[list(bad)] = "unreadable"
    trained = np.bincount(images.labels[splits == "train"], minlength=len(images.names))
    if not trained.all():
        name = images.names[int(trained.argmin())]
        raise UserError(f"{images.files.root}: class {name!r} has no training image")
    return replace(images, splits=splits)


def cut(
    labels: NDArray[np.int64], splits: NDArray[np.str_], part: str, share: float, seed: int
) -> None:
    """Move ``share`` of every class's training images to ``part``, in place in ``splits``."""
    trained = np.flatnonzero(splits == "train")
    splits[trained[hold_out(labels[trained], share, seed)[1]]] = part


def hold_out(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows kept, rows held out): ``share`` of every class, with at least one image on each side.

    The image of a class that has only one is kept.
    """
    rng, held = np.random.default_rng(seed), []
    for label in np.unique(labels).tolist():
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.append(rows[:count])
    out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out


def _facts(files: Files, row: int) -> tuple[int, bytes, bool, int, int]:
    """(bytes, SHA-256, whether it holds several pictures, height, width) of a file.

    Decoding reports the unreadable ones later.
    """
    content = b""
    with suppress(OSError):
        content = files.content(row)
    digest = hashlib.sha256(content).digest()
    return len(content), digest, is_several(content), *upright_size(content)
