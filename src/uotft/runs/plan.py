"""What a training from a name will fetch and take, said before anything is made.

uotft train --dataset dogs --dry-run
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from uotft.core import config, disk, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.progress import duration
from uotft.core.records import Cell, silently
from uotft.core.text import plural
from uotft.data import archives, class_downloads, class_images, downloads, wordnet
from uotft.data.archives import card_of
from uotft.data.datasets import folder as folder_kind
from uotft.data.pixel_cache import WHOLE
from uotft.pipeline import compatible, fetch, source_classes
from uotft.pipeline.datasets import made_by_code
from uotft.pipeline.workspace import Workspace
from uotft.runs import estimate, outlook
from uotft.training import objectives

TENCH = "n01440764"  # the first class of ImageNet: if it can be had, so can the others
PER_CLASS = 1_281  # training images of a class of ImageNet, on average
LONG_S = 6 * 3600  # a part that takes longer is worth a hint
NETWORK = 10_000_000  # bytes a second, for a feeling of how long a download takes


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


@dataclass(frozen=True)
class Plan:
    """The downloads of a training, and how long its parts take: {part: seconds, or why unknown}.

    ``pixels`` are the bytes that the project in ``root`` takes for decoded pictures.
    """

    root: Path
    title: str
    items: list[Item]
    there: list[str]
    pixels: int
    times: dict[str, float | str]
    device: str

    def rows(self) -> list[tuple[str, ...]]:
        """A table of what is to be fetched, its header first; the header alone if nothing is."""
        found = [
            (i.what, disk.gib(i.size) if i.size else "not stated", i.address, short(i.place))
            for i in self.items
        ]
        return [("to fetch", "bytes", "from", "kept in"), *found]

    def lines(self) -> Iterator[str]:
        """The rest of the plan as text. Says, and does not raise, if a disk is too small."""
        if self.there:
            yield f"is there already: {'; '.join(self.there)}"
        least = "" if all(item.size for item in self.items) else "at least "
        if total := sum(item.size for item in self.items):
            took = duration(total / NETWORK)
            yield f"to fetch in all: {least}{disk.gib(total)}, {took} at 10 MB a second"
        try:
            if room := self.need():
                yield f"disk: {least}{room}"
        except UserError as error:
            yield f"disk: {error}"
        if self.device:
            yield f"time on this machine ({self.device}), measured with random weights:"
        elif self.times:
            yield "time on this machine:"
        for part, seconds in self.times.items():
            yield f"  {part}: {seconds if isinstance(seconds, str) else estimate.about(seconds)}"
        if any(not isinstance(took, str) and took > LONG_S for took in self.times.values()):
            yield "  to try it first: --subset shots=2 --set train.recipe.epochs=10"
        yield "a command that is interrupted goes on where it stopped when it is given again"

    def need(self) -> str:
        """A line on the disk space that is needed and free; "" if no size is known.

        Raises `UserError` if it is too little. Folders on one disk share its space.
        """
        wanted = {item.place: 0 for item in self.items}
        for item in self.items:
            wanted[item.place] += item.size
        disks: dict[int, dict[Path, int]] = {}
        for place, size in {**wanted, self.root: self.pixels}.items():
            disks.setdefault(disk.device(place), {})[place] = size
        lines = []
        for places in disks.values():
            sizes = {f"in {short(place)}": size for place, size in places.items() if size}
            if sizes:
                place = next(iter(places))
                lines.append(disk.need(sizes, place, "make room, or work on another disk"))
        return "; ".join(lines)


def short(path: Path) -> str:
    """The same as in the messages around a training; a folder below this one ends with a slash."""
    found = outlook.short(Path(os.path.normpath(path.absolute())))
    return found if os.path.isabs(found) or path.is_file() else f"{found}/"


def plan(ws: Workspace, cell: Cell, *, measured: bool = True) -> Plan:
    """The plan of one cell, of a project that need not be there yet.

    Nothing is fetched. With ``measured``, a network of random weights says how fast this machine
    is, which takes seconds.
    """
    config.selector(ws.params, cell.strategy)  # an error if there is no such row
    ws = ws.of(cell.strategy)
    items, there = list[Item](), list[str]()
    names = [cell.target] if ws.by_class else [cell.target, ws.params.source]
    for name in names:
        _archives(ws, name, items, there)
    _weights(ws, items, there)
    kept = _kept(ws, cell)
    if ws.by_class and kept != 0:
        _classes(ws, kept, items, there)
    counts = {name: counted(ws, name) for name in names}
    on = f"{ws.params.backbone['name']} on {cell.target}"
    title = f"{short(ws.root)}: {on}, {_reused(ws, cell, kept)}"
    pictures = {name: sum(parts.values()) for name, parts in counts.items()}
    if ws.by_class:
        pictures[ws.params.source] = (kept or 0) * PER_CLASS
    times, device = _times(ws, cell, counts[cell.target], kept) if measured else ({}, "")
    return Plan(ws.root, title, items, there, _pixels(ws, pictures), times, device)


def check(found: Plan, ws: Workspace, cell: Cell) -> None:
    """Raise `UserError` for what cannot work."""
    for each in checks(found, ws, cell).values():
        each()


def checks(found: Plan, ws: Workspace, cell: Cell) -> dict[str, Callable[[], object]]:
    """What has to hold before a training begins; each raises `UserError` if it does not."""

    def by_hand() -> None:
        for name in (cell.target, ws.params.source):
            fetch.check_by_hand(ws, name)

    made = {
        "settings": lambda: compatible.check(ws, [cell.target], [cell.strategy]),
        "disk": found.need,
        "by hand": by_hand,
    }
    if ws.by_class and any(item.what.startswith("ImageNet") for item in found.items):
        made["terms"] = class_downloads.check_accepted
    urls = [item.urls for item in found.items if item.urls]
    return {**made, "network": lambda: downloads.check_reachable(urls)}


def counted(ws: Workspace, name: str) -> dict[str, int]:
    """{part: number of images} of a data set; {} if only `prepare` can count them."""
    summary = ws.data(name).with_suffix(".json")
    if summary.is_file():
        images: dict[str, int] = storage.read_json(summary)["images"]
        return images
    module, settings = config.known_dataset(ws.params, name)
    if card := card_of(module):
        counts = dict(card.images)
        if "val" not in counts:
            counts["val"] = round(settings.val * counts["train"])
            counts["train"] -= counts["val"]
        return counts
    if module is not folder_kind:
        return {}
    path = located(ws.root, settings.path)
    if not path.exists() or (path.is_file() and path.name.lower().endswith(archives.SUFFIXES)):
        return {}
    parts = [part for _, _, part in folder_kind.found(settings, silently, ws.root).rows]
    counts = {part: parts.count(part) for part in ("train", "val", "test")}
    for part, share in (("test", settings.test), ("val", settings.val)):
        if not counts[part]:
            counts[part] = round(share * counts["train"])
            counts["train"] -= counts[part]
    return counts


def _pixels(ws: Workspace, pictures: dict[str, int]) -> int:
    """The bytes of decoded pictures, {data set: their number}; only sets of files keep such."""
    settings = {name: config.known_dataset(ws.params, name)[1] for name in pictures}
    one = {name: getattr(found, "stored", 0) ** 2 * 3 for name, found in settings.items()}
    return sum(min(count * one[name], WHOLE) for name, count in pictures.items())


def _archives(ws: Workspace, name: str, items: list[Item], there: list[str]) -> None:
    """The archives of a public set, the shards of addresses, and where a user's images are."""
    module, settings = config.known_dataset(ws.params, name)
    card, folder = card_of(module), located(ws.root, settings.path)
    if getattr(settings, "urls", ""):
        folder, shards = fetch.shards_of(ws, settings)
        if absent := [tar for tar in shards if not (folder / tar.name).is_file()]:
            items.append(Item(f"{name}: {len(absent)} tar files", absent[0].urls, 0, folder))
            return
    if card is None:
        made = made_by_code(settings)
        there.append(f"{name}, made by code" if made else f"{name} in {short(folder)}")
        return
    if place := archives.ready(card, folder, ws.root):
        there.append(f"{name} in {short(place)}")
        return
    for archive in card.archives:
        if (folder / archive.name).is_file():
            there.append(f"{archive.name} in {short(folder)}")
        else:
            items.append(Item(f"{name}: {archive.name}", archive.urls, archive.bytes, folder))


