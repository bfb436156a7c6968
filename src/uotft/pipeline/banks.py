"""Banks that travel: made of images or of a classifier, and selected from.

Such a bank names the weights that made it, and is refused beside means of others.

    uotft bank make --images photos --backbone resnet18 --output photos.safetensors
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Files, Pixels, Progress, Selection
from uotft.core.text import plural
from uotft.data import archives
from uotft.data.datasets import folder as folder_kind
from uotft.data.pixel_cache import content_of, in_parts, square
from uotft.models import embedding, model_io, weights
from uotft.models.inputs import views
from uotft.models.network import Network
from uotft.models.weights import Pretrained
from uotft.pipeline import readers
from uotft.pipeline.bank_files import check_name
from uotft.pipeline.bank_weights import classifier_rows, made_with, pretrained
from uotft.pipeline.select import IMAGENET, Extras, select_means
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, features, transport
from uotft.selection.choosing import Request
from uotft.training import runtime

SHARE = 0.875  # of a picture's shorter side that the network sees, as in the paper's scripts
BATCH = 64  # images

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
    check_name(output)
    settings = folder(images, size)  # checked before weights are downloaded
    bank, line = _embedded(pretrained(backbone), backbone, settings, progress)
    banks.write(output, bank)
    return f"{output}: {line}, weights {bank.weights[:12]}"


def make_of_classifier(backbone: str, output: Path) -> str:
    """Write the rows of a pre-trained classifier; returns a line for the user."""
    check_name(output)
    bank = _rows(pretrained(backbone), backbone)
    banks.write(output, bank)
    return (
        f"{output}: {len(bank.names)} rows of the classifier of {bank.means.shape[1]} features, "
        f"weights {bank.weights[:12]}"
    )


def make_of_dataset(ws: Workspace, dataset: str, output: Path) -> str:
    """Write the class means that a project has embedded; returns a line for the user."""
    check_name(output)
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


def select(
    sides: Sides, output: str, request: Request, extras: Extras, progress: Progress
) -> tuple[Selection, str]:
    """Select from a bank, or from a classifier's rows, for a folder of images or another bank."""
    source, backbone, found = None, sides.backbone, None
    target = banks.brought(sides.bank) if sides.bank else None
    photos = None if target else folder(sides.target, sides.size, apart=True)
    if sides.source.startswith(IMAGENET):
        named = sides.source.removeprefix(IMAGENET)
        if backbone not in ("", named):
            raise UserError(
                f"--backbone: got {backbone!r}, but --source-bank {sides.source} says it: leave "
                "out --backbone"
            )
        backbone, found = named, pretrained(named)
        source = _rows(found, named)
    else:
        source = banks.brought(sides.source)
    transport.check_lengths(source, getattr(request.settings, "metric", "cosine"))
    if photos is not None:
        if not backbone:
            raise UserError(
                f"--target: embedding {sides.target} needs --backbone, the one that made "
                f"{sides.source}"
            )
        found = found or pretrained(backbone)
        made_with(source, weights.fingerprint(found.backbone), f"--backbone {backbone}")
        target, line = _embedded(found, backbone, photos, progress)
        logger.info("%s: %s", sides.target, line)
    assert target is not None
    return select_means(source, target, output, request, extras)


def folder(images: str, size: int, *, apart: bool = False) -> folder_kind.Settings:
    """The settings of a folder of images.

    If it has no val and no test, all its images are for training; ``apart``: but those that a
    project would cut for val and test, so that a selection reads the same images as there.
    """
    path = Path(images).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{images}: no such folder, archive or list of images")
    shown: dict[str, Any] = {"size": size, "stored": round(size / SHARE), "share": SHARE}
    parts: dict[str, Any] = {} if apart else {"val": 0.0, "test": 0.0}
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
        embedder = Embedder(found, progress)
        parts = embedder.parts(shown)
        both, counts = features.class_means(parts, images.labels[rows], len(images.names))
        means, trunk = embedder.split(both)
    name = Path(settings.path).name
    line = (
        f"means of {plural(len(images.names), 'class')} of {means.shape[1]} features, from "
        f"{plural(len(rows), 'training image')}"
    )
    origin = (
        f"class means of {plural(len(rows), 'training image')} of {name} at {settings.size} "
        f"pixels, by {called(found, backbone)}"
    )
    made = weights.fingerprint(found.backbone)
    bank = ClassBank(means, tuple(images.names), counts, trunk=trunk, weights=made, origin=origin)
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


class Embedder:
    """A pre-trained network, which makes features of images some batches at a time.

    ``both``: selection compares ``size`` projected features, and heads see others (MoCo).
    """

    def __init__(self, found: Pretrained, progress: Progress) -> None:
        network = Network(found.backbone, target=1)
        self.context = Context(runtime.start(0, 0), progress=progress)
        self.network = network.to(self.context.accelerator.device)
        self.both = hasattr(found.backbone, "project")
        self.trunk = network.head("target").in_features

    def parts(self, images: Pixels) -> Iterator[NDArray[np.float32]]:
        """Consecutive parts of the features (n, D); with ``both`` (n, D + D')."""
        shards = features.cut(len(images), BATCH)
        made = embedding.shards(self.network, images, shards, self.context, batch_size=BATCH)
        for _, part in made:
            both = [embedding.projected(self.network, part), part] if self.both else [part]
            yield np.hstack(both)

    def split(self, means: NDArray[Any]) -> tuple[Any, Any]:
        """(what selection compares, what heads see if it is another), in float32."""
        size = means.shape[1] - self.trunk if self.both else means.shape[1]
        return _half(means[:, :size]), _half(means[:, size:]) if self.both else np.empty((0, 0))


def _half(means: NDArray[Any]) -> Any:
    """In half the bytes, since features have no more digits."""
    return means.astype(np.float32)


def _rows(found: Pretrained, backbone: str) -> ClassBank:
    rows = classifier_rows(found.classifier, weights.fingerprint(found.backbone), backbone)
    return replace(rows, origin=f"rows of the classifier of {called(found, backbone)}")


def called(found: Pretrained, backbone: str) -> str:
    """The backbone and its file, without folders: a bank goes to other machines."""
    name = ":".join(backbone.split(":")[: 1 + backbone.startswith("timm:")])
    return f"{name} ({found.origin['file']})"


@contextmanager
def _unpacking(settings: folder_kind.Settings) -> Iterator[Path]:
    """Where an archive of images is unpacked: in the project around here, else for now only."""
    here = Workspace.nearest()
    if (here / "params.yaml").is_file() or not settings.path.lower().endswith(archives.SUFFIXES):
        yield here
        return
    with TemporaryDirectory(prefix="uotft-") as place:
        yield Path(place)
