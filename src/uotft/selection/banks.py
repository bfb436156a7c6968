"""Class means <-> files: the pipeline's own, and any that a user brings.

An npz with an array ``means`` (classes, D) is a bank; ``names`` and ``counts`` are optional, and so
is all that the pipeline adds. A plain npy is a bank of means, read as it is needed (memory-mapped).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ClassBank


class BadBank(UserError):
    """A file that is not a bank; the message names the file and, where there is one, the row."""


def write(path: Path, bank: ClassBank) -> None:
    """A bank as one npz."""
    storage.write_arrays(
        path,
        means=bank.means,
        names=np.array(bank.names),
        counts=bank.counts,
        backbone=np.array(bank.backbone),
        data=np.array(bank.data),
        features=np.array(bank.features),
        unit=np.array(bank.unit),
        members=bank.members,
        labels=np.array(bank.labels, np.str_),
        **({"trunk": bank.trunk} if len(bank.trunk) else {}),
    )


def brought(path: str) -> ClassBank:
    """A bank that a user names."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; an npz with an array 'means' is needed")
    return read(Path(path))


def read(path: Path) -> ClassBank:
    """A bank, checked: two axes, real numbers, at least one row, no name twice.

    Without names a row's name is its number, without counts its count is one. Whether the means
    are finite is asked where a cost is made of them.
    """
    arrays = {"means": storage.mapped(path)} if path.suffix == ".npy" else storage.read_arrays(path)
    if "means" not in arrays:
        held = ", ".join(arrays) or "nothing"
        raise BadBank(f"{path}: no array 'means' (classes x features); it holds {held}")
    means = arrays["means"]
    if means.ndim != 2 or means.dtype.kind not in "fiu":
        raise BadBank(
            f"{path}: means is an array of shape {means.shape} and type {means.dtype}; "
            "(classes, features) of real numbers is needed"
        )
    if not means.size:
        raise BadBank(f"{path}: the bank is empty, its means have shape {means.shape}")
    if means.dtype.kind != "f":
        means = means.astype(np.float64)
    classes = len(means)
    counts = _column(path, arrays, "counts", classes, np.ones(classes, np.int64))
    if counts.dtype.kind not in "fiu":
        raise BadBank(f"{path}: counts is an array of type {counts.dtype}; numbers are needed")
    names = _column(path, arrays, "names", classes, np.arange(classes)).astype(np.str_)
    _no_twins(path, names)
    return ClassBank(
        means=means,
        names=tuple(names.tolist()),
        counts=counts,
        backbone=str(arrays.get("backbone", "")),
        file=str(path),
        unit=str(arrays.get("unit", "class")),
        members=arrays.get("members", np.empty(0, np.int64)),
        labels=tuple(np.asarray(arrays.get("labels", ()), np.str_).tolist()),
        trunk=arrays.get("trunk", np.empty((0, 0))),
        data=str(arrays.get("data", "")),
        features=str(arrays.get("features", "")),
    )


def same_backbone(source: ClassBank, target: ClassBank) -> None:
    """Refuse features of two networks; where one bank does not say, nothing can be told."""
    if source.backbone and target.backbone and source.backbone != target.backbone:
        raise BadBank(
            f"{source.file or 'source'} and {target.file or 'target'} were made with different "
            f"backbones ({source.backbone[:12]}, {target.backbone[:12]}): embed both with one"
        )


def _column(
    path: Path, arrays: dict[str, NDArray[Any]], name: str, rows: int, default: NDArray[Any]
) -> NDArray[Any]:
    column = arrays.get(name, default)
    if column.shape != (rows,):
        raise BadBank(f"{path}: {name} has shape {column.shape} for {rows} rows of means")
    return column


def _no_twins(path: Path, names: NDArray[np.str_]) -> None:
    found, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        twin = int(np.flatnonzero(counts > 1)[0])
        rows = np.flatnonzero(names == found[twin])
        raise BadBank(
            f"{path}: the class name {str(found[twin])!r} stands there twice (rows {rows[0]} and "
            f"{rows[1]}); names tell classes apart"
        )
