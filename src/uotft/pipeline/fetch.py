"""The command data prepare: fetch a data set's archives to the path of its section; check them.

Often nobody publishes checksums of shards. The file SHA256SUMS in their folder then keeps those of
the first download, in the format of `sha256sum -c SHA256SUMS`.
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
from uotft.data import archives, class_downloads, class_images, downloads
from uotft.data.archives import Archive, Card, card_of
from uotft.data.pixel_cache import WHOLE
from uotft.pipeline.workspace import Workspace

SUMS = "SHA256SUMS"
REQUESTS = 8  # requests for the size of a file at a time


def fetch(ws: Workspace, name: str, given: Path | None, progress: Progress) -> Iterator[str]:
    """Fetch a set's archives to the path of its section and check them; yields a line per step.

    They come from the folder ``given`` if they are there, else from their addresses. The first line
    says how much disk space this takes. Raises `UserError` at once if there is too little.
    """
    module, settings = config.known_dataset(ws.params, name)
    card = archives.card_of(module)
    if getattr(settings, "urls", ""):
        yield from _fetch_shards(ws, name, settings, given, progress)
        return
    if hasattr(settings, "images"):
        yield from _fetch_classes(ws, name, settings, given, progress)
        return
    if card is None:
        if given:
            raise UserError(f"--from: {name} has no archives; set its path in params.yaml instead")
        return
    folder = located(ws.root, settings.path)
    if there := archives.ready(card, folder, ws.root):
        yield f"{name}: unpacked in {there}"
        return
    if given and archives.ready(card, given, ws.root):
        raise UserError(
            f"--from: {given} holds {name} unpacked; set datasets.{name}.path in params.yaml to "
            "it, and it is read in place"
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


def check_by_hand(ws: Workspace, name: str) -> None:
    """Raise `UserError` if archives of a public set are missing that no address has."""
    module, settings = config.known_dataset(ws.params, name)
    card, folder = card_of(module), located(ws.root, settings.path)
    if card is None or archives.ready(card, folder, ws.root):
        return
    if hand := [a for a in card.archives if not a.urls and not (folder / a.name).is_file()]:
        raise UserError(_by_hand(card, hand, folder, None))


def shards_of(ws: Workspace, settings: Any) -> tuple[Path, list[Archive]]:
    """(folder, tar files) that a section's ``urls`` name, with the checksums that are known."""
    folder = located(ws.root, settings.path)
    if "://" in settings.path:
        raise UserError(
            f"{settings.path}: path must be a folder on this machine; addresses go into urls"
        )
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
    """Fetch the shards of ``urls`` into their folder; check those already there again."""
    folder, shards = shards_of(ws, settings)
    absent = [a for a in shards if not (folder / a.name).is_file()]
    loaded = [a for a in absent if not (given and (given / a.name).is_file())]
    with ThreadPoolExecutor(REQUESTS) as threads:
        sized = {a.name: a for a in threads.map(lambda a: downloads.sized(a, folder), loaded)}
    yield _space(name, {"to download": sum(a.bytes for a in sized.values())}, folder)
    kept = folder / SUMS  # may hold those of another section's shards too
    known = archives.read_sums(kept) if kept.is_file() else {}
    with _exclusive(ws, name):
        for archive in shards:
            path = folder / archive.name
            hint = f"if its publisher has changed it, delete its line in {settings.sums or kept}"
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
    yield f"{name}: {len(shards)} shards, {len(loaded)} downloaded; their SHA-256 are in {where}"


def _fetch_classes(
    ws: Workspace, name: str, settings: Any, given: Path | None, progress: Progress
) -> Iterator[str]:
    """Fetch the classes that a section's list names, where the place of its images lacks them."""
    if given:
        raise UserError(
            f"--from: name your copy of ImageNet as images: in datasets.{name} of params.yaml, and "
            "it is read in place"
        )
    wanted = class_images.listed(located(ws.root, settings.path))
    yield from bring_classes(name, wanted, located(ws.root, settings.images), progress)


def bring_classes(name: str, wanted: list[str], folder: Path, progress: Progress) -> Iterator[str]:
    """Fetch those of some ImageNet classes that ``folder`` lacks; yields a line per step.

    Says first how much room they take. Raises `UserError` as `class_downloads.fetch` does.
    """
    place = class_images.place(folder)
    absent = place.missing(wanted)
    yield f"{name}: {len(wanted) - len(absent)} of {len(wanted)} classes are in {place.path}"
    if absent:
        if place.can_grow():
            class_downloads.check_accepted()
            remedy = f"make room, or name another folder as datasets.{name}.images"
            yield _space(name, {"to download": class_downloads.estimate(len(absent))},
                         place.root, remedy)  # fmt: skip
        yield from class_downloads.fetch(place.path, absent, progress)


def _by_hand(card: Card, hand: list[Archive], folder: Path, given: Path | None) -> str:
    """The message that lists the files to fetch by hand, and where to put them."""
    missing = "".join(
        f"\n  {a.name}{f', {a.bytes:,} bytes' if a.bytes else ''}, {a.sum()}" for a in hand
    )
    where = f"{given} has no such file; " if given else ""
    return (
        f"{card.name}: these files must be downloaded by hand; {where}put them into {folder}, or "
        f"name their folder with --from DIR:{missing}\n{card.by_hand}\nhome: {card.home}"
    )


def _plan(card: Card, settings: Any, loaded: list[Archive], folder: Path) -> str:
    """A line on the disk space that preparing takes. Raises `UserError` if it is too little."""
    sizes = {
        "to download": sum(a.bytes for a in loaded),
        "to unpack": sum(a.bytes for a in card.archives),
        "of pixels": min(sum(card.images.values()) * settings.stored**2 * 3, WHOLE),
    }
    return _space(card.name, sizes, folder)


def _space(name: str, sizes: dict[str, int], folder: Path, remedy: str = "") -> str:
    """A line on the bytes that are needed and free. Raises `UserError` if too few are free."""
    remedy = remedy or f"make room, or name another disk as datasets.{name}.path"
    try:
        return f"{name}: {disk.need(sizes, folder, remedy)}"
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _take(archive: Archive, source: Path, folder: Path, progress: Progress) -> None:
    """Check a user's file and link it into ``folder``, or copy it from another disk."""
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
