"""The commands data list, verify and show: the data sets, their state, and changed files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from uotft.core import config, disk, registry, storage, user_settings
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Files, Progress
from uotft.data import archives, class_images, files
from uotft.data.archives import Card, card_of
from uotft.data.pixel_cache import Store
from uotft.pipeline import image_places, readers
from uotft.pipeline.fetch import shards_of
from uotft.pipeline.verify import differences
from uotft.pipeline.workspace import Workspace

OWN = ("folder", "shards", "imagenet_classes")  # kinds that need a section in params.yaml
SHEET = 10  # images of each class on a contact sheet
MANY = 10  # archives; `verify` names fewer one by one


def listing(ws: Workspace | None) -> list[tuple[str, ...]]:
    """A header, and a row for each public data set and each of params.yaml.

    Outside a project, without a workspace, the state is that of no folder: empty.
    """
    rows: list[tuple[str, ...]]
    rows = [("name", "kind", "classes", "images", "metric", "archives", "state")]
    public = [name for name in registry.names("datasets") if name not in OWN]
    for name in sorted({*public, *(ws.params.datasets if ws else ())}):
        module, settings = (
            config.known_dataset(ws.params, name)
            if ws
            else config.dataset_section({"kind": name}, f"datasets.{name}")
        )
        card, images, classes = card_of(module), dict[str, int](), 0
        if card:
            images, classes = card.images, card.classes
        if ws and ws.data(name).with_suffix(".json").is_file():
            summary = storage.read_json(ws.data(name).with_suffix(".json"))
            images, classes = summary["images"], summary["classes"]
        rows.append(
            (
                name,
                module.__name__.rpartition(".")[2],
                f"{classes:,}" if classes else "",
                ", ".join(f"{n:,} {part}" for part, n in images.items()),
                card.metric if card else "",
                disk.gib(sum(a.bytes for a in card.archives)) if card else "",
                _state(ws, name, settings, card) if ws else "",
            )
        )
    return rows


def remembered() -> list[str]:
    """A line on the place of ImageNet's images that this user's settings name, if they do."""
    path = user_settings.load().imagenet
    if not path:
        return []
    try:
        count = len(class_images.place(Path(path)).classes())
    except UserError as error:
        return [f"ImageNet's training images: {error}"]
    return [f"ImageNet's training images: {count:,} of 1,000 classes in {path}"]


def verify(ws: Workspace, name: str, progress: Progress) -> tuple[str, list[str]]:
    """(a summary of what was checked, one line per fault).

    Hashes every file of a prepared set, and its archives. Decodes every file of a set that is not
    prepared. Compares DVC's copies of the set with dvc.lock.
    """
    module, settings = config.known_dataset(ws.params, name)
    if not ws.data(name).is_file():
        images = ws.decoding(name, module.load(settings, progress, ws.root))
        if not isinstance(images.images, Store):
            return f"{name}: not prepared, and it has no files to check", []
        bad = images.images.fill(np.arange(len(images.labels)), progress, keep=False)
        return f"{name}: not prepared; {len(images.labels)} files decoded", [*bad.values()]
    images = image_places.read(ws, name)
    bad_lines = differences(ws, f"prepare@{name}")
    if images.files is None:
        return f"{name}: its pixels are in {ws.data(name)}", bad_lines
    bad_lines += files.differences(images.files, progress)
    pixels = ws.decoding(name, images).images
    if isinstance(pixels, Store):
        bad_lines += pixels.fill(images.rows("unreadable"), progress, keep=False).values()
    if hasattr(module, "found"):
        bad_lines += _added(ws, name, module, settings, images.files, progress)
    card, summary = card_of(module), f"{len(images.labels)} files hashed"
    folder, held = located(ws.root, settings.path), [*card.archives] if card else []
    if getattr(settings, "urls", ""):
        folder, held = shards_of(ws, settings)
    for archive in held:
        path = folder / archive.name
        if path.is_file():
            summary += f", {archive.name}" if len(held) < MANY else ""
            why = archive.wrong(path, progress)
            bad_lines += [f"{path}: {why}"] if why else []
    summary += f", {len(held)} archives" if len(held) >= MANY else ""
    return f"{name}: {summary}", bad_lines


def _added(
    ws: Workspace, name: str, module: Any, settings: Any, known: Files, progress: Progress
) -> list[str]:
    """A line for each file added since the set was prepared, or why the set cannot be read now."""
    try:
        listed = module.found(settings, progress, ws.root)
    except UserError as error:
        return [str(error)]
    lines = []
    folder = listed.folder
    if folder.resolve() != Path(known.root).resolve():
        lines.append(f"{ws.data(name)}: made from {known.root}, not from {folder}")
    paths = set((known.archives if len(known.archives) else known.paths).tolist())
    added = (folder / os.fsdecode(path) for path, _, _ in listed.rows if path not in paths)
    pictures = {digest.tobytes() for digest in known.sha256}
    new = (path for path in added if not _is_copy(path, pictures))
    return [*lines, *(f"{files.printable(path)}: added" for path in new)]


def show(ws: Workspace, name: str, output: Path, classes: int) -> str:
    """Write a contact sheet as PNG: one row per class, with its first training images."""
    from uotft.analysis import figures

    if output.suffix.lower() not in ("", ".png"):
        raise UserError(f"--output {output}: the sheet is a PNG: name a file that ends in .png")
    storage.need(ws.data(name))
    images = readers.images(ws, name)
    trained = images.rows("train")
    chosen = np.linspace(0, len(images.names) - 1, min(classes, len(images.names)))
    sheets = {}
    for label in np.unique(chosen.round().astype(int)).tolist():
        rows = trained[images.labels[trained] == label][:SHEET]
        captions = map(str, rows.tolist())
        sheets[images.names[label]] = [*zip(captions, images.images[rows], strict=True)]
    title = f"{name}: {len(sheets)} of {len(images.names)} classes, training images"
    storage.write_bytes(output, figures.classes_picture(title, sheets, columns=SHEET))
    return f"{output}: {title}"


def made_by_code(settings: Any) -> bool:
    """Whether the images of a set without a card come from its module, not from files."""
    return not settings.path or settings.path.endswith(".py")


def _is_copy(path: Path, pictures: set[bytes]) -> bool:
    """Whether a file's SHA-256 is among those of a set, so that the set leaves it out."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).digest() in pictures


