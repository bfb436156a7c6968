"""Archives of data sets: checked, and unpacked once. Downloaded files are not trusted.

Size and SHA-256 must be those that the data set's module states. From tar and zip files, only plain
files and folders are unpacked, into a temporary folder that gets its final name once complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.text import some

Progress = Callable[..., Iterable[int]]

CHUNK = 2**24  # bytes that are hashed or copied at a time
FILES = 1_000_000  # most files in an archive, unless its data set states another number
RATIO = 100  # most unpacked bytes for each byte of an archive; a zip bomb has a thousand
BLOCK = 2**12  # bytes that even an empty file counts as: its block on disk
NAME = 2**20  # most bytes of a long name, or of another header record, before a member of a tar
SLACK = 2**26  # bytes that any archive may unpack to: small ones of text compress very well
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError,
    NotImplementedError,  # a compression that zipfile does not know, such as Explorer's Deflate64
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Where an archive lies in a larger file: from byte ``offset`` on, in one of ``total`` bytes.

    ``tag`` is the larger file's mark on the server, such as its ETag; it changes with the file.
    """

    offset: int
    total: int
    tag: str


@dataclass(frozen=True)
class Archive:
    """A file as the makers of a data set publish it, and what it unpacks to.

    ``holds`` is a path that exists once it is unpacked, ``into`` the folder it is unpacked in.
    ``bytes`` is 0 where the size is unknown. ``sha256`` may be only the beginning of one, as in the
    file names of torchvision's weights; ``md5`` stands in where nobody published a SHA-256. Without
    ``urls`` the file is fetched by hand. Without a checksum any tar file is accepted. With a
    ``span`` it is a part of the file at each address.
    """

    name: str
    holds: str
    bytes: int
    sha256: str = ""
    urls: tuple[str, ...] = ()
    md5: str = ""
    into: str = ""
    files: int = FILES
    span: Span | None = None

    def sum(self) -> str:
        """The checksum and its kind, as text."""
        return f"SHA-256 {self.sha256}" if self.sha256 else f"MD5 {self.md5}"

    def wrong(self, path: Path, progress: Progress) -> str:
        """Why the file at ``path`` is not this archive; empty if it is."""
        size = path.stat().st_size
        if self.bytes and size != self.bytes:
            return f"it has {size:,} bytes, not {self.bytes:,}"
        if not (self.sha256 or self.md5):
            return "" if tarfile.is_tarfile(path) else "not a tar file"
        found = digest(path, "sha256" if self.sha256 else "md5", progress)
        return (
            ""
            if found.startswith(self.sha256 or self.md5)
            else f"its checksum is {found}, not {self.sum()}"
        )


@dataclass(frozen=True)
class Card:
    """Facts about a public data set; ``metric`` is the one that its literature reports.

    ``signs`` are paths that exist in a folder with the unpacked set.
    """

    name: str
    home: str
    licence: str
    classes: int
    images: dict[str, int]
    metric: Literal["top-1", "mean per class"]
    archives: tuple[Archive, ...]
    by_hand: str = ""
    signs: tuple[str, ...] = ()


def card_of(module: Any) -> Card | None:
    """The card in a data set's module; None if the set is not public."""
    found = getattr(module, "CARD", None)
    assert found is None or isinstance(found, Card)
    return found


def digest(path: Path, kind: str, progress: Progress = lambda items, label: items) -> str:
    """The SHA-256 or MD5 of a file, in hexadecimal."""
    found = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        for _ in progress(range(0, path.stat().st_size, CHUNK), f"checking {path.name}"):
            found.update(file.read(CHUNK))
    return found.hexdigest()


