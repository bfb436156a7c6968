"""The command data prepare: fetch the archives of a data set to where its section says, checked.

The makers of shards often publish no checksums. SHA256SUMS in the folder then keeps those of the
first download, in the format of `sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from uotft.core import config, disk, locks, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Progress
from uotft.data import archives, downloads
from uotft.data.archives import Archive, Card
from uotft.data.pixel_cache import WHOLE
from uotft.pipeline.workspace import Workspace

SUMS = "SHA256SUMS"
REQUESTS = 8  # requests for the size of a file at a time


def fetch(ws: Workspace, name: str, given: Path | None, progress: Progress) -> Iterator[str]:
    """Fetch a set's archives to where its section says, and check them; yields a line a step.

    They come from the folder ``given``, if they are there, or from their addresses. The first line
    says how much disk space it takes; without enough, nothing is fetched.
    """
    module, settings = config.known_dataset(ws.params, name)
    card = card_of(module)
    if getattr(settings, "urls", ""):
        yield from _fetch_shards(ws, name, settings, given, progress)
        return
    if card is None:
        if given:
            raise UserError(f"--from: {name} has no archives; name its path in params.yaml instead")
        return
    folder = located(ws.root, settings.path)
    if there := archives.ready(card, folder, ws.root):
        yield f"{name}: unpacked in {there}"
        return
    if given and archives.ready(card, given, ws.root):
        raise UserError(
            f"--from: {given} holds {name} unpacked; name it as datasets.{name}.path in "
            "params.yaml, and it is read where it is"
        )
    absent = [a for a in card.archives if not (folder / a.name).is_file()]
    local = {a.name: given / a.name for a in absent if given and (given / a.name).is_file()}
    hand = [a for a in absent if not a.urls and a.name not in local]
    if hand:
        raise UserError(_by_hand(card, hand, folder, given))
    yield _plan(card, settings, [a for a in absent if a.name not in local], folder)
    with _exclusive(ws, name):
        for archive in absent:
            if archive.name in local:
                _take(archive, local[archive.name], folder, progress)
            else:
                _download(archive, folder, card.by_hand, progress)
            yield f"{archive.name}: {archive.sum()} is right"


def shards_of(ws: Workspace, settings: Any) -> tuple[Path, list[Archive]]:
    """(folder, tar files) that a section's ``urls`` name, with the checksums that are known."""
    folder = located(ws.root, settings.path)
    if "://" in settings.path:
        raise UserError(f"{settings.path}: path is a folder of this machine, urls has addresses")
    stated = located(ws.root, settings.sums) if settings.sums else None
    kept = stated or folder / SUMS
    known = archives.read_sums(kept) if stated or kept.is_file() else {}
    found = [
        Archive(name, "", 0, known.get(name, ""), urls)
        for name, urls in settings.addresses().items()
    ]
    unknown = [a.name for a in found if not a.sha256]
    if stated and unknown:
        raise UserError(f"{stated}: no checksum of {unknown[0]}, one of the files that urls names")
    return folder, found


def _fetch_shards(
    ws: Workspace, name: str, settings: Any, given: Path | None, progress: Progress
) -> Iterator[str]:
    """Fetch the shards of ``urls`` into their folder; check again those already there."""
    folder, wanted = shards_of(ws, settings)
    absent = [a for a in wanted if not (folder / a.name).is_file()]
    loaded = [a for a in absent if not (given and (given / a.name).is_file())]
    with ThreadPoolExecutor(REQUESTS) as threads:
        sized = {a.name: a for a in threads.map(lambda a: downloads.sized(a, folder), loaded)}
    yield _space(name, {"to download": sum(a.bytes for a in sized.values())}, folder)
    kept = folder / SUMS  # perhaps of another section's shards too
    known = archives.read_sums(kept) if kept.is_file() else {}
    with _exclusive(ws, name):
        for archive in wanted:
            path = folder / archive.name
            hint = f"if its makers have changed it, delete its line in {settings.sums or kept}"
            hint = hint if archive.sha256 else ""
            if archive.name in sized:
                _download(sized[archive.name], folder, hint, progress)
            elif given and archive in absent:
                _take(archive, given / archive.name, folder, progress)
            elif why := archive.wrong(path, progress):
                raise UserError(f"{path}: {why}; delete it to fetch it again\n{hint}".rstrip())
            if not archive.sha256:
                known[archive.name] = archives.digest(path, "sha256", progress)
                lines = (f"{digest}  {file}\n" for file, digest in sorted(known.items()))
                storage.write_bytes(kept, "".join(lines).encode())
    where = settings.sums or kept
    yield f"{name}: {len(wanted)} shards, {len(loaded)} downloaded; their SHA-256 are in {where}"


def _by_hand(card: Card, hand: list[Archive], folder: Path, given: Path | None) -> str:
    """The message that lists the files to fetch by hand, and where to put them."""
    wanted = "".join(
        f"\n  {a.name}{f', {a.bytes:,} bytes' if a.bytes else ''}, {a.sum()}" for a in hand
    )
    where = f"{given} has no such file; " if given else ""
    return (
        f"{card.name}: no public address has these files; {where}put them into {folder}, or give "
        f"--from DIR with the folder where they are:{wanted}\n{card.by_hand}\nhome: {card.home}"
    )


def _plan(card: Card, settings: Any, loaded: list[Archive], folder: Path) -> str:
    """A line on the disk space that preparing takes; an error where there is too little."""
    wanted = {
        "to download": sum(a.bytes for a in loaded),
        "to unpack": sum(a.bytes for a in card.archives),
        "of pixels": min(sum(card.images.values()) * settings.stored**2 * 3, WHOLE),
    }
    return _space(card.name, wanted, folder)


def _space(name: str, wanted: dict[str, int], folder: Path) -> str:
    """A line on the bytes that are wanted and free; an error where these are too few."""
    remedy = f"make room, or name another disk as datasets.{name}.path"
    try:
        return f"{name}: {disk.need(wanted, folder, remedy)}"
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _take(archive: Archive, source: Path, folder: Path, progress: Progress) -> None:
    """Check a file of the user's, and link it into ``folder``, or copy it from another disk."""
    if why := archive.wrong(source, progress):
        raise UserError(f"{source}: {why}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{archive.name}.part"
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(folder / archive.name)


def _download(archive: Archive, folder: Path, hint: str, progress: Progress) -> None:
    """Download an archive; the error ends with ``hint``."""
    try:
        downloads.fetch(archive, folder, progress)
    except UserError as error:
        raise UserError(f"{error}\n{hint}".rstrip()) from error


def _exclusive(ws: Workspace, name: str) -> AbstractContextManager[int]:
    """Keep a second process from fetching the same set."""
    path = ws.root / "cache" / f".{name}.lock"
    return locks.exclusive(path, f"{name}: another process is fetching it ({path} is locked)")


def card_of(module: Any) -> Card | None:
    """The card in a data set's module; None where it is not a public one."""
    found = getattr(module, "CARD", None)
    assert found is None or isinstance(found, Card)
    return found
