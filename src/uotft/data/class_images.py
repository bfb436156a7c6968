"""ImageNet's training images by class, as they lie on a disk: a *place*, in one of three forms.

    PATH/n01440764/*.JPEG                a folder a class (also in PATH/train/, and Kaggle's layout)
    PATH/ILSVRC2012_img_train.tar        the published archive, a tar of 1,000 class tars
    PATH/n01440764.tar                   class tars; into such a folder they are also fetched

Tars are read in place: nothing is unpacked or copied.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.text import some
from uotft.data import walk
from uotft.data.files import is_image

TRAIN_TAR = "ILSVRC2012_img_train.tar"
WNID = re.compile(r"n\d{8}")
#: Where in a folder the training images may be; the last one is Kaggle's.
INSIDE = ("", "train", "ILSVRC/Data/CLS-LOC/train")
FORMS = (
    f"expected a folder with a folder for each WordNet id (n01440764/), also in PATH/train; or "
    f"{TRAIN_TAR}; or a folder of class tars (n01440764.tar); or an empty folder, to fetch into"
)


def listed(path: Path) -> list[str]:
    """The WordNet ids of a list of classes, {"classes": [ids]} in JSON, sorted.

    Raises `UserError` for a missing file, and for one that lists something else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the list of ImageNet's classes that are wanted")
    held = storage.read_json(path)
    found = held.get("classes") if isinstance(held, dict) else None
    if not isinstance(found, list):
        raise UserError(f'{path}: write {{"classes": ["n01440764", …]}}')
    if wrong := [each for each in found if not WNID.fullmatch(str(each))]:
        raise UserError(f"{path}: classes: got {wrong[0]!r}; it must be a WordNet id: n01440764")
    return sorted({*found})


class Rows(NamedTuple):
    """Columns (n,) of some classes' images, class by class, by name.

    ``labels`` are the classes' places in the list that was asked for. ``inside`` has archives,
    offsets and bytes, as `files.image_set` takes them; it is empty for plain files.
    """

    root: Path
    paths: list[bytes]
    labels: NDArray[np.int64]
    inside: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Place:
    """Where images lie: ``found`` is {WordNet id: where}, ``root`` what their paths start at.

    Where is a folder or a tar below ``root``, or (offset, bytes) of a class tar in ``archive``.
    """

    path: Path
    form: Literal["folders", "tars", "tar"]
    root: Path
    found: dict[str, str | tuple[int, int]]

    def classes(self) -> list[str]:
        """The WordNet ids that are there, sorted."""
        return sorted(self.found)

    def missing(self, wnids: Iterable[str]) -> list[str]:
        """Those of some classes that are not there, sorted."""
        return sorted({*wnids} - self.found.keys())

    def can_grow(self) -> bool:
        """Whether classes can be fetched into it: it is a folder of class tars, or an empty one."""
        return self.form == "tars"

    def rows(self, wnids: Iterable[str]) -> Rows:
        """The images of some classes, in their order.

        Raises `UserError` for a class that is missing or has no image, and for a damaged tar.
        """
        wanted = list(wnids)
        if absent := self.missing(wanted):
            raise UserError(self.lacks(absent))
        entries = [[*self._entries(wnid)] for wnid in wanted]
        if empty := [wnid for wnid, found in zip(wanted, entries, strict=True) if not found]:
            raise UserError(f"{self.path}: no image of {some(empty)}")
        flat = [entry for found in entries for entry in found]
        labels = np.repeat(np.arange(len(wanted)), [len(found) for found in entries])
        paths = [entry[0] for entry in flat]
        if self.form == "folders" or not flat:
            return Rows(self.root, paths, labels, {})
        inside = {
            "archives": np.array([entry[1] for entry in flat], np.bytes_),
            "offsets": np.array([entry[2] for entry in flat], np.int64),
            "bytes": np.array([entry[3] for entry in flat], np.int64),
        }
        return Rows(self.root, paths, labels, inside)

    def lacks(self, absent: list[str]) -> str:
        """What to say of classes that are missing."""
        what = f"{self.path}: {len(absent)} of the classes wanted are missing: {some(absent)}"
        if self.can_grow():
            return f"{what}; `uotft data prepare` with the data set's name fetches them"
        return (
            f"{what}; add them to your copy, or name an empty folder (images: in the data set's "
            "section, or --imagenet) to fetch them into"
        )

    def _entries(self, wnid: str) -> Iterator[tuple[bytes, bytes, int, int]]:
        """(path, archive, offset, bytes) of each image of a class, by path."""
        where = self.found[wnid]
        if isinstance(where, tuple):
            tar, start, size = self.root / TRAIN_TAR, *where
            archive = os.fsencode(TRAIN_TAR)
        else:
            tar, start, size = self.root / where, 0, -1
            archive = os.fsencode(where)
        if self.form == "folders":
            for path in walk.below(tar):
                yield os.path.join(archive, path), b"", 0, 0
            return
        for name, offset, length in sorted(pictures(tar, start, size)):
            yield os.fsencode(name), archive, offset, length


