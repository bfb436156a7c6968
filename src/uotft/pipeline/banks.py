"""Banks that travel: made of images or of a classifier, fetched, shown, and selected from.

Such a bank names the weights that made it, and is refused beside means of others.

    uotft bank make --images photos --backbone resnet18 --output photos.safetensors
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Files, Progress, Selection
from uotft.core.text import plural, some
from uotft.data import archives, downloads, wordnet
from uotft.data.archives import Archive
from uotft.data.datasets import folder as folder_kind
from uotft.data.pixel_cache import content_of, in_parts, square
from uotft.models import embedding, model_io, weights
from uotft.models.inputs import views
from uotft.models.network import Network
from uotft.models.weights import Pretrained
from uotft.pipeline import readers
from uotft.pipeline.select import Extras, select_means
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, features, transport
from uotft.selection.choosing import Request
from uotft.selection.classifier import classifier_bank
from uotft.training import runtime

IMAGENET = "imagenet:"  # before a backbone: the rows of its classifier, in place of a file
CLASSES = 1000  # of ImageNet's classifier
SHARE = 0.875  # of a picture's shorter side that the network sees, as in the paper's scripts
BATCH = 64  # images
HEX = re.compile(r"[0-9a-fA-F]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sides:
    """What a selection is made from.

    ``source`` is the file of a bank or imagenet:BACKBONE, ``target`` a folder of images, which
    ``backbone`` sees at ``size`` pixels; or ``bank`` is the file of the target's means.
    """

    source: str
    target: str = ""
    bank: str = ""
    backbone: str = ""
    size: int = 224


def make(images: str, backbone: str, size: int, output: Path, progress: Progress) -> str:
    """Write the class means of a folder's training images; returns a line for the user."""
    _packed(output)
    found = _pretrained(backbone)
    bank, line = _embedded(found, backbone, folder(images, size), progress)
    banks.write(output, bank)
    return f"{output}: {line}, weights {bank.weights[:12]}"


def make_of_classifier(backbone: str, output: Path) -> str:
    """Write the rows of a pre-trained classifier; returns a line for the user."""
    _packed(output)
    bank = _rows(_pretrained(backbone), backbone)
    banks.write(output, bank)
    return (
        f"{output}: {len(bank.names)} rows of the classifier of {bank.means.shape[1]} features, "
        f"weights {bank.weights[:12]}"
    )


def make_of_dataset(ws: Workspace, dataset: str, output: Path) -> str:
    """Write the class means that a project has embedded; returns a line for the user."""
    _packed(output)
    pool = readers.pool(ws, dataset)
    network, facts = model_io.read(ws.pretrained())
    images = len(pool["labels"])
    bank = ClassBank(
        _half(pool["features_means"]),
        tuple(pool["names"].tolist()),
        pool["counts"],
        trunk=_half(pool.get("trunk_means", np.empty((0, 0)))),
        weights=weights.fingerprint(network.backbone),
        origin=f"class means of {plural(images, 'training image')} of {dataset}, "
        f"by {facts['backbone']['name']}",
    )
    banks.write(output, bank)
    line = f"{output}: means of {plural(len(bank.names), 'class')}"
    return f"{line} of {bank.means.shape[1]} features, weights {bank.weights[:12]}"