def _weights(ws: Workspace, items: list[Item], there: list[str]) -> None:
    """The weights of the backbone, where a published file is downloaded."""
    if (ws.pretrained() / "model.safetensors").is_file():
        there.append(f"weights in {short(ws.pretrained())}")
        return
    from uotft.models import model_io

    found = model_io.published(ws.params.backbone)
    if found is None:
        there.append(f"{ws.params.backbone['name']}, whose weights are no download")
    elif found.path.is_file():
        there.append(f"weights in {short(found.path)}")
    else:
        what = f"weights: {found.path.name}"
        items.append(Item(what, (found.address,), found.bytes, found.path.parent))


def _classes(ws: Workspace, kept: int | None, items: list[Item], there: list[str]) -> None:
    """The classes of ImageNet that are still to be fetched; which ones, the selection says."""
    settings = config.dataset_settings(ws.params, ws.params.source)
    folder = located(ws.root, settings.images)
    place = class_images.place(folder)
    here = len(place.classes())
    listed = source_classes.listed_classes(ws)
    if not place.can_grow() or (listed and not place.missing(listed)):
        there.append(f"{here} of ImageNet's 1,000 classes in {short(folder)}")
        return
    most = disk.gib(class_downloads.estimate(len(wordnet.imagenet())))
    what = f"ImageNet: the {kept} selected classes" if kept else f"ImageNet: up to {most}"
    if here:
        there.append(f"{here} classes of ImageNet in {short(folder)}, not fetched again")
    urls = class_downloads.TRAIN_URL, class_downloads.CLASS_URL.format(TENCH)
    items.append(Item(what, urls, class_downloads.estimate(kept or 0), folder))