def place(path: Path) -> Place:
    """The place at ``path``; an empty or missing folder is a place of class tars with none.

    Raises `UserError` if it is none of the three forms.
    """
    if path.is_file() or path.name.endswith(".tar"):
        if path.name != TRAIN_TAR:
            raise UserError(f"{path}: not a place of ImageNet's training images: {FORMS}")
        return Place(path, "tar", path.parent, _class_tars(path))
    if not path.exists():
        return Place(path, "tars", path, {})
    for inside in INSIDE:
        if found := _in_folder(path, path / inside):
            return found
    others = [name for name in os.listdir(path) if not name.startswith(".")]
    if others:
        raise UserError(f"{path}: got {some(sorted(others))}; {FORMS}")
    return Place(path, "tars", path, {})


def _in_folder(path: Path, folder: Path) -> Place | None:
    """The place in one folder; None if it has none."""
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        kinds = {entry.name: entry.is_dir() for entry in entries}
    if folders := {name: name for name, is_folder in kinds.items()
                   if is_folder and WNID.fullmatch(name)}:  # fmt: skip
        return Place(path, "folders", folder, dict(folders))
    if TRAIN_TAR in kinds:
        return Place(path, "tar", folder, _class_tars(folder / TRAIN_TAR))
    tars = {name.removesuffix(".tar"): name for name, is_folder in kinds.items()
            if not is_folder and name.endswith(".tar") and WNID.fullmatch(name[:-4])}  # fmt: skip
    return Place(path, "tars", folder, dict(tars)) if tars else None


def _class_tars(path: Path) -> dict[str, str | tuple[int, int]]:
    """{WordNet id: (offset, bytes)} of the class tars in the published archive."""
    return {
        name.removesuffix(".tar"): (offset, size)
        for name, offset, size in _members(path, 0, -1)
        if WNID.fullmatch(name.removesuffix(".tar"))
    }


def pictures(path: Path, start: int = 0, size: int = -1) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of each picture of a class tar, which may lie inside another tar.

    Offsets are those in the file ``path``. Raises `UserError` for a damaged tar.
    """
    for name, offset, length in _members(path, start, size):
        if is_image(name) and not name.rpartition("/")[2].startswith("."):
            yield name, offset, length


def _members(path: Path, start: int, size: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of each file of the tar that begins at byte ``start`` of a file."""
    try:
        with path.open("rb") as file:
            end = start + size if size >= 0 else os.fstat(file.fileno()).st_size
            file.seek(start)
            # offsets are absolute, since tarfile starts at the file's position
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"{member.name} goes beyond the end")
                    if member.isreg():
                        yield member.name, member.offset_data, member.size
                file.seek(tar.offset)
                if tar.offset >= end or file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    # tarfile takes a damaged header for the end
                    raise tarfile.ReadError(f"cut off or damaged at byte {tar.offset:,}")
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole tar file ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
