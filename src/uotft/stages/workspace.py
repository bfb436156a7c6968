"""A clone's settings, and where each stage keeps its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uotft import config, store
from uotft.records import ImageSet

Progress = Callable[..., Any]
Log = Callable[[int, dict[str, float]], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Workspace:
    """A clone's settings, and where each stage keeps its files."""

    root: Path
    params: config.Params

    @classmethod
    def find(cls) -> Workspace:
        """The workspace around the current folder: the nearest one with a params.yaml."""
        here = Path.cwd()
        found = (folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file())
        root = next(found, here)
        return cls(root, config.load(root))

    def data(self, dataset: str) -> Path:
        """The images of a data set."""
        return self.root / "data" / f"{dataset}.npz"

    def pretrained(self) -> Path:
        """The folder of the backbone pre-trained on the source."""
        return self.root / "pretrained" / self.params.source

    def features(self, dataset: str) -> Path:
        """Features of every training image of a data set."""
        return self.root / "embeddings" / f"{dataset}-images.npz"

    def embedding(self, dataset: str) -> Path:
        """What selection compares: the units of the source, features of a target's pool."""
        if dataset == self.params.source:
            return self.root / "embeddings" / f"{dataset}.npz"
        return self.features(dataset)

    def overlap(self, target: str) -> Path:
        """Which of the target's test images are in the source too."""
        return self.root / "overlap" / f"{target}.json"

    def cell(self, kind: str, target: str, strategy: str, seed: int) -> Path:
        """The folder of one cell of the matrix; ``kind`` is selections or models."""
        return self.root / kind / target / strategy / str(seed)

    def unfinished(self, made: Path) -> Path:
        """Where a training that is to make the folder ``made`` keeps checkpoints until then.

        DVC removes what a stage makes before it runs the stage, so they cannot be in there.
        """
        return self.root / "unfinished" / made.relative_to(self.root)

    def forecast(self, target: str) -> Path:
        """delta^2 of every selection on a target, before any training."""
        return self.root / "forecast" / f"{target}.json"

    def metrics(self, target: str, strategy: str) -> Path:
        """Test metrics of all seeds of one strategy."""
        return self.root / "metrics" / target / f"{strategy}.json"

    def images(self, dataset: str) -> ImageSet:
        """The prepared images of a data set; those of files are decoded when they are asked for."""
        return self.decoding(dataset, store.read_images(self.data(dataset)))

    def decoding(self, dataset: str, images: ImageSet) -> ImageSet:
        """The set whose files, if it is one of files, give pixels; they are kept in cache/."""
        if images.files is None:
            return images
        from uotft.pixels import Store

        files = images.files
        held = hashlib.sha256(files.paths.tobytes() + files.sha256.tobytes()).hexdigest()
        folder = self.root / "cache" / dataset / f"{files.stored}-{held[:16]}"
        return replace(images, images=Store(files, folder))
