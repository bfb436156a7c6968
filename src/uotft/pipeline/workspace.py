"""The settings of a clone or project, and where each stage keeps its files."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, environment, paths, storage
from uotft.core.errors import UserError
from uotft.core.records import FEATURES_INDEX, Cell, ImageSet
from uotft.core.settings import Params

logger = logging.getLogger(__name__)

UPSTREAM = (
    "source_means=",
    "source_fraction=",
    "cluster.",
    "select.unit=",
)  # settings that decide the units
LONGEST = 100  # letters of a variant's folder


@dataclass(frozen=True)
class Workspace:
    """The settings of a clone or project, and where each stage keeps its files."""

    root: Path
    params: Params
    overrides: tuple[str, ...] = ()

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The workspace around ``start``, by default the current folder; see `nearest`."""
        root = cls.nearest(start)
        return cls(root, config.load(root))

    @staticmethod
    def nearest(start: Path | None = None) -> Path:
        """``start``, or the nearest folder above it, with a params.yaml; without one, itself."""
        here = start or Path.cwd()
        found = (folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file())
        return next(found, here)

    @property
    def tracking(self) -> Path:
        """The folder with mlflow.db, mlruns/ and unsent/, which several projects can share.

        DVC runs queued experiments in copies of the project; their runs go to the original's store.
        """
        root = Path(environment.dvc_experiment().get("root", self.root))
        return paths.located(root, self.params.tracking).resolve()

    @property
    def project(self) -> str:
        """What runs in a store elsewhere name this project: its path from there; "" in its own."""
        root = Path(environment.dvc_experiment().get("root", self.root)).resolve()
        return "" if root == self.tracking else os.path.relpath(root, self.tracking)

    @classmethod
    def with_store(cls, start: Path | None = None) -> tuple[Path, Workspace | None]:
        """The store of the project around the current folder, and the project.

        Or, if it is nearer, a store that projects share, in a folder without a params.yaml; and
        None.
        """
        here = start or Path.cwd()
        for folder in (here, *here.parents):
            if (folder / "params.yaml").is_file():
                ws = cls(folder, config.load(folder))
                return ws.tracking, ws
            if any((folder / name).exists() for name in ("mlflow.db", "unsent")):
                return folder, None
        if environment.tracking_uri():
            return here, None
        raise UserError(
            f"{here}: no project (params.yaml) and no tracking store (mlflow.db), here or above: "
            "run this where `uotft train` was run, or set MLFLOW_TRACKING_URI"
        )

    def with_changes(self, overrides: Sequence[str]) -> Workspace:
        """The workspace with other settings, SETTING=VALUE each; itself without overrides.

        Its cells are in variants/OVERRIDES/, since DVC manages those of params.yaml.
        """
        if not overrides:
            return self
        params, spelled = config.changed(self.params, overrides)
        return replace(self, params=params, overrides=spelled)

    def of(self, strategy: str) -> Workspace:
        """The workspace with the settings of the rows of one strategy or control; same folders."""
        return replace(self, params=config.of_strategy(self.params, strategy))

    @property
    def variant(self) -> str:
        """The folder of cells with other settings than params.yaml, or "" if there are none."""
        return _folder(self.overrides)

    @property
    def by_class(self) -> bool:
        """Whether the source's images are fetched by class, once classes have been selected."""
        module, _ = config.known_dataset(self.params, self.params.source)
        return getattr(module, "BY_CLASS", False)

    def note_overrides(self) -> None:
        """Write a variant's overrides to its folder, since the folder's name may be cut off."""
        for folder in {self.variant, self.upstream} - {""}:
            overrides = self.overrides if folder == self.variant else self._above
            storage.write_json(self.root / folder / "overrides.json", {"set": [*overrides]})

    @property
    def _above(self) -> tuple[str, ...]:
        return tuple(text for text in self.overrides if text.startswith(UPSTREAM))

    @property
    def upstream(self) -> str:
        """The folder of a variant with its own units, or "" if it uses those of params.yaml."""
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
        """What selection compares: the source's units, or the index of a target's features."""
        if dataset == self.params.source:
            return self.root / self.upstream / "embeddings" / f"{dataset}.npz"
        return self.features(dataset) / FEATURES_INDEX

    def overlap(self, target: str) -> Path:
        """The file that lists the target's test images that are also in the source."""
        return self.root / "overlap" / f"{target}.json"

    def cell(self, kind: str, cell: Cell) -> Path:
        """The folder of one cell of the matrix; ``kind`` is selections or models."""
        return self.root / self.variant / kind / cell.target / cell.strategy / str(cell.seed)

    def unfinished(self, made: Path) -> Path:
        """Where a training keeps checkpoints, or an embedding its shards, until ``made`` exists.

        They cannot be inside ``made``: DVC removes a stage's outputs before it runs the stage.
        """
        return self.root / "unfinished" / made.relative_to(self.root)

    def forecast(self, target: str) -> Path:
        """The file with delta^2 of every selection on a target."""
        return self.root / "forecast" / f"{target}.json"

    def metrics(self, target: str, strategy: str) -> Path:
        """The file with the test metrics of all seeds of one strategy."""
        return self.root / self.variant / "metrics" / target / f"{strategy}.json"

    def predictions(self, target: str, strategy: str) -> Path:
        """The file with the class that each seed's model predicts for each test image."""
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
        """The rows of a part of a data set. Raises `UserError` if there are none."""
        if len(rows := images.rows(part)):
            return rows
        adjective = {"train": "training", "val": "validation"}.get(part, part)
        other = ", or a class with two training images, so that one can be cut for val"
        raise UserError(
            f"{self.data(dataset)} has no {adjective} image: a folder needs a {part}/"
            f"{other if part == 'val' else ''}"
        )

    def prepared_as(self, dataset: str) -> dict[str, Any]:
        """The settings that a data set is prepared with: its whole section, with defaults."""
        module, settings = config.known_dataset(self.params, dataset)
        return {"kind": module.__name__.rpartition(".")[2], **settings.model_dump(mode="json")}

    def decoding(self, dataset: str, images: ImageSet) -> ImageSet:
        """The set with pixels: image files are decoded on first use and kept in cache/."""
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
    """variants/OVERRIDES, cut and with a digest if too long or with a slash; "" without any."""
    if not overrides:
        return ""
    name = ",".join(overrides)
    if len(name) > LONGEST or "/" in name:
        name = f"{name[:LONGEST].replace('/', '_')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"variants/{name}"
