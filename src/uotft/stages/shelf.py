"""The commands `uotft data`: which data sets there are, their archives, what has changed since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uotft import archives, config, downloads, files, registry, store
from uotft.archives import Archive, Card
from uotft.errors import UserError
from uotft.pixels import WHOLE, Store
from uotft.stages.workspace import Progress, Workspace

OWN = ("folder", "shards")  # what they are, a section says
SHEET = 10  # images of each class on a contact sheet


def listing(ws: Workspace) -> list[tuple[str, ...]]:
    """A header, and a row for each set of the shelf and of params.yaml."""
    rows: list[tuple[str, ...]]
    rows = [("name", "kind", "classes", "images", "metric", "archives", "state")]
    shelf = [name for name in registry.names("datasets") if name not in OWN]
    for name in sorted({*shelf, *ws.params.datasets}):
        module, settings = config.known_dataset(ws.params, name)
        card, images, classes = _card(module), dict[str, int](), 0
        if card:
            images, classes = card.images, card.classes
        if ws.data(name).with_suffix(".json").is_file():
            summary = store.read_json(ws.data(name).with_suffix(".json"))
            images, classes = summary["images"], summary["classes"]
        rows.append(
            (
                name,
                module.__name__.rpartition(".")[2],
                f"{classes:,}" if classes else "",
                ", ".join(f"{n:,} {part}" for part, n in images.items()),
                card.metric if card else "",
                _gib(sum(a.bytes for a in card.archives)) if card else "",
                _state(ws, name, settings, card),
            )
        )
    return rows


def fetch(ws: Workspace, name: str, given: Path | None, progress: Progress) -> Iterator[str]:
    """Bring a set's archives, checked, to where its section says: a line for each thing done.

    From the folder ``given``, if they are there, or from their addresses. The first line says what
    it takes; nothing is started that the disk has no room for.
    """
    module, settings = config.known_dataset(ws.params, name)
    card = _card(module)
    if card is None:
        if given:
            raise UserError(f"--from: {name} has no archives; name its path in params.yaml instead")
        return
    folder = ws.root / Path(settings.path).expanduser()
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
    yield _plan(card, settings, [a for a in absent if a.name not in local], folder, ws.root)
    with _alone(ws.root / "cache" / f".{name}.lock", name):
        for archive in absent:
            if archive.name in local:
                _take(archive, local[archive.name], folder, progress)
            else:
                _download(card, archive, folder, progress)
            yield f"{archive.name}: {archive.sum()} is right"


def verify(ws: Workspace, name: str, progress: Progress) -> tuple[str, list[str]]:
    """(what was looked at, what is wrong with it, a line each).

    Of a prepared set every file is hashed again, and its archives too; without data/NAME.npz every
    file is decoded instead. What DVC keeps of the set is compared with dvc.lock.
    """
    module, settings = config.known_dataset(ws.params, name)
    if not ws.data(name).is_file():
        images = ws.decoding(name, module.load(settings, progress, ws.root))
        if not isinstance(images.images, Store):
            return f"{name}: not prepared, and nothing of it is in files", []
        bad = images.images.fill(np.arange(len(images.labels)), progress, keep=False)
        return f"{name}: not prepared; {len(images.labels)} files decoded", [*bad.values()]
    images, bad_lines = store.read_images(ws.data(name)), _versions(ws, name)
    if images.files is None:
        return f"{name}: its pixels are in {ws.data(name)}", bad_lines
    bad_lines += files.differences(images.files, progress)
    pixels = ws.decoding(name, images).images
    if isinstance(pixels, Store):
        bad_lines += pixels.fill(images.rows("unreadable"), progress, keep=False).values()
    if hasattr(module, "found"):
        folder, rows = module.found(settings, progress, ws.root)
        if str(folder.resolve()) != images.files.root:
            bad_lines.append(f"{ws.data(name)}: made from {images.files.root}, not from {folder}")
        known = set(images.files.paths.tolist())
        bad_lines += [
            f"{files.shown(folder / os.fsdecode(path))}: added"
            for path, _, _ in rows
            if path not in known
        ]
    card, looked = _card(module), f"{len(images.labels)} files hashed"
    folder = ws.root / Path(settings.path).expanduser()
    for archive in card.archives if card else ():
        path = folder / archive.name
        if path.is_file():
            looked += f", {archive.name}"
            why = archive.wrong(path, progress)
            bad_lines += [f"{path}: {why}"] if why else []
    return f"{name}: {looked}", bad_lines


def show(ws: Workspace, name: str, output: Path, classes: int) -> str:
    """Write a contact sheet: a line a class, with its first training images."""
    from uotft import report

    store.need(ws.data(name))
    images = ws.images(name)
    trained = images.rows("train")
    chosen = np.linspace(0, len(images.names) - 1, min(classes, len(images.names)))
    sheets = {}
    for label in np.unique(chosen.round().astype(int)).tolist():
        rows = trained[images.labels[trained] == label][:SHEET]
        words = map(str, rows.tolist())
        sheets[images.names[label]] = [*zip(words, images.images[rows], strict=True)]
    title = f"{name}: {len(sheets)} of {len(images.names)} classes, training images"
    store.write_bytes(output, report.classes_picture(title, sheets, columns=SHEET))
    return f"{output}: {title}"


def _card(module: Any) -> Card | None:
    found = getattr(module, "CARD", None)
    assert found is None or isinstance(found, Card)
    return found


def _state(ws: Workspace, name: str, settings: Any, card: Card | None) -> str:
    """How far a set is."""
    if ws.data(name).is_file():
        return "prepared"
    folder = ws.root / Path(settings.path).expanduser()
    if card is None:
        drawn = not settings.path or settings.path.endswith(".py")
        return "made here" if drawn else "there" if folder.exists() else f"{folder} is missing"
    if archives.ready(card, folder, ws.root):
        return "unpacked"
    absent = [a for a in card.archives if not (folder / a.name).is_file()]
    if absent:
        return "to be fetched by hand" if any(not a.urls for a in absent) else "to be downloaded"
    return "archives are there"


def _by_hand(card: Card, hand: list[Archive], folder: Path, given: Path | None) -> str:
    """Which files to put where."""
    wanted = "".join(
        f"\n  {a.name}{f', {a.bytes:,} bytes' if a.bytes else ''}, {a.sum()}" for a in hand
    )
    where = f"{given} has no such file; " if given else ""
    return (
        f"{card.name}: no public address has these files; {where}put them into {folder}, or give "
        f"--from DIR with the folder where they are:{wanted}\n{card.by_hand}\nhome: {card.home}"
    )


def _plan(card: Card, settings: Any, loaded: list[Archive], folder: Path, root: Path) -> str:
    """What preparing takes, or an error if there is no room for it."""
    wanted = {
        "to download": sum(a.bytes for a in loaded),
        "to unpack": sum(a.bytes for a in card.archives),
        "of pixels": min(sum(card.images.values()) * settings.stored**2 * 3, WHOLE),
    }
    place = next(p for p in (folder, *folder.parents) if p.is_dir())
    free, needed = shutil.disk_usage(place).free, sum(wanted.values())
    parts = ", ".join(f"{_gib(size)} {what}" for what, size in wanted.items())
    line = f"{card.name}: {parts} (about); {_gib(free)} are free in {place}"
    if needed > free:
        raise UserError(f"{line}: make room, or name another disk as datasets.{card.name}.path")
    return line


def _take(archive: Archive, source: Path, folder: Path, progress: Progress) -> None:
    """A checked file of the user's, linked into ``folder``, or copied from another disk."""
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


