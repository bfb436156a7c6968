"""A pool: the features of all training images of a data set <-> a folder, joined from shards.

    FOLDER/features.npy   (n, D): the features that selection compares
    FOLDER/trunk.npy      (n, D'): the features that heads read, if they are others (``project``)
    FOLDER/index.npz      of rows and classes: labels, names, class means, fingerprints

The arrays are npy files because these can be memory-mapped. Processes write shards of a few batches
each. `join` then copies one shard after the other and sums class means on the way. So only one
shard is in memory, and the sums are bitwise those of one pass over all images in order.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import FEATURES_INDEX, Floats

INDEX = FEATURES_INDEX
ARRAYS = ("features", "trunk")
RECIPE = 1  # increase it when new code gives other features for the same images and weights
SHARDS = "float32"  # whatever dtype the pool has: pretrain makes class means of them
BATCHES = 4  # per shard: more mean fewer files, but a kill loses up to one shard per process


def cut(images: int, batch_size: int) -> list[range]:
    """The rows of each shard: whole batches, independent of the number of processes."""
    size = BATCHES * batch_size
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


def missing(folder: Path, shards: list[range]) -> list[range]:
    """The ``shards`` that are missing from ``folder`` or damaged."""

    there = _files(folder)

    def whole(path: Path | None) -> bool:
        return path is not None and path.stem.endswith(storage.fingerprint(path))

    return [rows for rows in shards if not whole(there.get(_start(rows)))]


def keep(folder: Path, rows: range, arrays: dict[str, NDArray[np.float32]], dtype: str) -> None:
    """Write a shard: ``features`` (m, D) and perhaps ``trunk`` (m, D') of m rows.

    Its file name ends with its SHA-256, by which `missing` finds damage. A feature too large for
    ``dtype``, which `join` rounds to, is a ``UserError``.
    """
    kept: dict[str, Any] = {name: rounded(array, SHARDS) for name, array in arrays.items()}
    for array in kept.values():
        rounded(array, dtype)
    made = io.BytesIO()
    np.savez(made, **kept)
    content = made.getvalue()
    for damaged in folder.glob(f"{_start(rows)}-*.npz"):
        damaged.unlink()
    digest = hashlib.sha256(content).hexdigest()
    storage.write_bytes(folder / f"{_start(rows)}-{digest}.npz", content)


def join(
    folder: Path,
    shards: list[range],
    made: Path,
    labels: NDArray[np.int64],
    dtype: str,
    **index: Any,
) -> None:
    """Join all ``shards`` in ``folder`` to the pool ``made``; an error leaves ``made`` as it was.

    Features are rounded to ``dtype``. ``labels`` (n,) and ``index`` go into the index: ``rows`` of
    the data set, ``names`` of its classes, ``backbone``.
    """
    files = _all(folder, shards)
    new = made.with_name(f".{made.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed here
    try:
        for name in storage.read_arrays(files[0]):
            path = new / f"{name}.npy"
            parts = (rounded(storage.read_arrays(file)[name], dtype) for file in files)
            means, index["counts"] = _join(parts, path, labels, len(index["names"]))
            index |= {f"{name}_means": means, f"{name}_sha256": np.array(storage.fingerprint(path))}
        storage.write_arrays(new / INDEX, labels=labels, recipe=RECIPE, **index)
        if made.exists():
            shutil.rmtree(made)
        new.rename(made)
        storage.sync(made.parent)  # the caller deletes the shards next
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read(folder: Path, *, hashed: bool = True) -> dict[str, NDArray[Any]]:
    """The index of a pool, and its arrays as memory maps.

    With ``hashed``, reads each array once to compare its SHA-256 with the index; a difference is a
    ``UserError``.
    """
    index = read_index(folder)
    held = {name: folder / f"{name}.npy" for name in ARRAYS if f"{name}_sha256" in index}
    for name, path in held.items():
        if hashed and storage.fingerprint(path) != str(index[f"{name}_sha256"]):
            raise UserError(
                f"{path} is damaged: its SHA-256 is not the one in {INDEX}; delete {folder} and "
                "run dvc repro"
            )
    return index | {name: storage.mapped(path) for name, path in held.items()}


def read_index(folder: Path) -> dict[str, NDArray[Any]]:
    """The index of a pool; a ``UserError`` if another version's code made it (RECIPE)."""
    index = storage.read_arrays(folder / INDEX)
    if (made := int(index.get("recipe", 1))) != RECIPE:
        raise UserError(
            f"{folder} was made by another version of uotft (recipe {made}; this version has "
            f"{RECIPE}): run dvc repro --force"
        )
    return index


def class_means(
    parts: Iterable[NDArray[Any]], labels: NDArray[np.int64], classes: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Means (classes, D) in float64 and numbers of images (classes,), in one pass.

    ``parts`` are consecutive blocks of the images' features, and ``labels`` (n,) their labels.
    """
    counts = np.bincount(labels, minlength=classes)
    return class_sums(parts, labels, classes) / np.maximum(counts, 1)[:, None], counts


def class_means_of_shards(
    folder: Path, shards: list[range], labels: NDArray[np.int64], classes: int
) -> Floats:
    """Means (classes, D) of what heads read, from all ``shards`` in ``folder``."""
    arrays = (storage.read_arrays(file) for file in _all(folder, shards))
    return class_means((a.get("trunk", a["features"]) for a in arrays), labels, classes)[0]


def class_sums(parts: Iterable[NDArray[Any]], labels: NDArray[np.int64], classes: int) -> Floats:
    """Sums (classes, D) in float64, added in the order of the images."""
    sums, start = np.zeros((classes, 1)), 0
    for part in parts:
        if not start:
            sums = np.zeros((classes, part.shape[1]))
        own = labels[start : start + len(part)].tolist()
        for label, row in zip(own, part, strict=True):  # np.add.at is ten times slower
            sums[label] += row
        start += len(part)
    return sums


def _join(
    parts: Iterable[NDArray[Any]], path: Path, labels: NDArray[np.int64], classes: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Write one array of all shards to the npy ``path``; returns its class means and counts."""
    found = []

    def copied(file: BinaryIO) -> Iterator[NDArray[Any]]:
        for number, part in enumerate(parts):
            if not number:
                np.lib.format.write_array_header_1_0(file, {
                    "descr": np.lib.format.dtype_to_descr(part.dtype),
                    "fortran_order": False,
                    "shape": (len(labels), part.shape[1]),
                })  # fmt: skip
            file.write(part.tobytes())
            yield part

    storage.write(path, lambda file: found.append(class_means(copied(file), labels, classes)))
    return found[0]


def _files(folder: Path) -> dict[str, Path]:
    """{beginning of the name: file} of the shards that are there."""
    return {path.stem.rpartition("-")[0]: path for path in folder.glob("shard-*-*.npz")}


def _all(folder: Path, shards: list[range]) -> list[Path]:
    """The files of all ``shards``, in their order; a `UserError` if one is not there."""
    there = _files(folder)
    if lacking := [rows for rows in shards if _start(rows) not in there]:
        raise UserError(
            f"{folder} lacks {len(lacking)} of {len(shards)} shards of features: machines that "
            "make them together must share the folder; else give the same command again"
        )
    return [there[_start(rows)] for rows in shards]


def _start(rows: range) -> str:
    return f"shard-{rows.start:012}"


def rounded(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Features as ``dtype``; a `UserError` if one is too large for it."""
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError as error:
        raise UserError(
            f"params.yaml: embed.dtype: got {dtype!r}, whose largest value is "
            f"{np.finfo(dtype).max:g}, but features reach {np.abs(array).max():g}: choose float32"
        ) from error
