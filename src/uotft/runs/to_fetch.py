"""What trainings have to fetch: data sets, weights, classes of ImageNet; and what is there already.

Nothing is fetched here, and the project need not be there yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uotft.core import config, disk, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Cell
from uotft.data import archives, class_downloads, class_images, downloads, wordnet
from uotft.data.archives import card_of
from uotft.pipeline import fetch, freshness, source_classes
from uotft.pipeline.datasets import made_by_code
from uotft.pipeline.workspace import Workspace
from uotft.runs import outlook
from uotft.selection import choosing, ranking

TENCH = "n01440764"  # the first class of ImageNet: if it can be had, so can the others


@dataclass(frozen=True)
class Item:
    """Something to fetch, from the first of ``urls`` that has it; from none: by hand.

    ``size`` is in bytes, 0 if unknown; ``place`` is a folder.
    """

    what: str
    urls: tuple[str, ...]
    size: int
    place: Path

    @property
    def address(self) -> str:
        """The address that will be asked first, perhaps a mirror's."""
        return downloads.redirected(self.urls[0]) if self.urls else "by hand"


@dataclass
class Needs:
    """What is to be fetched, and lines on what is there; ``unpacked`` bytes follow on the disk.

    ``classes`` of ImageNet are used, and ``absent`` of them to be fetched; None: the selection
    says how many.
    """

    items: list[Item] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    unpacked: int = 0
    classes: int | None = 0
    absent: int | None = 0


def short(path: Path) -> str:
    """The same as in the messages around a training; a folder below this one ends with a slash."""
    found = outlook.short(Path(os.path.normpath(path.absolute())))
    return found if os.path.isabs(found) or path.is_file() else f"{found}/"


def needs(ws: Workspace, cells: Sequence[Cell]) -> Needs:
    """What the trainings of some cells of one target need."""
    found = Needs()
    for name in sets(ws, cells[0].target):
        _archives(ws, name, found)
    _weights(ws, found)
    if ws.by_class and any(config.keeps(ws.params, cell.strategy) for cell in cells):
        _classes(ws, cells, found)
    return found


def sets(ws: Workspace, target: str) -> list[str]:
    """The data sets that are read as a whole."""
    return [target] if ws.by_class else [target, ws.params.source]


def kept(ws: Workspace, cell: Cell) -> int | None:
    """How many source classes a cell keeps: 0 without any, None if only the selection will say.

    Raises `UserError` for a K that ImageNet has not, and for names that it does not know.
    """
    if not config.keeps(ws.params, cell.strategy):
        return 0
    top_k, strategy = ws.params.select.top_k, cell.strategy
    names = config.dataset(ws.params, ws.params.source)[0].every_class() if ws.by_class else ()
    if choosing.ignores_k(strategy):
        settings = config.selector_settings(ws.params, strategy)
        return choosing.kept_by_name(strategy, settings, names, ws.root) if names else None
    if top_k == "auto":
        return None
    if names:
        ranking.check(top_k, len(names))
    return top_k


def _archives(ws: Workspace, name: str, found: Needs) -> None:
    """The archives of a public set, the shards of addresses, and where a user's images are."""
    module, settings = config.known_dataset(ws.params, name)
    card, folder = card_of(module), located(ws.root, settings.path)
    if getattr(settings, "urls", ""):
        folder, shards = fetch.shards_of(ws, settings)
        if absent := [tar for tar in shards if not (folder / tar.name).is_file()]:
            what = f"{name}: {len(absent)} tar files"
            found.items.append(Item(what, absent[0].urls, 0, folder))
            return
    if card is None:
        if made_by_code(settings):
            found.there.append(f"{name}, made by code")
        elif folder.exists():
            found.there.append(f"{name} in {short(folder)}")
        else:
            found.items.append(Item(f"{name}: its images", (), 0, folder))
        return
    if place := archives.ready(card, folder, ws.root):
        found.there.append(f"{name} in {short(place)}")
        return
    found.unpacked += sum(archive.bytes for archive in card.archives)
    for archive in card.archives:
        if (folder / archive.name).is_file():
            found.there.append(f"{archive.name} in {short(folder)}")
        else:
            what = f"{name}: {archive.name}"
            found.items.append(Item(what, archive.urls, archive.bytes, folder))


def _weights(ws: Workspace, found: Needs) -> None:
    """The weights of the backbone, where a published file is downloaded."""
    if (ws.pretrained() / "model.safetensors").is_file():
        found.there.append(f"weights in {short(ws.pretrained())}")
        return
    from uotft.models import model_io

    file = model_io.published(ws.params.backbone)
    if file is None:
        found.there.append(f"{ws.params.backbone['name']}, whose weights are no download")
    elif file.path.is_file():
        found.there.append(f"weights in {short(file.path)}")
    else:
        what = f"weights: {file.path.name}"
        found.items.append(Item(what, (file.address,), file.bytes, file.path.parent))


def _classes(ws: Workspace, cells: Sequence[Cell], found: Needs) -> None:
    """The classes of ImageNet that are used; those that are still to be fetched are an item."""
    folder = located(ws.root, config.dataset_settings(ws.params, ws.params.source).images)
    place, every = class_images.place(folder), wordnet.imagenet()
    here, known, others = place.classes(), {*source_classes.listed_classes(ws)}, 0
    for cell in cells:
        own = ws.of(cell.strategy)
        if (names := _selected(own, cell)) is not None:
            known |= names
        elif (count := kept(own, cell)) is None:
            others = len(every)
            found.classes = None
        else:
            others += count
    room = len(every) - len({*here, *known})
    most = len(place.missing(known)) + min(others, room)
    found.absent = most if found.classes is not None or not room else None
    found.classes = min(len(known) + others, len(every)) if found.classes is not None else None
    if not most or not place.can_grow():
        found.absent = 0
        found.there.append(f"{len(here)} of ImageNet's 1,000 classes in {short(folder)}")
        return
    if here:
        where = f"classes of ImageNet in {short(folder)}"
        found.there.append(f"{len(here)} {where}, not fetched again")
    size = class_downloads.estimate(most)
    what = f"the {most} selected classes" if not (known or here) else f"up to {most} classes"
    if found.absent is None:
        what, size = f"up to {disk.gib(size)}", 0
    urls = class_downloads.TRAIN_URL, class_downloads.CLASS_URL.format(TENCH)
    found.items.append(Item(f"ImageNet: {what}", urls, size, folder))


def _selected(ws: Workspace, cell: Cell) -> set[str] | None:
    """The classes that a selection of today's inputs keeps, by WordNet id; None without one."""
    if not config.keeps(ws.params, cell.strategy):
        return set()
    path = ws.cell("selections", cell) / "selection.json"
    if not path.is_file():
        return None
    chosen = storage.read_json(path)
    try:
        freshness.check_selection(ws, cell, chosen)
    except UserError:
        return None
    return source_classes.ids(chosen)
