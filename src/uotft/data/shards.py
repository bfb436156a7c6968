"""WebDataset shards: tar files in which the members of one sample share a key, KEY.jpg and KEY.cls.

The key is a member's name up to the first dot of its last part, the rest is its extension; a
sample's members are adjacent. Nothing is unpacked: reading makes an index of where in the tar the
bytes of every picture lie. So the tar files must be uncompressed.

Format: https://github.com/webdataset/webdataset (the tar format of the POSIX standard beneath).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from uotft.core.errors import UserError
from uotft.data import lists

BLOCK = 512
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Picture(NamedTuple):
    """A sample's picture in its tar: its name, where its ``size`` bytes start, and its label."""

    name: str
    offset: int
    size: int
    label: bytes


def expand(pattern: str) -> list[str]:
    """``a-{000..009}.tar`` -> ten names; any number of such braces."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    head, tail = pattern[: found.start()], expand(pattern[found.end() :])
    numbers = range(int(first), int(last) + 1)
    return [f"{head}{i:0{len(first)}}{rest}" for i in numbers for rest in tail]


def file_name(url: str) -> str:
    """The name under which the tar file of an address is kept; a `ValueError` for another one."""
    parts = urlsplit(url)
    name = PurePosixPath(unquote(parts.path)).name
    right = parts.scheme in ("http", "https") and parts.netloc and url.isascii()
    if not right or not re.fullmatch(r"\w[\w.+=@-]*\.tar", name):
        raise ValueError(f"{url!r} is not the http(s) address of a file NAME.tar")
    return name


def label_of(text: bytes, field: str, what: str) -> str:
    """The label in a member's bytes, or in a ``field`` of their JSON; ``what`` begins an error."""
    try:
        value = json.loads(text)[field] if field else text.decode().strip()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{what} has no {field or 'text'} ({error!r})") from error
    if isinstance(value, str | int) and (text_label := lists.class_name(str(value))):
        return text_label
    raise UserError(f"{what} is {value!r}; it must be a number or a name")


def ordered(labels: list[str]) -> list[int]:
    """Places of labels in the order of their classes: by number if all are numbers, or by name."""
    places = range(len(labels))
    if all(label.isdecimal() for label in labels):
        return sorted(places, key=lambda place: (int(labels[place]), labels[place]))
    return sorted(places, key=lambda place: labels[place])


def class_lines(path: Path) -> list[str]:
    """The lines of a file of class names; a name may hold characters that end lines elsewhere."""
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def named(numbers: Sequence[str], path: Path) -> tuple[str, ...]:
    """Class names from a file: the label is the line's number, from 0."""
    try:
        lines = class_lines(path)
        if unknown := [n for n in numbers if not n.isdecimal() or int(n) >= len(lines)]:
            raise ValueError(f"{unknown[0]!r}: the lines are 0 to {len(lines) - 1}")
        names = tuple(lines[int(number)] for number in numbers)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it lacks a line for a label ({error})") from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: two lines are {twice!r}; every class needs its own name")
    return names


def pictures(
    path: Path, suffixes: Collection[str], label: str, left_out: Counter[str]
) -> Iterator[Picture]:
    """The picture of every sample of a shard that has one, with the content of KEY.``label``.

    A picture is a member whose last ending is in ``suffixes``. Tools that cut names at the last dot
    write KEY.5s.jpg and KEY.5s.cls: each such pair is a picture and its label. ``left_out`` counts
    what is not read. Raises `UserError` for a damaged tar and for a picture without a label.
    """
    with _opened(path) as tar:
        for key, group in groupby(_members(tar, left_out), lambda m: _key(m.name)[0]):
            found = list(group)
            sample = {_key(m.name)[1]: m for m in found}
            if len(sample) < len(found):
                raise UserError(f"{path}: members of the sample {key} have the same name")
            chosen, others = _pairs(sample, suffixes, label)
            if not chosen and not others:
                left_out["samples without a picture"] += 1
            elif not chosen:
                raise UserError(
                    f"{path}: the sample {key} needs one picture and a member {key}.{label}, but "
                    f"has {', '.join(sorted(sample))} (a sample's members must be adjacent; "
                    "`label` in the data set's section says which one holds the class)"
                )
            else:
                left_out["further pictures of a sample, without a label of their own"] += others
            for extension, label_extension in chosen.items():
                text, member = tar.extractfile(sample[label_extension]), sample[extension]
                assert text is not None  # it is a regular file
                yield Picture(member.name, member.offset_data, member.size, text.read())
        _must_end(path, tar)


def _members(tar: tarfile.TarFile, left_out: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """The regular files that have a key and an extension."""
    for member in tar:
        if not member.isreg() or member.issparse():
            left_out["links and special files"] += not member.isdir()
        elif _key(member.name)[1]:
            yield member
        else:
            left_out["hidden files and files without an ending"] += 1


def _pairs(
    sample: Collection[str], suffixes: Collection[str], label: str
) -> tuple[dict[str, str], int]:
    """({extension of a picture: that of its label}, pictures that are left out).

    jpg goes with cls, 5s.jpg with 5s.cls, or with cls if it is the only picture. A mask.png beside
    a jpg is left out. Without a pair for two jpg, or for all, there is no certain reading: {}.
    """
    endings = {e: e.rpartition(".")[2] for e in sample}
    found = [e for e, ending in endings.items() if f".{ending}" in suffixes]
    own = {e: e.removesuffix(endings[e]) + label for e in found}
    pairs = {e: other for e, other in own.items() if other in sample}
    if len(set(pairs.values())) < len(pairs):
        return {}, len(found)  # a jpg and a png with one label
    if len(found) == 1 and label in sample:
        pairs = pairs or {found[0]: label}
    plain = any("." not in e for e in pairs)
    return (pairs if plain or len(pairs) == len(found) else {}), len(found) - len(pairs)


def write(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (name, content) in this order; the same members give the same bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            about = tarfile.TarInfo(
                name
            )  # without time and owner, so that equal content gives equal bytes
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


def _key(name: str) -> tuple[str, str]:
    """A member's key, and its extension in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower() if stem else ""


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start in PACKED:
            raise UserError(
                f"{path}: compressed ({PACKED[start]}); pictures are read inside the tar file, so "
                "remove the compression first (gunzip and the like), but do not unpack the tar"
            )
        with tarfile.open(path, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a tar file, or damaged or cut off ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _must_end(path: Path, tar: tarfile.TarFile) -> None:
    """Refuse a tar without its end mark, since `tarfile` takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(tar.offset)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        raise UserError(f"{path}: damaged or cut off at byte {tar.offset}: fetch it again")
