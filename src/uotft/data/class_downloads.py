"""Fetches single classes of ImageNet-1k into a folder of class tars.

First from the published archive, a tar of 1,000 class tars in a row: small requests read its
headers only, which gives an index, and then only the wanted class tars are read, by their range.
Where it cannot be had so, from archives by class id, which hold ImageNet-21k's images of a class.
Each class is checked before it gets its name. Nothing is fetched before the user has accepted
ImageNet's terms.

    uotft data accept imagenet
"""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from uotft.core import disk, locks, storage, user_settings
from uotft.core.disk import gib
from uotft.core.errors import UserError
from uotft.core.records import silently
from uotft.core.text import indented, plural, some
from uotft.data import class_images, downloads, wordnet
from uotft.data.archives import Archive, Progress, Span
from uotft.data.pixel_cache import in_parts
from uotft.data.ranges import Ranges

SITE = "https://image-net.org/data/"
TRAIN_URL = f"{SITE}ILSVRC/2012/{class_images.TRAIN_TAR}"
TRAIN_BYTES = 147_897_477_120
#: Archives by class id: those of ImageNet-21k, with other images of the class, too.
CLASS_URL = f"{SITE}winter21_whole/{{}}.tar"
IMAGES = (732, 1300)  # images of a class in ILSVRC2012's training part
NAME = "imagenet"  # in the list of accepted terms
TERMS = "https://image-net.org/download.php"
BLOCK = tarfile.BLOCKSIZE
SAVED_EVERY = 50  # entries of the index
TOLERATED = 0.01  # share of unreadable pictures in an archive of ImageNet-21k

logger = logging.getLogger(__name__)


def estimate(n_classes: int) -> int:
    """The bytes that some classes take, by the mean of the published archive."""
    return round(n_classes * TRAIN_BYTES / len(wordnet.imagenet()))


def check_accepted() -> None:
    """Raise `UserError` until the user has accepted ImageNet's terms; it says what else to do."""
    if NAME in user_settings.load().accepted:
        return
    raise UserError(
        f"ImageNet's images may be fetched only by those who have agreed to its terms of access "
        f"(non-commercial research and education): {TERMS}\n"
        f"agree to them there, then give `uotft data accept {NAME}` once and the same command again"
        "\nor use a copy: --imagenet PATH, a folder of WordNet ids, "
        f"{class_images.TRAIN_TAR} or class tars"
        "\nor do without ImageNet: --strategy none (plain fine-tuning), or --source FOLDER of your "
        "own images"
    )


def accept(name: str) -> list[str]:
    """Note in the user's settings that the terms are accepted; returns what they say.

    Raises `UserError` for the name of a set without such terms.
    """
    if name != NAME:
        raise UserError(f"got {name!r}; only {NAME} has terms to accept")
    held = user_settings.load().accepted
    user_settings.remember(accepted=[*dict.fromkeys([*held, NAME])])
    return [
        f"ImageNet's terms of access: {TERMS}",
        "in short: its images may be used for non-commercial research and education only, and the "
        "one who uses them answers for it; what holds is the text there, which you must have "
        "agreed to there",
        f"noted in {user_settings.path()}",
    ]