def read_sums(path: Path) -> dict[str, str]:
    """{file name: SHA-256} from a list as `sha256sum` writes it. `UserError` names a bad line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the list of checksums cannot be read ({error})") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not match:
            raise UserError(
                f"{path}: line {number}: got {line!r}; it must be 64 hexadecimal digits, two "
                "spaces and a file name, as sha256sum writes them"
            )
        found[match[2]] = match[1].lower()
    return found


def ready(card: Card, folder: Path, root: Path) -> Path | None:
    """Where a set is unpacked: ``folder`` itself, a folder below cache/, or None if nowhere."""
    signs = card.signs or [f"{a.into}/{a.holds}".lstrip("/") for a in card.archives]
    if all((folder / sign).exists() for sign in signs):
        return folder
    place = _place(card, root)
    return place if place.is_dir() else None


def unpacked(card: Card, path: str, root: Path, progress: Progress) -> Path:
    """The folder with the content of a set's archives in ``path``; unpacks them below cache/ once.

    A relative ``path`` starts at ``root``, the workspace. Raises `UserError` if an archive is
    missing or is not the published one.
    """
    folder = located(root, path)
    if there := ready(card, folder, root):
        return there
    absent = [a.name for a in card.archives if not (folder / a.name).is_file()]
    if absent:
        raise UserError(
            f"{folder}: {', '.join(absent)} missing; `uotft data prepare {card.name}` fetches "
            "them, or says where to get them"
        )
    for archive in card.archives:
        if why := archive.wrong(folder / archive.name, progress):
            raise UserError(f"{folder / archive.name}: {why}; delete it and fetch it again")
    place = _place(card, root)
    unpack([(folder / a.name, a.into, a.files) for a in card.archives], place, progress)
    return place


def unpack(archives: Iterable[tuple[Path, str, int]], folder: Path, progress: Progress) -> None:
    """Unpack each (path, subfolder, most files) into ``folder``, which appears when complete.

    Other files, such as lists, are copied. An archive inside an archive is unpacked beside itself,
    into a folder of its name. If an archive has a name twice, the later file is kept; `notes` says
    so. Raises `UserError` for a broken or unsafe archive, and leaves nothing of it.
    """
    made = storage.new_folder(folder)
    twice: list[str] = []
    try:
        for path, into, files in archives:
            inner = made / into
            inner.mkdir(exist_ok=True)
            if not path.name.lower().endswith(SUFFIXES):
                shutil.copyfile(path, inner / path.name)
                continue
            limit = _Limit(path, files, RATIO * path.stat().st_size + SLACK)
            try:
                with path.open("rb") as file:
                    members = _extract(file, inner, "", limit, 1)
                    for _ in progress(members, f"unpacking {path.name}"):
                        pass
            except BROKEN as error:
                raise UserError(f"{path}: cannot be unpacked into {made}: {error}") from error
            twice += limit.twice
        if twice:
            line = (
                f"names that the archive has twice ({len(twice)}); the later file is kept: "
                f"{some(twice)}"
            )
            _notes(folder).write_text(line, encoding="utf-8")
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def notes(folder: Path) -> list[str]:
    """Notes on the archives that ``folder`` was unpacked from."""
    path = _notes(folder)
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _notes(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.notes.txt")


def _place(card: Card, root: Path) -> Path:
    sums = "".join(a.sha256 or a.md5 for a in card.archives)
    key = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return root / "cache" / "unpacked" / f"{card.name}-{key}"


class _Member(tarfile.TarInfo):
    """Refuses a huge name or header record, which tarfile would read into memory as a whole."""

    @classmethod
    def frombuf(cls, *given: Any) -> _Member:
        """From a header block."""
        made = super().frombuf(*given)
        if made.size > NAME and not (made.isreg() or made.isdir()):
            raise tarfile.ReadError(f"a header record of {made.size:,} bytes")
        return made


class _Limit:
    """How much one archive may still unpack to; refuses unsafe members.

    ``twice`` collects the names that the archive has more than once.
    """

    def __init__(self, path: Path, files: int, size: int) -> None:
        self.path, self.files, self.bytes, self.twice = path, files, size, list[str]()
        self.most = f"{files:,} files and {size:,} bytes (about {RATIO} times its own size)"

    def admit(self, name: str, size: int, kind: str) -> None:
        """Refuse a member that leaves the folder, is neither file nor folder, or is too large."""
        self.files, self.bytes = self.files - 1, self.bytes - max(size, BLOCK)
        why = ""
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            why = "its path leaves the folder"
        elif kind:
            why = f"it is a {kind}, and only files and folders are unpacked"
        elif self.files < 0 or self.bytes < 0:
            why = f"the archive would unpack to more than {self.most}"
        if why:
            raise UserError(
                f"{self.path}: refused because of {name!r}: {why}. Nothing was unpacked; if "
                "you trust it, unpack it yourself and set path to the folder"
            )


def _extract(file: IO[bytes], folder: Path, stem: str, limit: _Limit, deeper: int) -> Iterator[str]:
    """Write the members of a tar or zip below ``folder``; yields the name of each.

    With ``stem``, the name of an inner archive, members outside a folder of that name are put into
    one. Leaves out the files that macOS adds (._*, __MACOSX).
    """
    for name, size, kind, content in _members(file):
        limit.admit(name, size, kind)
        pieces = PurePosixPath(name).parts
        if content is None or any(p.startswith("._") or p == "__MACOSX" for p in pieces):
            continue
        beside = stem and pieces[:1] != (stem,)
        path = folder.joinpath(*([stem] if beside else []), *pieces)
        path.parent.mkdir(parents=True, exist_ok=True)
        with content() as inner:
            if deeper and path.name.lower().endswith(SUFFIXES):
                base = next(path.name[: -len(s)] for s in SUFFIXES if path.name.lower().endswith(s))
                yield from _extract(inner, path.parent, base, limit, deeper - 1)
                continue
            if path.exists():  # also where the file system takes Cat and cat for the same
                limit.twice.append(name.encode(errors="replace").decode())
            with path.open("wb") as out:
                shutil.copyfileobj(inner, out, CHUNK)
        yield name


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name: macOS writes UTF-8 without the mark that says so."""
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _members(file: IO[bytes]) -> Iterator[tuple[str, int, str, Callable[[], Any] | None]]:
    """Yields (name, bytes, kind if neither file nor folder, function that opens it if a file)."""
    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                mode = info.external_attr >> 16
                strange = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = "link or device" if strange else ""
                kind = "file with a password" if info.flag_bits & 1 else kind
                name = _zip_name(info).replace("\\", "/")  # some tools of Windows write a\\b
                content = None if name.endswith("/") else partial(archive.open, info)
                yield name, info.file_size, kind, content
        return
    with tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps them all in memory
            kind = "" if member.isreg() or member.isdir() else "link or device"
            taken = partial(tar.extractfile, member) if member.isreg() else None
            yield member.name, member.size, kind, taken
