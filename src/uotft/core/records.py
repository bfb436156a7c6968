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

FEATURES_INDEX = "index.npz"  # in a folder of features: labels, names and means of its rows
EQUAL = "equal_compute"  # the control that sees as many images as rows with reuse
BASELINES = ("none", "random", EQUAL)  # the rows that others are compared with; EQUAL: with reuse
Floats = NDArray[np.float64]
Content = bytes  # inside `Files`, the name `bytes` is a column

Log = Callable[[int, dict[str, float]], None]  # (step, {name: number})
Progress = Callable[..., Any]  # (items, label) -> the items, with a bar while they are consumed
Stop = Callable[[], bool]  # whether the work should end


def never() -> bool:
    """Never stop."""
    return False


def ignore(step: int, numbers: dict[str, float]) -> None:
    """Log nothing."""


def silently(items: Any, label: str) -> Any:
    """Show no bar."""
    return items


@dataclass(frozen=True)
class Cell:
    """One training of a comparison: a target, a selection strategy and a seed."""

    target: str
    strategy: str
    seed: int

    def __str__(self) -> str:
        return f"{self.target}-{self.strategy}-{self.seed}"


class Settings(BaseModel):
    """A section of params.yaml. Unknown keys and wrong types are errors; no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Pixels(Protocol):
    """uint8 images, indexed by row: an array, or files that are decoded on demand.

    ``shape`` is (n, H, W) or (n, H, W, 3).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Files:
    """Image files below ``root``, a folder of this machine; how pixels are stored and cropped.

    ``paths`` (n,) are as in the file system, ``bytes`` (n,) and ``sha256`` (n, 32) of the files,
    ``sizes`` (n, 2) height and width of the upright pictures. Whatever a picture's shape, its
    pixels are stored as a square of side ``stored``. Tests use the centred square whose side is
    ``share`` of the shorter side, scaled to ``size``. ``unreadable`` files are an error, or are
    skipped and counted.
    ``background`` is the colour behind transparent pixels, or "none": transparency is then ignored,
    as in sets prepared before this setting. ``white`` is the value of white in 16-bit grey, or 0.

    For files inside uncompressed tar files, ``archives`` (n,) are the tars' paths below ``root``
    and ``offsets`` (n,) the positions of the files' first bytes; else both are empty.
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
    background: str = "none"
    white: int = 0
    archives: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, "S1"))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def path(self, row: int) -> Path:
        """The file of a row; for one inside a tar, TAR/FILE."""
        name = os.fsdecode(self.paths[row])
        if not len(self.archives):
            return Path(self.root, name)
        return Path(self.root, os.fsdecode(self.archives[row]), name.lstrip("/"))

    def content(self, row: int) -> Content:
        """The bytes of a row's file. Uses no Path: that would make small files 50 % slower."""
        inside = len(self.archives) > 0
        name = self.archives[row] if inside else self.paths[row]
        with open(os.path.join(os.fsencode(self.root), name), "rb", buffering=0) as file:
            if inside:
                return os.pread(file.fileno(), int(self.bytes[row]), int(self.offsets[row]))
            return file.readall()


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    ``images`` are uint8, grey (n, H, W) or colour (n, H, W, 3); ``labels`` (n,); ``splits`` (n,) of
    train, val and test; ``files`` if the images are files on disk. ``notes`` are lines for the
    user: what was left out and why, and what looks wrong.
    """

    images: Pixels
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    names: tuple[str, ...]
    files: Files | None = None
    notes: tuple[str, ...] = ()

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of one split (train, val or test), in ascending order."""
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True)
class ClassBank:
    """Class means: ``means`` (classes, D), with one entry of ``names`` and ``counts`` per row.

    Fingerprints: ``backbone`` of the network that made the features, ``data`` of data/NAME.npz with
    the images, ``features`` of the index of the features. ``file`` is where the bank was read from.
    Each is empty if unknown.

    A row of a source may also be a cluster or a single image, as ``unit`` says. ``members`` (n,) is
    the row of each training image. If rows are images, ``labels`` are the names of their classes.
    ``trunk`` (classes, D') are means of the features that heads read, if selection compares others
    (``project`` in docs/extending.md); else it is empty.

    A bank that travels has ``weights``, the fingerprint of the backbone's tensors alone, which is
    the same in every project, and ``origin``, a line on where it came from. With ``classifier`` its
    rows are those of a linear classifier: directions, whose lengths compare with no feature's.
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
    weights: str = ""
    origin: str = ""
    classifier: bool = False

    def head_means(self) -> Floats:
        """The means that a linear head can start from."""
        return self.trunk if len(self.trunk) else self.means


@dataclass(frozen=True)
class SourcePart:
    """The source images of a selection: ``rows`` of ``data``, with ``labels`` 0..k-1.

    Label i has the name ``names[i]`` and is source class ``classes[i]``; with clusters, ``classes``
    is empty. A head can start from ``means`` (k, D). ``backbone`` is the fingerprint of the network
    that made the features. ``held_out`` are rows (v,) of ``data`` that are not trained on, and the
    pre-trained classifier's row (v,) of each one's class.
    """

    data: ImageSet
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    classes: NDArray[np.int64]
    means: Floats
    backbone: str
    held_out: tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Scores:
    """One score per source class: higher is better, and a class with -inf is never kept.

    ``log_plan`` returns log P (rows, T) of some source rows; None if the strategy has no plan.
    """

    values: Floats
    log_plan: Callable[[Any], Floats] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The kept source classes, best first, and the scores of all.

    If rows are images, ``labels`` are the names of their classes.
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
    """The predictions of one model on test images.

    ``rows`` (n,) are rows of data/NAME.npz, whose SHA-256 is ``data``. ``labels`` (n,) and
    ``predicted`` (n,) are indices into ``names``.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    names: tuple[str, ...]
    data: str


@dataclass(frozen=True)
class Origin:
    """The MLflow run that made a model: its id, start (ms since 1970), duration and versions.

    ``seconds`` includes interruptions; ``versions`` are the run's tags git.* and dvc.*.
    """

    run: str = ""
    started: int = 0
    seconds: float = float("nan")
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One finished training, read from the pipeline's files or from MLflow.

    ``test`` has ``top1`` and ``mean_per_class`` in percent; ``settings`` are the run's parameters,
    named as in MLflow; ``curve`` validation top-1 by step; ``selection`` the content of
    selection.json; ``plan_KT`` the transport plan of the kept units, if there is one. ``warning``
    says what is wrong with its end, "" if nothing is (analysis/endings.py).
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
    warning: str = ""

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The kept units, best first: rank, name, row, score."""
        return list(self.selection.get("classes", []))