def fetch(folder: Path, wnids: list[str], progress: Progress) -> Iterator[str]:
    """Fetch the missing ones of some classes into a folder of class tars; yields a line per step.

    Resumes what an earlier call left. Raises `UserError` if ``folder`` holds a copy in another
    form, if the terms are not accepted, and for a class that cannot be had or is damaged.
    """
    there = class_images.place(folder)
    absent = there.missing(wnids)
    if not absent:
        return
    if not there.can_grow():
        raise UserError(there.lacks(absent))
    if unknown := [wnid for wnid in absent if wnid not in wordnet.imagenet()]:
        raise UserError(f"{some(unknown)}: not among the 1,000 classes of ImageNet-1k")
    check_accepted()
    folder = there.root
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with locks.exclusive(lock, f"{folder}: another process is fetching classes"):
        absent = class_images.place(folder).missing(absent)  # that process may have brought some
        try:
            remote = Ranges(TRAIN_URL)
        except (OSError, HTTPException) as error:
            why = f"{downloads.redirected(TRAIN_URL)}: {error or type(error).__name__}"
            if _passes(error):
                raise UserError(
                    f"{why}\ngive the same command again; or {downloads.elsewhere(str(folder))}; "
                    "or name a copy of ImageNet with --imagenet PATH"
                ) from error
            yield from _by_class(folder, absent, why, progress)
            return
        with remote:
            yield from _from_the_tar(folder, absent, remote, progress)


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed later: no network, no answer, a server in trouble.

    Then classes are not taken from elsewhere, since other archives hold other images.
    """
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code == 429
    return not isinstance(error, downloads.Unfit | FileNotFoundError)


def _from_the_tar(
    folder: Path, wnids: list[str], remote: Ranges, progress: Progress
) -> Iterator[str]:
    """Fetch classes from the published archive."""
    name = class_images.TRAIN_TAR
    if remote.span.total != TRAIN_BYTES:
        raise UserError(
            f"{remote.url}: it has {remote.span.total:,} bytes, not {TRAIN_BYTES:,}: it is not the "
            "published archive; name another mirror, or a copy with --imagenet PATH"
        )
    index = Index(folder / f".{name}.index.json", remote)
    before = index.requests
    try:
        index.find(wnids, progress)
    except OSError as error:
        raise UserError(
            f"{remote.url}: the index of its classes could not be read ({error}); what came is "
            "kept: give the same command again"
        ) from error
    if asked := index.requests - before:
        yield f"{name}: found {plural(len(wnids), 'class')} by {plural(asked, 'request')}"
    total = sum(index.members[wnid][1] for wnid in wnids)
    disk.need({"to download": total}, folder, f"make room, or name another folder than {folder}")
    label = f"downloading {plural(len(wnids), 'class')} ({gib(total)})"
    for number in progress(range(len(wnids)), label):
        wnid = wnids[number]
        offset, size = index.members[wnid]
        span = Span(offset, remote.span.total, remote.span.tag)
        downloads.fetch(ClassTar(f"{wnid}.tar", "", size, urls=(TRAIN_URL,), span=span),
                        folder, silently)  # fmt: skip
    yield f"{folder}: {plural(len(wnids), 'class')} from {remote.url}, {gib(total)}"


def _by_class(folder: Path, wnids: list[str], why: str, progress: Progress) -> Iterator[str]:
    """Fetch classes from their own archives; ``why`` tells what is wrong with the published one."""
    yield (
        f"{why}: so the classes come from {CLASS_URL.format('WNID')}; these hold ImageNet-21k's "
        "images of a class, which are more than the published ones or others"
    )
    apart, total = folder / ".winter21_whole", 0  # .part files of another archive
    for number in progress(range(len(wnids)), f"downloading {plural(len(wnids), 'class')}"):
        wnid = wnids[number]
        archive = WholeClassTar(f"{wnid}.tar", "", 0, urls=(CLASS_URL.format(wnid),))
        try:
            archive = replace(archive, bytes=downloads.sized(archive, folder).bytes)
            made = downloads.fetch(archive, apart, silently)
        except UserError as error:
            raise UserError(f"{why}\n{error}") from error
        count, bad = archive.seen[-1]
        made.replace(folder / made.name)
        total += archive.bytes
        if bad or not IMAGES[0] <= count <= IMAGES[1]:
            yield (
                f"{wnid}: {count:,} images (ImageNet-1k has {IMAGES[0]:,} to {IMAGES[1]:,} of a "
                f"class), {len(bad)} of them unreadable"
                + (": set unreadable: skip in the data set's section" if bad else "")
            )
    apart.rmdir()
    yield f"{folder}: {plural(len(wnids), 'class')}, {gib(total)}"


@dataclass(frozen=True)
class ClassTar(Archive):
    """The tar of one class: right if it is whole, has as many images as known, and all decode.

    ``seen`` gets what `wrong` found: the number of images, and a line for each unreadable one.
    """

    seen: list[tuple[int, list[str]]] = field(default_factory=list, compare=False)

    def wrong(self, path: Path, progress: Progress) -> str:
        """Why the file at ``path`` is not that."""
        size = path.stat().st_size
        if size != self.bytes:
            return f"it has {size:,} bytes, not {self.bytes:,}"
        try:
            count, bad = _look(path, self.name.removesuffix(".tar"))
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        self.seen.append((count, bad))
        return self.judged(count, bad)

    def judged(self, count: int, bad: list[str]) -> str:
        """Why this number of images, with some unreadable ones, is wrong."""
        if bad:
            return f"{len(bad)} of {count:,} images cannot be read:{indented(bad)}"
        if not IMAGES[0] <= count <= IMAGES[1]:
            return f"it has {count:,} images; a class has {IMAGES[0]:,} to {IMAGES[1]:,}"
        return ""


class WholeClassTar(ClassTar):
    """An archive of ImageNet-21k: of any number of images, of which few may be unreadable."""

    def judged(self, count: int, bad: list[str]) -> str:
        """As above."""
        if not count or len(bad) > TOLERATED * count:
            return f"{len(bad)} of {count:,} images cannot be read:{indented(bad)}"
        return ""


def _look(path: Path, wnid: str) -> tuple[int, list[str]]:
    """(number of pictures, a line for each unreadable one) of a class tar.

    Raises `UserError` for a damaged tar and for a picture of another class.
    """
    found = [*class_images.pictures(path)]
    named = (name for name, _, _ in found if not name.rpartition("/")[2].startswith(f"{wnid}_"))
    if (other := next(named, None)) is not None:
        raise UserError(f"{path}: {other} is no image of {wnid}")
    with path.open("rb") as file:

        def one(row: int) -> str:
            name, offset, size = found[row]
            why = _unreadable(os.pread(file.fileno(), size, offset))
            return f"{name}: {why}" if why else ""

        lines = in_parts(one, range(len(found)))
    return len(found), [line for line in lines if line]


def _unreadable(content: bytes) -> str:
    """Why a picture does not decode; "" if it does. A JPEG is decoded at an eighth of its size."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.draft(picture.mode, (1, 1))
            picture.load()
    except Exception as error:  # noqa: BLE001  a damaged picture raises nearly anything
        return str(error) or type(error).__name__
    return ""