def fetch(url: str, sha256: str, output: Path | None, progress: Progress) -> list[str]:
    """Download a bank and check it before it gets its name; returns what `show` says.

    A broken download resumes. ``sha256`` is its digest, as its publisher states it.
    """
    if not url.startswith(("https://", "http://")):
        raise UserError(f"bank fetch: got {url!r}; give an address that begins with https://")
    if not HEX.fullmatch(sha256):
        raise UserError(
            f"--sha256: got {sha256!r}; give the 64 digits that the bank's publisher states beside "
            "its address: a bank decides what is trained on, so no other is taken. If none is "
            "stated, ask for it; the publisher gets it by `sha256sum FILE`"
        )
    path = output or Path(url.partition("?")[0].rpartition("/")[2])
    _packed(path, "--output" if output else url)
    archive = Archive(path.name, "", 0, sha256.lower(), (url,))
    if path.is_file():
        if why := archive.wrong(path, progress):
            raise UserError(f"{path} is there already, and {why}: remove it, or name another "
                            "--output")  # fmt: skip
        return show(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    downloads.fetch(downloads.sized(archive, path.parent), path.parent, progress)
    try:
        return show(path)
    except UserError:
        path.unlink()
        raise


def show(path: Path) -> list[str]:
    """Lines on a bank: what its rows are, and whether they can be used."""
    bank = banks.brought(str(path))
    rows, size = bank.means.shape
    kind = "row of a classifier" if bank.classifier else f"mean of {_article(bank.unit)}"
    lines = [
        f"{path}: {rows:,} rows of {size:,} features ({bank.means.dtype}), each the {kind}",
        f"names: {some(bank.names)}",
    ]
    if not bank.classifier:
        few, many = bank.counts.min(), bank.counts.max()
        lines.append(f"images behind a row: {few:,} to {many:,}, {bank.counts.sum():,} in all")
    if len(bank.trunk):
        lines.append(f"for heads: as many rows of {bank.trunk.shape[1]:,} features")
    lines += [f"{name}: {getattr(bank, name)}" for name in ("origin", "weights", "backbone")
              if getattr(bank, name)]  # fmt: skip
    if not (bank.weights or bank.backbone):
        lines.append("weights: not stated, so nothing says which network made it")
    bad = np.flatnonzero(~np.isfinite(bank.means).all(1) | ~bank.means.any(1))
    if len(bad):
        names = some(f"{bank.names[row]!r} (row {row})" for row in bad.tolist())
        lines.append(f"rows that are NaN, infinite or all zero: {names}; a selection refuses them")
    else:
        lines.append("every row is finite, and none is all zero")
    return lines


def select(
    sides: Sides, output: str, request: Request, extras: Extras, progress: Progress
) -> tuple[Selection, str]:
    """Select from a bank, or from a classifier's rows, for a folder of images or another bank."""
    source, backbone, found = None, sides.backbone, None
    if sides.source.startswith(IMAGENET):
        named = sides.source.removeprefix(IMAGENET)
        if backbone not in ("", named):
            raise UserError(
                f"--backbone: got {backbone!r}, but --source-bank {sides.source} says it: leave "
                "out --backbone"
            )
        backbone, found = named, _pretrained(named)
        source = _rows(found, named)
    else:
        source = banks.brought(sides.source)
    transport.check_lengths(source, getattr(request.settings, "metric", "cosine"))
    if sides.bank:
        return select_means(source, banks.brought(sides.bank), output, request, extras)
    if not backbone:
        raise UserError(
            f"--target: embedding {sides.target} needs --backbone, the one that made {sides.source}"
        )
    found = found or _pretrained(backbone)
    made_with(source, weights.fingerprint(found.backbone), f"--backbone {backbone}")
    cut = folder(sides.target, sides.size, apart=True)
    target, line = _embedded(found, backbone, cut, progress)
    logger.info("%s: %s", sides.target, line)
    return select_means(source, target, output, request, extras)


def for_network(path: Path, folder: Path) -> ClassBank:
    """The bank in a file, for the network of ``folder`` (pretrained/SOURCE of a project).

    Refused if other weights made it; a bank that names none is taken with a warning. In the
    result, ``backbone`` is the network's fingerprint, as in all banks of that project.
    """
    network, facts = model_io.read(folder)
    bank = banks.brought(str(path))
    made_with(bank, weights.fingerprint(network.backbone), f"the network in {folder}")
    return replace(bank, backbone=facts["sha256"])


def made_with(bank: ClassBank, fingerprint: str, network: str) -> None:
    """Refuse a bank that other weights made; warn of one that names none."""
    if not banks.made_with(bank, fingerprint, network):
        logger.warning("%s does not name the weights that made it: nothing shows that %s did",
                       bank.file, network)  # fmt: skip


def classifier_of(found: Pretrained, backbone: str) -> ClassBank:
    """The rows of a classifier of ImageNet's 1000 classes, named `n01440764 tench`."""
    if found.classifier is None:
        raise UserError(
            f"backbone {backbone}: it has no classifier, so no rows can stand for class means; make "
            "a bank from images with `uotft bank make --images`, or fetch one that somebody "
            "published with `uotft bank fetch`"
        )
    weight, bias = (tensor.float().numpy() for tensor in found.classifier)
    if len(weight) != CLASSES:
        raise UserError(
            f"backbone {backbone}: its classifier has {len(weight):,} classes, and names are known "
            f"only of ImageNet's {CLASSES:,}; make a bank from images with `uotft bank make "
            "--images`"
        )
    names = tuple(f"{number} {name}" for number, name in wordnet.imagenet().items())
    return classifier_bank(weight, bias, names, weights.fingerprint(found.backbone))


def folder(images: str, size: int, *, apart: bool = False) -> folder_kind.Settings:
    """The settings of a folder of images.

    If it has no val and no test, all its images are for training; ``apart``: but those that a
    project would cut for val and test, so that a selection reads the same images as there.
    """
    path = Path(images).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{images}: no such folder, archive or list of images")
    shown: dict[str, Any] = {"size": size, "stored": round(size / SHARE), "share": SHARE}
    parts = {} if apart else {"val": 0.0, "test": 0.0}
    return folder_kind.Settings(path=str(path), **shown, **parts)


def _embedded(
    found: Pretrained, backbone: str, settings: folder_kind.Settings, progress: Progress
) -> tuple[ClassBank, str]:
    """The class means of a folder's training images, and a line on them."""
    with _unpacking(settings) as root:
        images = folder_kind.load(settings, progress, root)
        for note in images.notes:
            logger.warning("%s: %s", settings.path, note)
        rows = images.rows("train")
        assert images.files is not None
        shown = Shown(images.files, rows)
        means, trunk, counts = _means(
            found, shown, images.labels[rows], len(images.names), progress
        )
    name = Path(settings.path).name
    line = (
        f"means of {plural(len(images.names), 'class')} of {means.shape[1]} features, from "
        f"{plural(len(rows), 'training image')}"
    )
    origin = (
        f"class means of {plural(len(rows), 'training image')} of {name} at {settings.size} "
        f"pixels, by {_called(found, backbone)}"
    )
    made = weights.fingerprint(found.backbone)
    bank = ClassBank(
        means, tuple(images.names), counts, trunk=trunk, weights=made, origin=origin
    )
    return bank, line


class Shown:
    """Image files as tests see them, decoded when they are read and kept nowhere."""

    def __init__(self, files: Files, rows: NDArray[np.int64]) -> None:
        self.files, self.rows = files, rows
        self.shape = (len(rows), files.size, files.size, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: Any) -> NDArray[np.uint8]:
        files, rows = self.files, self.rows[part]

        def one(row: int) -> NDArray[np.uint8]:
            path, content = files.path(row), content_of(files, row)
            return square(content, files.stored, path, files.background, files.white)

        return views(in_parts(one, rows.tolist()), files.sizes[rows], files.share, files.size)


def _means(
    found: Pretrained,
    images: Shown,
    labels: NDArray[np.int64],
    classes: int,
    progress: Progress,
) -> tuple[Any, Any, NDArray[np.int64]]:
    """(what selection compares, what heads see if it is another), (classes, D) each, and counts."""
    network = Network(found.backbone, target=1)
    context = Context(runtime.start(0, 0), progress=progress)
    network = network.to(context.accelerator.device)
    shards = features.cut(len(images), BATCH)
    made = embedding.shards(network, images, shards, context, batch_size=BATCH)
    if not hasattr(found.backbone, "project"):
        means, counts = features.class_means((part for _, part in made), labels, classes)
        return _half(means), np.empty((0, 0)), counts
    both = (np.hstack([embedding.projected(network, part), part]) for _, part in made)
    means, counts = features.class_means(both, labels, classes)
    size = means.shape[1] - int(found.backbone.features)  # type: ignore[call-overload]
    return _half(means[:, :size]), _half(means[:, size:]), counts


def _half(means: NDArray[Any]) -> Any:
    """In half the bytes: features have no more digits."""
    return means.astype(np.float32)


def _pretrained(backbone: str) -> Pretrained:
    """The network of a --backbone, with its weights."""
    found = model_io.pretrained(config.backbone_section(backbone))
    if found is None:
        raise UserError(f"--backbone: {backbone} has no weights of its own; name one that has, "
                        "such as resnet18")  # fmt: skip
    return found


def _rows(found: Pretrained, backbone: str) -> ClassBank:
    rows = classifier_of(found, backbone)
    return replace(rows, origin=f"rows of the classifier of {_called(found, backbone)}")


def _called(found: Pretrained, backbone: str) -> str:
    """The backbone and its file, without folders: a bank goes to other machines."""
    name = ":".join(backbone.split(":")[: 1 + backbone.startswith("timm:")])
    return f"{name} ({found.origin['file']})"


def _article(unit: str) -> str:
    return f"{'an' if unit == 'image' else 'a'} {unit}"


def _packed(path: Path, what: str = "--output") -> None:
    if path.suffix not in (banks.PACKED, ".npz"):
        raise UserError(
            f"{what}: got {path}; a bank is a file that ends in {banks.PACKED} (or .npz): name it so"
        )


@contextmanager
def _unpacking(settings: folder_kind.Settings) -> Iterator[Path]:
    """Where an archive of images is unpacked: in the project around here, else for now only."""
    here = Workspace.nearest()
    if (here / "params.yaml").is_file() or not settings.path.lower().endswith(archives.SUFFIXES):
        yield here
        return
    with TemporaryDirectory(prefix="uotft-") as place:
        yield Path(place)