def _kept(ws: Workspace, cell: Cell) -> int | None:
    """How many source classes the cell keeps; None if only the selection will say."""
    if not config.keeps(ws.params, cell.strategy):
        return 0
    top_k = ws.params.select.top_k
    strategy = config.selector_settings(ws.params, cell.strategy)
    return None if top_k == "auto" or getattr(strategy, "IGNORES_K", False) else top_k


def _reused(ws: Workspace, cell: Cell, kept: int | None) -> str:
    """What of the source the cell trains on, for the title."""
    source = ws.params.source
    if kept == 0 or outlook.unread(ws):
        return "without source images"
    if kept is None:
        return f"with what {cell.strategy} keeps of {source}"
    return f"with the {plural(kept, ws.params.select.unit)} of {source} that {cell.strategy} keeps"


def _times(
    ws: Workspace, cell: Cell, images: dict[str, int], kept: int | None
) -> tuple[dict[str, float | str], str]:
    """How long the parts of a training take here: {part: seconds}, and on which device."""
    if not images:
        return {"all of it": f"known once {cell.target} is prepared"}, ""
    settings, size = ws.params.train, config.dataset_settings(ws.params, cell.target).size
    batch = config.images_a_step(ws.params, keeps=config.keeps(ws.params, cell.strategy))
    count = outlook.labelled(ws, images["train"], lambda: _classes_of(ws, cell.target))
    recipe = objectives.recipe(settings, count)
    speed = estimate.measure(
        ws.params.backbone, size, batch, threads=ws.params.cpu_threads, precision=recipe.precision
    )
    steps, test = recipe.steps * recipe.accumulate, images.get("test", 0)
    validations = (recipe.steps // recipe.eval_every if recipe.eval_every else 0) + 1
    files = sum(images.values()) + (kept or 0) * PER_CLASS * ws.by_class
    reading: dict[str, float | str] = {
        f"reading {files:,} pictures": estimate.seconds(speed, decoded=files)
    }
    if kept is None and ws.by_class:
        reading = {"reading the pictures": "known once classes are selected"}
    train = estimate.seconds(
        speed, trained=steps * batch, evaluated=validations * images.get("val", 0)
    )
    return {
        **reading,
        f"features of {images['train']:,}": estimate.seconds(speed, embedded=images["train"]),
        f"training, {steps:,} steps of {batch} images": train,
        f"testing on {test:,}": estimate.seconds(speed, evaluated=test),
    }, f"{speed.device}, {speed.threads} threads"


def _classes_of(ws: Workspace, name: str) -> int:
    """How many classes a data set has, whose images can be counted."""
    summary = ws.data(name).with_suffix(".json")
    if summary.is_file():
        return int(storage.read_json(summary)["classes"])
    module, settings = config.known_dataset(ws.params, name)
    if card := card_of(module):
        return card.classes
    return len({label for _, label, _ in folder_kind.found(settings, silently, ws.root).rows})