def _download(card: Card, archive: Archive, folder: Path, progress: Progress) -> None:
    try:
        downloads.fetch(archive, folder, progress)
    except UserError as error:
        raise UserError(f"{error}\n{card.by_hand}".rstrip()) from error


def _versions(ws: Workspace, name: str) -> list[str]:
    """What dvc.lock says of data/NAME.* and is not so, in the workspace or in DVC's cache."""
    lock = ws.root / "dvc.lock"
    stages = yaml.safe_load(lock.read_text("utf-8"))["stages"] if lock.is_file() else {}
    bad = []
    for out in stages.get(f"prepare@{name}", {}).get("outs", []):
        md5, path = out["md5"], ws.root / out["path"]
        kept = ws.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        if not path.is_file() or archives.digest(path, "md5") != md5:
            bad.append(f"{path}: not the version in dvc.lock; dvc repro makes it")
        if not kept.is_file():
            bad.append(f"{kept}: missing, DVC's copy of {out['path']}; dvc commit makes it")
        elif archives.digest(kept, "md5") != md5:
            bad.append(f"{kept}: changed, DVC's copy of {out['path']}; delete it, then dvc commit")
    return bad


def _alone(path: Path, name: str) -> Any:
    """A lock, so that two processes do not fetch one set."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        return lock.acquire()
    except Timeout as error:
        raise UserError(f"{name}: another process is fetching it ({path} is locked)") from error


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
