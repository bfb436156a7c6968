"""The frozen records that packages pass to each other, and the callbacks that they call.

Axes: S source classes, T target classes, K kept classes, D features, n images, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

FEATURES_INDEX = "index.npz"  # in a folder of features: what belongs to rows and classes
BASELINES = ("none", "random")  # the strategies that the others are compared with
Floats = NDArray[np.float64]
Content = bytes  # `Files` has a column of that name


Log = Callable[[int, dict[str, float]], None]  # a step and its numbers
Progress = Callable[..., Any]  # (items, label) -> the items, with a bar while they are used up
Stop = Callable[[], bool]  # whether somebody wants the work to end


def never() -> bool:
    """Nobody wants the work to end."""
    return False


def ignore(step: int, numbers: dict[str, float]) -> None:
    """Log nothing."""


def silently(items: Any, label: str) -> Any:
    """Show no bar."""
    return items


@dataclass(frozen=True)
class Cell:
    """One training of a comparison: a target, how its source classes are selected, and a seed."""

    target: str
    strategy: str
    seed: int

    def __str__(self) -> str:
        return f"{self.target}-{self.strategy}-{self.seed}"


class Settings(BaseModel):
    """A section of params.yaml: unknown keys and wrong types are refused, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Pixels(Protocol):
    """What gives uint8 images by their row numbers: an array, or files that are decoded on demand.

    ``shape`` is (n, H, W) or (n, H, W, 3).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Files:
    """Image files below ``root``, a folder of this machine; how their pixels are kept and seen.

    ``paths`` (n,) as the file system has them, ``bytes`` (n,), ``sha256`` (n, 32), ``sizes`` (n, 2)
    height and width of the upright picture. A file's pixels are kept as a square of side
    ``stored``, whatever the picture's shape; tests see the centred square that is ``share`` of its
    shorter side, at side ``size``. ``unreadable`` files are an error, or are skipped and counted.

    Files inside uncompressed tar files: ``archives`` (n,) names the tar of each below ``root``,
    ``offsets`` (n,) where its bytes start there; both are empty where files stand alone.
    """

    root: str
    paths: NDArray[np.bytes_]
    bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    stored: int
    size: int
    share: float
    unreadable: Literal["error", "skip"] = "error"
    archives: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, "S1"))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def path(self, row: int) -> Path:
        """The file of a row; inside a tar, which it then names as if it were a folder."""
        name = os.fsdecode(self.paths[row])
        if not len(self.archives):
            return Path(self.root, name)
        return Path(self.root, os.fsdecode(self.archives[row]), name.lstrip("/"))

    def content(self, row: int) -> Content:
        """The bytes of a row's file; a Path would take half as long again, of a small one."""
        inside = len(self.archives) > 0
        name = self.archives[row] if inside else self.paths[row]
        with open(os.path.join(os.fsencode(self.root), name), "rb", buffering=0) as file:
            if inside:
                return os.pread(file.fileno(), int(self.bytes[row]), int(self.offsets[row]))
            return file.readall()


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: ``images`` uint8, grey (n, H, W) or colour (n, H, W, 3), ``labels`` (n,),
    ``splits`` (n,) of str; ``files`` where the images come from, if they are not held here.
    ``notes`` are lines for the user: what was left out and why, and what looks wrong."""

    images: Pixels
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    names: tuple[str, ...]
    files: Files | None = None
    notes: tuple[str, ...] = ()

    def rows(self, split: str) -> NDArray[np.int64]:
        """The row numbers of one split (train, val or test), ascending."""
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True)
class ClassBank:
    """Class means: ``means`` (classes, D), one ``names`` and ``counts`` entry a row.

    ``backbone`` is the fingerprint of the network that made them, ``data`` that of data/NAME.npz
    whose images they are of, ``features`` that of the index of those images' features, ``file``
    where they were read from; all are empty where nobody knows.

    A row of the source may also be a cluster or one image, as ``unit`` says. ``members`` (n,) is
    the row of each training image; ``labels`` names the class of each row that is an image.
    ``trunk`` (classes, D') are the means in the features that heads see, where a backbone selects
    by others (``project`` in docs/extending.md); empty where they are the same.
    """

    means: Floats
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    backbone: str = ""
    file: str = ""
    unit: str = "class"
    members: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    labels: tuple[str, ...] = ()
    trunk: Floats = field(default_factory=lambda: np.empty((0, 0)))
    data: str = ""
    features: str = ""

    def head_means(self) -> Floats:
        """The means that a linear head can start from."""
        return self.trunk if len(self.trunk) else self.means


@dataclass(frozen=True)
class SourcePart:
    """The source images that a selection means: ``rows`` of ``data``, with ``labels`` 0..k-1.

    ``names`` (k,) and ``classes`` (k,), the label's row among the source classes; where labels are
    clusters, ``classes`` is empty. ``means`` (k, D) are those that a head can start from,
    ``backbone`` the fingerprint of the network that made the features.
    """

    data: ImageSet
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    classes: NDArray[np.int64]
    means: Floats
    backbone: str


@dataclass(frozen=True)
class Scores:
    """One score per source class, higher is nearer; -inf is never kept.

    ``log_plan`` gives log P (rows, T) of some source rows, where the strategy has a plan.
    ``exact``: the strategy itself says which classes are kept, and K does not apply.
    """

    values: Floats
    log_plan: Callable[[Any], Floats] | None = None
    exact: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The source classes kept, in order of rank, and the scores of all.

    ``labels`` names the class of each row where rows are images.
    """

    strategy: str
    kept: NDArray[np.int64]
    names: tuple[str, ...]
    target_names: tuple[str, ...]
    scores: Scores
    settings: dict[str, Any]
    fingerprints: dict[str, str]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What one model said of test images: ``rows`` (n,) in data/NAME.npz, ``labels`` (n,) and
    ``predicted`` (n,), numbers of the classes ``names``; ``data`` is the SHA-256 of that file."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    names: tuple[str, ...]
    data: str


@dataclass(frozen=True)
class Origin:
    """The MLflow run that made a model: its id, its start (ms), how long it took, its versions.

    ``seconds`` are those of the whole run, any interruption included; ``versions`` are its tags
    git.* and dvc.*.
    """

    run: str = ""
    started: int = 0
    seconds: float = float("nan")
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One finished training, read from the pipeline's files or from MLflow alike.

    ``test`` holds ``top1`` and ``mean_per_class`` in percent, ``settings`` every parameter of the
    run by its name in MLflow, ``curve`` validation top-1 by step, ``selection`` what
    selection.json holds, ``plan_KT`` the plan of the kept units, where there is one.
    """

    target: str
    strategy: str
    seed: int
    test: dict[str, Any]
    settings: dict[str, str] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    plan_KT: Floats | None = None
    answers: Answers | None = None
    origin: Origin = field(default_factory=Origin)

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The units kept, best first: rank, name, row, score."""
        return list(self.selection.get("classes", []))
