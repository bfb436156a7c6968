"""WebDataset shards: tar files in which the members of one sample share a key, KEY.jpg and KEY.cls.

The key is a member's name up to the first dot of its last part, the rest is its extension; a
sample's members stand together. Nothing is unpacked: reading makes an index of where in the tar the
bytes of every picture lie. So the tar files must be uncompressed.

Format: https://github.com/webdataset/webdataset (the tar format of the POSIX standard beneath).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from uotft.core.errors import UserError

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


def pictures(path: Path, suffixes: Collection[str], label: str) -> Iterator[Picture]:
    """The picture of every sample of a shard that has one, with the content of KEY.``label``."""
    with _opened(path) as tar:
        members = (m for m in tar if m.isreg() and not m.issparse() and _key(m.name)[1])
        for key, group in groupby(members, lambda m: _key(m.name)[0]):
            sample = {_key(m.name)[1]: m for m in group}
            found = [m for extension, m in sample.items() if f".{extension}" in suffixes]
            if not found:
                continue
            if len(found) > 1 or label not in sample:
                raise UserError(
                    f"{path}: one picture and a member {key}.{label} are needed, the sample has "
                    f"{', '.join(sorted(sample))} (a sample's members stand together; `label` in "
                    "the data set's section says which one holds the class)"
                )
            text = tar.extractfile(sample[label])
            assert text is not None  # it is a regular file
            yield Picture(found[0].name, found[0].offset_data, found[0].size, text.read())
        _must_end(path, tar)


def write(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (name, content) in this order; the same members give the same bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)  # no time, no owner
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
                f"{path}: compressed ({PACKED[start]}); pictures are read at their place in the "
                "tar, so unpack this layer first (gunzip and the like), not the tar"
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
