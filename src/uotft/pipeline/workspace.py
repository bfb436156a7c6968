"""A clone's settings, and where each stage keeps its files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import FEATURES_INDEX, Cell, ImageSet
from uotft.core.settings import Params

logger = logging.getLogger(__name__)

UPSTREAM = ("source_fraction=", "cluster.", "select.unit=")  # what decides the units
LONGEST = 100  # letters of a variant's folder


@dataclass(frozen=True)
class Workspace:
    """A clone's settings, and where each stage keeps its files."""

    root: Path
    params: Params
    overrides: tuple[str, ...] = ()

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The workspace around ``start``, by default the current folder: see `nearest`."""
        root = cls.nearest(start)
        return cls(root, config.load(root))

    @staticmethod
    def nearest(start: Path | None = None) -> Path:
        """``start``, or the nearest folder above it, with a params.yaml; without one, itself."""
        here = start or Path.cwd()
        found = (folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file())
        return next(found, here)

    def with_changes(self, overrides: Sequence[str]) -> Workspace:
        """The same with other settings, SETTING=VALUE each; without overrides, itself.

        Its cells lie in variants/OVERRIDES/, since those of params.yaml are DVC's.
        """
        if not overrides:
            return self
        params, spelled = config.changed(self.params, overrides)
        return replace(self, params=params, overrides=spelled)

    @property
    def variant(self) -> str:
        """The folder of the cells with other settings than those of params.yaml, or ""."""
        return _folder(self.overrides)

    def note_overrides(self) -> None:
        """Say in a variant's folder which overrides it was made with: its name may be cut."""
        for folder in {self.variant, self.upstream} - {""}:
            overrides = self.overrides if folder == self.variant else self._above
            storage.write_json(self.root / folder / "overrides.json", {"set": [*overrides]})

    @property
    def _above(self) -> tuple[str, ...]:
        return tuple(text for text in self.overrides if text.startswith(UPSTREAM))

    @property
    def upstream(self) -> str:
        """The folder of a variant with units of its own, or "": others differ downstream alone."""
        return _folder(self._above)

    def data(self, dataset: str) -> Path:
        """The images of a data set."""
        return self.root / "data" / f"{dataset}.npz"

    def pretrained(self) -> Path:
        """The folder of the backbone pre-trained on the source."""
        return self.root / "pretrained" / self.params.source

    def features(self, dataset: str) -> Path:
        """The folder of the features of every training image of a data set."""
        return self.root / "embeddings" / f"{dataset}-images"

    def embedding(self, dataset: str) -> Path:
        """What selection compares: the units of the source, the index of a target's features."""
        if dataset == self.params.source:
            return self.root / self.upstream / "embeddings" / f"{dataset}.npz"
        return self.features(dataset) / FEATURES_INDEX

    def overlap(self, target: str) -> Path:
        """Which of the target's test images are in the source too."""
        return self.root / "overlap" / f"{target}.json"

    def cell(self, kind: str, cell: Cell) -> Path:
        """The folder of one cell of the matrix; ``kind`` is selections or models."""
        return self.root / self.variant / kind / cell.target / cell.strategy / str(cell.seed)

    def unfinished(self, made: Path) -> Path:
        """Where a training keeps checkpoints, or an embedding shards, until ``made`` is there.

        DVC removes what a stage makes before it runs the stage, so they cannot be in there.
        """
        return self.root / "unfinished" / made.relative_to(self.root)

    def forecast(self, target: str) -> Path:
        """delta^2 of every selection on a target, before any training."""
        return self.root / "forecast" / f"{target}.json"

    def metrics(self, target: str, strategy: str) -> Path:
        """Test metrics of all seeds of one strategy."""
        return self.root / self.variant / "metrics" / target / f"{strategy}.json"

    def predictions(self, target: str, strategy: str) -> Path:
        """The class that each seed's model of one strategy predicts for each test image."""
        return self.root / self.variant / "predictions" / target / f"{strategy}.npz"

    def seeds(self, target: str, strategy: str) -> list[int]:
        """The seeds of a strategy: those of params.yaml, or those that a variant has."""
        if not self.variant:
            return self.params.seeds
        cells = self.cell("models", Cell(target, strategy, 0)).parent
        found = sorted(int(path.parent.name) for path in cells.glob("*/model.json"))
        if not found:
            raise UserError(f"{cells}: no model yet; `uotft train --set …` makes them")
        return found

    def rows(self, dataset: str, images: ImageSet, part: str) -> NDArray[np.int64]:
        """The rows of a part of a data set, which must have some."""
        if len(rows := images.rows(part)):
            return rows
        word = {"train": "training", "val": "validation"}.get(part, part)
        needed = " or a class with two training images, of which one can be cut off"
        raise UserError(
            f"{self.data(dataset)} has no {word} image: a folder needs a {part}/"
            f"{',' + needed if part == 'val' else ''}"
        )

    def prepared_as(self, dataset: str) -> dict[str, Any]:
        """The settings that decide what a data set is: all of its section, defaults too."""
        module, settings = config.known_dataset(self.params, dataset)
        return {"kind": module.__name__.rpartition(".")[2], **settings.model_dump(mode="json")}

    def decoding(self, dataset: str, images: ImageSet) -> ImageSet:
        """The set whose files, if it is one of files, give pixels; they are kept in cache/."""
        if images.files is None:
            return images
        from uotft.data.pixel_cache import Store

        files = images.files
        held = hashlib.sha256(files.paths.data)
        held.update(files.sha256.data)
        if (files.background, files.white) != ("none", 0):
            held.update(f"{files.background} {files.white}".encode())
        folder = self.root / "cache" / dataset / f"{files.stored}-{held.hexdigest()[:16]}"
        return replace(images, images=Store(files, folder))


def _folder(overrides: tuple[str, ...]) -> str:
    """variants/OVERRIDES, cut and with a digest where that is no folder's name; "" without any."""
    if not overrides:
        return ""
    name = ",".join(overrides)
    if len(name) > LONGEST or "/" in name:
        name = f"{name[:LONGEST].replace('/', '_')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"variants/{name}"