class Index:
    """Where each class lies in the published archive, as far as it has been read.

    ``members`` is {WordNet id: (offset, bytes)}. The file keeps them with the archive's size and
    mark; it grows only as far as a class needs. Raises `UserError` if the archive has changed.
    """

    def __init__(self, path: Path, remote: Ranges) -> None:
        self.path, self.remote, self.requests = path, remote, 0
        self.members: dict[str, tuple[int, int]] = {}
        self.next, self.is_whole = 0, False
        held = self._held()
        if held is None:
            for part in path.parent.glob(".n*.tar.part"):  # of an archive that nobody remembers
                part.unlink()
            return
        span = remote.span
        same_place = held["url"] == remote.url
        if held["total"] != span.total or (same_place and held["tag"] != span.tag):
            raise UserError(
                f"{remote.url} has changed since {path} was made: it has {span.total:,} bytes and "
                f"the mark {span.tag!r}, not {held['total']:,} and {held['tag']!r}; classes that "
                f"are in {path.parent} stay; delete {path} to read the new one"
            )
        self.members = {wnid: (offset, size) for wnid, (offset, size) in held["members"].items()}
        self.next, self.is_whole = held["next"], held["is_whole"]

    def find(self, wnids: list[str], progress: Progress) -> None:
        """Extend the index until it has some classes. Raises `UserError` if one is missing."""
        wanted = {*wnids} - self.members.keys()
        if not wanted:
            return
        try:
            for _ in progress(range(len(self.members), len(wordnet.imagenet())), "finding classes"):
                if not wanted or self.is_whole:
                    break
                wanted.discard(self._step())
        finally:
            if self.members:
                self._save()
        if wanted:
            raise UserError(
                f"{self.remote.url}: it holds no {some(sorted(wanted))}, but "
                f"{plural(len(self.members), 'class')} of others; name a copy with --imagenet PATH"
            )

    def _step(self) -> str:
        """Read the next member's header; returns its class."""
        header = self.remote.read(self.next, BLOCK)
        self.requests += 1
        if not header.strip(b"\0"):  # the end mark
            self.is_whole = True
            return ""
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except tarfile.HeaderError as error:
            raise UserError(
                f"{self.remote.url}: no tar of class tars: its bytes at {self.next:,} are no "
                f"header ({error})"
            ) from error
        wnid = member.name.removesuffix(".tar")
        if not member.isreg() or not re.fullmatch(r"n\d{8}", wnid):
            raise UserError(f"{self.remote.url}: {member.name!r} in it is no class tar")
        self.members[wnid] = (self.next + BLOCK, member.size)
        self.next += BLOCK + -(-member.size // BLOCK) * BLOCK
        if not len(self.members) % SAVED_EVERY:
            self._save()
        return wnid

    def _held(self) -> dict[str, Any] | None:
        """The content of the file; None if there is none, or a damaged one."""
        try:
            return storage.read_sealed(self.path)
        except UserError:
            return None

    def _save(self) -> None:
        span = self.remote.span
        facts = {
            "url": self.remote.url, "total": span.total, "tag": span.tag, "next": self.next,
            "is_whole": self.is_whole, "members": self.members,
        }  # fmt: skip
        storage.write_sealed(self.path, facts)