def _state(ws: Workspace, name: str, settings: Any, card: Card | None) -> str:
    """The state of a set: to be downloaded, there, unpacked or prepared."""
    if ws.data(name).is_file():
        return "prepared"
    folder = located(ws.root, settings.path)
    if hasattr(settings, "images"):
        return _state_of_classes(ws, settings)
    if getattr(settings, "urls", ""):
        there = all((folder / name).is_file() for name in settings.addresses())
        return "there" if there else "to be downloaded"
    if card is None:
        if made_by_code(settings):
            return "made here"
        return "there" if folder.exists() else f"{folder} is missing"
    if archives.ready(card, folder, ws.root):
        return "unpacked"
    absent = [a for a in card.archives if not (folder / a.name).is_file()]
    if absent:
        return "to be fetched by hand" if any(not a.urls for a in absent) else "to be downloaded"
    return "archives are there"


def _state_of_classes(ws: Workspace, settings: Any) -> str:
    """How many of the classes of a list are there."""
    path = located(ws.root, settings.path)
    if not path.is_file():
        return f"no list of classes yet ({settings.path})"
    try:
        wanted = class_images.listed(path)
        place = class_images.place(located(ws.root, settings.images))
    except UserError as error:
        return str(error)
    absent = place.missing(wanted)
    lack = "to be downloaded" if place.can_grow() else "missing"
    return f"{len(absent)} of {len(wanted)} classes {lack}" if absent else "there"
