"""What a training from a name will fetch and take, said before anything is made.

uotft train --dataset dogs --dry-run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uotft.core import config, disk, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.progress import duration
from uotft.core.records import Cell, silently
from uotft.core.text import plural
from uotft.data import archives, class_downloads, downloads
from uotft.data.archives import card_of
from uotft.data.datasets import folder as folder_kind
from uotft.data.pixel_cache import WHOLE
from uotft.pipeline import compatible, cost, fetch, image_places
from uotft.pipeline.workspace import Workspace
from uotft.runs import estimate, outlook, to_fetch
from uotft.runs.to_fetch import Item, Needs, short
from uotft.training import objectives

PER_CLASS = 1_281  # training images of a class of ImageNet, on average
LONG_S = 6 * 3600  # a part that takes longer is worth a hint
NETWORK = 10_000_000  # bytes a second, for a feeling of how long a download takes
Times = dict[str, float | str]  # {part: seconds, or why they are unknown}
Counts = dict[str, dict[str, int]]  # {data set: {part: number of images}}


@dataclass(frozen=True)
class Plan:
    """The downloads of trainings, and how long their parts take.

    ``made`` are the bytes that the project in ``root`` takes for unpacked archives and decoded
    pictures; ``advice`` makes a long training short.
    """

    root: Path
    title: str
    items: list[Item]
    there: list[str]
    made: int
    times: Times
    device: str
    advice: str = ""

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
            yield f"  to try it first: --subset shots=2 --set {self.advice}"
        yield "a command that is interrupted goes on where it stopped when it is given again"

    def need(self) -> str:
        """A line on the disk space that is needed and free; "" if no size is known.

        Raises `UserError` if it is too little. Folders on one disk share its space.
        """
        wanted = {item.place: 0 for item in self.items}
        for item in self.items:
            wanted[item.place] += item.size
        disks: dict[int, dict[Path, int]] = {}
        for place, size in {**wanted, self.root: self.made}.items():
            disks.setdefault(disk.device(place), {})[place] = size
        lines = []
        for places in disks.values():
            sizes = {f"in {short(place)}": size for place, size in places.items() if size}
            if sizes:
                place = next(iter(places))
                lines.append(disk.need(sizes, place, "make room, or work on another disk"))
        return "; ".join(lines)


def plan(ws: Workspace, cells: Sequence[Cell], *, measured: bool = True) -> Plan:
    """The plan of some cells of one target, of a project that need not be there yet.

    Nothing is fetched. With ``measured``, a network of random weights says how fast this machine
    is, which takes seconds. Raises `UserError` if there is no such row.
    """
    target = cells[0].target
    found = to_fetch.needs(ws, cells)
    counts = {name: counted(ws, name) for name in to_fetch.sets(ws, target)}
    pictures = {name: sum(n.values()) for name, n in counts.items() if not _is_prepared(ws, name)}
    if ws.by_class:
        used = found.absent if _is_prepared(ws, ws.params.source) else found.classes
        pictures[ws.params.source] = (used or 0) * PER_CLASS
    times, device = Times(), ""
    if measured:
        times, device = _times(ws, cells, counts, found, sum(pictures.values()))
    made, first = found.unpacked + _pixels(ws, pictures), ws.of(cells[0].strategy)
    title = f"{short(ws.root)}: {ws.params.backbone['name']} on {target}, {_title(first, cells)}"
    length = "steps" if first.params.train.recipe.steps else "epochs"
    advice = f"train.recipe.{length}=10"
    return Plan(ws.root, title, found.items, found.there, made, times, device, advice)


def check(found: Plan, ws: Workspace, cells: Sequence[Cell]) -> None:
    """Raise `UserError` for what cannot work."""
    for each in checks(found, ws, cells).values():
        each()


def checks(found: Plan, ws: Workspace, cells: Sequence[Cell]) -> dict[str, Callable[[], object]]:
    """What has to hold before trainings begin; each raises `UserError` if it does not."""
    target, strategies = cells[0].target, [*dict.fromkeys(cell.strategy for cell in cells)]

    def by_hand() -> None:
        for name in (target, ws.params.source):
            fetch.check_by_hand(ws, name)

    def images() -> None:
        absent = [item.what.partition(":")[0] for item in found.items if not item.urls]
        for name in to_fetch.sets(ws, target):
            if name in absent and not card_of(config.known_dataset(ws.params, name)[0]):
                image_places.must_be_there(ws, name)

    made = {
        "settings": lambda: compatible.check(ws, [target], strategies),
        "disk": found.need,
        "images": images,
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


def _is_prepared(ws: Workspace, name: str) -> bool:
    """Whether the pictures of a data set are read."""
    return ws.data(name).with_suffix(".json").is_file()


def _pixels(ws: Workspace, pictures: dict[str, int]) -> int:
    """The bytes of decoded pictures, {data set: their number}; only sets of files keep such."""
    settings = {name: config.known_dataset(ws.params, name)[1] for name in pictures}
    one = {name: getattr(found, "stored", 0) ** 2 * 3 for name, found in settings.items()}
    return sum(min(count * one[name], WHOLE) for name, count in pictures.items())


def _title(ws: Workspace, cells: Sequence[Cell]) -> str:
    """What of the source the trainings use."""
    source, cell = ws.params.source, cells[0]
    if len(cells) > 1:
        strategies = dict.fromkeys(each.strategy for each in cells)
        return f"{len(cells)} trainings: {', '.join(strategies)}"
    kept = to_fetch.kept(ws, cell)
    if kept == 0:
        return "without source images"
    what = "what" if kept is None else f"the {plural(kept, ws.params.select.unit)}"
    of = f"of {source} that {cell.strategy} keeps" if kept else f"{cell.strategy} keeps of {source}"
    why = outlook.unread(ws)
    return f"with {what} {of}{f'; {why}' if why else ''}"


def _times(
    ws: Workspace, cells: Sequence[Cell], counts: Counts, found: Needs, files: int
) -> tuple[Times, str]:
    """How long the parts take here that are still to be done, and on which device."""
    target, source = cells[0].target, ws.params.source
    if not counts[target]:
        return {"all of it": f"known once {target} is prepared"}, ""
    first = ws.of(cells[0].strategy)
    size, train = config.dataset_settings(ws.params, target).size, first.params.train
    batch = config.images_a_step(first.params, keeps=config.keeps(first.params, cells[0].strategy))
    speed = estimate.measure(
        ws.params.backbone, size, batch, threads=ws.params.cpu_threads,
        precision=train.recipe.precision,
    )  # fmt: skip
    times = Times()
    if ws.by_class and found.absent is None:
        times["reading the pictures"] = "known once classes are selected"
    elif files:
        times[f"reading {files:,} pictures"] = estimate.seconds(speed, decoded=files)
    if counts.get(source):
        times |= _pretraining(ws, counts[source]["train"], speed)
    elif source in counts:
        times[f"all of {source}"] = "known once it is prepared"
    embedded = sum(n["train"] for name, n in counts.items() if n and not ws.features(name).exists())
    if embedded:
        times[f"features of {embedded:,}"] = estimate.seconds(speed, embedded=embedded)
    times |= _trainings(ws, cells, counts[target], speed)
    return times, f"{speed.device}, {speed.threads} threads"


def _pretraining(ws: Workspace, images: int, speed: estimate.Speed) -> Times:
    """The training of a network that has no weights, on the source."""
    made = (ws.pretrained() / "model.safetensors").is_file()
    if made or compatible.brings_weights(ws.params.backbone):
        return {}
    settings = ws.params.pretrain
    recipe = settings.recipe.counted(images, settings.batch_size)
    batch = settings.batch_size * recipe.accumulate
    part = f"pre-training, {recipe.steps:,} steps of {batch} images"
    return {part: estimate.seconds(speed, trained=recipe.steps * batch)}


def _trainings(
    ws: Workspace, cells: Sequence[Cell], images: dict[str, int], speed: estimate.Speed
) -> Times:
    """The trainings themselves, one after the other, and their tests."""
    count = outlook.labelled(ws, images["train"], lambda: _classes_of(ws, cells[0].target))
    named, trained, took = "", 0, 0.0
    for cell in cells:
        params, seen = ws.of(cell.strategy).params, cost.images(ws, cell.strategy, count)
        recipe = objectives.recipe(params.train, count)
        keeps = config.keeps(params, cell.strategy)
        batch = config.images_a_step(params, keeps=keeps) * recipe.accumulate
        checks = (recipe.steps // recipe.eval_every if recipe.eval_every else 0) + 1
        named, trained = f"training, {recipe.steps:,} steps of {batch} images", trained + seen
        took += estimate.seconds(speed, trained=seen, evaluated=checks * images.get("val", 0))
    if len(cells) > 1:
        named = f"{len(cells)} trainings one after the other, {trained:,} images"
    tested = images.get("test", 0) * len(cells)
    times = Times({named: took} if trained else {})
    if tested:
        times[f"testing on {tested:,}"] = estimate.seconds(speed, evaluated=tested)
    return times


def _classes_of(ws: Workspace, name: str) -> int:
    """How many classes a data set has, whose images can be counted."""
    summary = ws.data(name).with_suffix(".json")
    if summary.is_file():
        return int(storage.read_json(summary)["classes"])
    module, settings = config.known_dataset(ws.params, name)
    if card := card_of(module):
        return card.classes
    return len({label for _, label, _ in folder_kind.found(settings, silently, ws.root).rows})
