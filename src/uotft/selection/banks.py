"""Class means <-> files: the pipeline's own, those that travel, and any that a user brings.

An npz with an array ``means`` (classes, D) is a bank; ``names`` and ``counts`` are optional, and so
are the arrays that the pipeline adds. A plain npy is a bank of means; it is memory-mapped. A
safetensors file holds the same: numbers as tensors, texts as JSON in its metadata, under ``KEY``
and with a SHA-256 of all. It has no other key, since the library writes several in any order.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Floats
from uotft.core.text import some

PACKED = ".safetensors"
KEY = "uotft_bank"  # in the metadata of a safetensors file: JSON
FORMAT = 1  # of that JSON
AGAIN = "fetch or make it again"

Arrays = dict[str, NDArray[Any]]


class BadBank(UserError):
    """A file that is not a bank; the message names the file and, where there is one, the row."""


def write(path: Path, bank: ClassBank) -> None:
    """A bank as one file: safetensors by that ending, else npz. What is empty is left out."""
    travels = {
        **{name: np.array(text) for name in ("weights", "origin") if (text := getattr(bank, name))},
        **({"classifier": np.array(True)} if bank.classifier else {}),
    }
    arrays = {
        "means": bank.means,
        "names": np.array(bank.names),
        "counts": bank.counts,
        "backbone": np.array(bank.backbone),
        "data": np.array(bank.data),
        "features": np.array(bank.features),
        "unit": np.array(bank.unit),
        "members": bank.members,
        "labels": np.array(bank.labels, np.str_),
        **({"trunk": bank.trunk} if len(bank.trunk) else {}),
        **travels,
    }
    if path.suffix == PACKED:
        storage.write_bytes(path, _packed(arrays))
    else:
        storage.write_arrays(path, **arrays)


def fingerprint(bank: ClassBank) -> str:
    """The SHA-256 of a bank's file; of its names and means, if it comes from none."""
    if bank.file:
        return storage.fingerprint(Path(bank.file))
    found = hashlib.sha256(json.dumps(bank.names).encode())
    found.update(np.ascontiguousarray(bank.means).data)
    return found.hexdigest()


def brought(path: str) -> ClassBank:
    """A bank that a user names."""
    return read(_there(path))


def points(path: str) -> tuple[Floats, str]:
    """(means (n, D), backbone) of a file that a user names; of an npy the means are mapped.

    Nothing is made for each row, as `brought` makes names: there may be 1e9 of them.
    """
    arrays = _arrays(_there(path))
    return _means(Path(path), arrays), _text(Path(path), arrays, "backbone")


def _there(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; name an npz with an array 'means', "
                        "or a bank of `uotft bank`")  # fmt: skip
    return Path(path)


def read(path: Path) -> ClassBank:
    """A bank, checked: two axes, real numbers, at least one row, no name twice.

    Without names a row's name is its number, without counts its count is one. Names as bytes are
    read as UTF-8. Raises `BadBank` for an array that does not fit the rows of means. Whether the
    means are finite is checked later, where they become costs.
    """
    arrays = _arrays(path)
    means = _means(path, arrays)
    classes = len(means)
    counts = _column(path, arrays, "counts", classes, np.ones(classes, np.int64))
    if counts.dtype.kind not in "fiu":
        raise BadBank(f"{path}: counts is an array of type {counts.dtype}; it must hold numbers")
    names = _texts(path, arrays, "names", classes, np.arange(classes))
    _no_twins(path, names)
    labels = () if not arrays.get("labels", np.empty(0)).size else ("labels",)
    unit = _text(path, arrays, "unit")
    if unit not in ("", "class", "cluster", "image"):
        raise BadBank(f"{path}: unit is {unit!r}; known are class, cluster and image")
    return ClassBank(
        means=means,
        names=tuple(names),
        counts=counts,
        backbone=_text(path, arrays, "backbone"),
        file=str(path),
        # rows without names of their own, but each with its class, are images
        unit=unit or ("image" if labels and "names" not in arrays else "class"),
        members=_members(path, arrays, classes),
        labels=tuple(label for name in labels for label in _texts(path, arrays, name, classes)),
        trunk=_trunk(path, arrays, classes),
        data=_own_text(arrays, "data"),
        features=_own_text(arrays, "features"),
        weights=_own_text(arrays, "weights"),
        origin=_own_text(arrays, "origin"),
        classifier=_is_true(arrays, "classifier"),
    )


def same_backbone(source: ClassBank, target: ClassBank) -> None:
    """Refuse features of two networks; a bank that does not name its network is accepted."""
    for name, what in (("backbone", "backbones"), ("weights", "weights")):
        first, second = getattr(source, name), getattr(target, name)
        if first and second and first != second:
            raise BadBank(
                f"{source.file or 'source'} and {target.file or 'target'} were made with different "
                f"{what} ({first[:12]}, {second[:12]}): embed both with one"
            )


def made_with(bank: ClassBank, weights: str, network: str) -> bool:
    """Whether the backbone with the fingerprint ``weights`` made the bank; False if nothing says.

    That of another one is a `BadBank`; ``network`` names the backbone in the message.
    """
    if bank.weights and bank.weights != weights:
        raise BadBank(
            f"{bank.file or 'source'} was made with other weights ({bank.weights[:12]}) than those "
            f"of {network} ({weights[:12]}): name the backbone that made it, or make a bank with "
            "`uotft bank make`"
        )
    return bool(bank.weights)


def _packed(arrays: Arrays) -> bytes:
    """The arrays as a safetensors file, always in the same bytes."""
    from safetensors.numpy import save

    texts = {n: a.tolist() for n, a in arrays.items() if a.dtype.kind in "Ub" and a.size}
    tensors = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        for name, array in arrays.items()
        if array.dtype.kind in "iuf" and array.size
    }
    about: dict[str, Any] = {"format": FORMAT, **{n: text for n, text in texts.items() if text}}
    about["sha256"] = _seal(about, tensors)
    return save(tensors, {KEY: json.dumps(about, ensure_ascii=False)})


def _seal(about: dict[str, Any], tensors: Arrays) -> str:
    """The SHA-256 of all that a safetensors file says."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def _unpacked(path: Path) -> Arrays:
    """The arrays of `_packed`; of another tool's safetensors file its tensors alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(storage.need(path), framework="np") as file:
            metadata, names = file.metadata() or {}, file.keys()
            tensors = {name: np.asarray(file.get_tensor(name)) for name in names}
        about = json.loads(metadata.pop(KEY, "{}"))
        version, sealed = about.pop("format", FORMAT), about.pop("sha256", "")
        texts = {name: np.array(value) for name, value in about.items()}
    except (SafetensorError, AttributeError, RecursionError, *storage.DAMAGE) as error:
        raise BadBank(f"{path}: not a readable safetensors file ({error}); {AGAIN}") from error
    if version != FORMAT:
        raise BadBank(
            f"{path}: a bank of format {version}, and this version of uotft reads {FORMAT}: update "
            "uotft"
        )
    has_lost_key = any('"sha256"' in text for text in metadata.values())
    if has_lost_key or (about and sealed != _seal({"format": version, **about}, tensors)):
        raise BadBank(f"{path}: damaged, its content has another SHA-256 than it states; {AGAIN}")
    return {**texts, **tensors}


def _arrays(path: Path) -> Arrays:
    """The arrays of a file by name; an npy is one array of means."""
    if path.suffix == PACKED:
        return _unpacked(path)
    if path.suffix == ".npy":
        return {"means": storage.mapped(path)}
    if path.suffix != ".npz" and path.is_file() and not is_zipfile(path):
        raise BadBank(
            f"{path}: neither npz nor npy nor safetensors, by its ending and bytes; write "
            "an npz with np.savez(FILE, means=..., names=...), means of shape (classes, features)"
        )
    return storage.read_arrays(path)


def _means(path: Path, arrays: Arrays) -> Floats:
    """The means as real numbers that every solver takes: native order, eight bytes at most."""
    if "means" not in arrays:
        held = some(arrays, 8) or "nothing"
        raise BadBank(
            f"{path}: no array 'means' (classes x features); it holds {held}; "
            "np.savez(FILE, means=...) gives an array its name"
        )
    means = arrays["means"]
    if means.ndim != 2 or means.dtype.kind not in "fiu":
        raise BadBank(
            f"{path}: means is an array of shape {means.shape} and type {means.dtype}; "
            "it must have shape (classes, features) and hold real numbers"
        )
    if not means.size:
        raise BadBank(f"{path}: the bank is empty, its means have shape {means.shape}")
    if means.dtype.kind != "f" or means.itemsize > 8:
        return means.astype(np.float64)
    return means.astype(means.dtype.newbyteorder("="), copy=False)


def _column(
    path: Path, arrays: Arrays, name: str, rows: int, default: NDArray[Any]
) -> NDArray[Any]:
    column, means = arrays.get(name, default), arrays["means"]
    if column.shape != (rows,):
        turned = column.shape == means.shape[1:]
        raise BadBank(
            f"{path}: {name} has shape {column.shape} for {rows} rows of means"
            + (f"; means of shape {means.shape} look transposed" if turned else "")
            + ("" if turned else f"; it must have shape ({rows},), one entry a row")
        )
    return column


def _texts(
    path: Path,
    arrays: Arrays,
    name: str,
    rows: int,
    default: NDArray[Any] | None = None,
) -> list[str]:
    """An array of one text a row: text, bytes in UTF-8, or whole numbers."""
    column = _column(path, arrays, name, rows, np.empty(0) if default is None else default)
    if column.dtype.kind in "Uiu":
        return [*map(str, column.tolist())]
    if column.dtype.kind != "S":
        raise BadBank(
            f"{path}: {name} is an array of type {column.dtype}; it must hold text or whole numbers"
        )
    texts = []
    for row, raw in enumerate(column.tolist()):
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise BadBank(
                f"{path}: {name} holds bytes that are no UTF-8 (row {row}: {raw!r}); decode them "
                f"before they are saved: np.char.decode({name}, 'latin-1'), or as they were encoded"
            ) from error
    return texts


def _text(path: Path, arrays: Arrays, name: str) -> str:
    """One text, or "" where there is none."""
    held = arrays.get(name, np.array(""))
    if held.size != 1 or held.dtype.kind not in "US":
        raise BadBank(
            f"{path}: {name} is an array of shape {held.shape} and type {held.dtype}; it must hold "
            "one text, or be left out"
        )
    held = held.ravel()
    return _texts(path, {name: held, "means": held}, name, 1)[0]


def _own_text(arrays: Arrays, name: str) -> str:
    """A fingerprint that the pipeline wrote, else "": other tools use these names differently."""
    held = arrays.get(name, np.array(""))
    return str(held) if held.ndim == 0 and held.dtype.kind == "U" else ""


def _is_true(arrays: Arrays, name: str) -> bool:
    held = arrays.get(name, np.array(False))
    return held.ndim == 0 and held.dtype.kind == "b" and bool(held)


def _members(path: Path, arrays: Arrays, rows: int) -> NDArray[np.int64]:
    """The row of each training image."""
    held = arrays.get("members", np.empty(0, np.int64))
    fits = held.ndim == 1 and (not held.size or held.dtype.kind in "iu")
    if not fits or (held.size and not -1 <= held.min() <= held.max() < rows):
        raise BadBank(
            f"{path}: members, an array of shape {held.shape} and type {held.dtype}, is not the "
            f"number of a row of means, below {rows}, for each training image; leave it out"
        )
    return held


def _trunk(path: Path, arrays: Arrays, rows: int) -> Floats:
    """The means in the features that heads see."""
    held = arrays.get("trunk", np.empty((0, 0)))
    if held.size and (held.ndim != 2 or len(held) != rows or held.dtype.kind not in "fiu"):
        raise BadBank(
            f"{path}: trunk, an array of shape {held.shape} and type {held.dtype}, is not one row "
            f"of real numbers for each of {rows} rows of means; leave it out"
        )
    return held


def _no_twins(path: Path, names: list[str]) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if first.setdefault(name, row) != row:
            raise BadBank(
                f"{path}: two rows have the class name {name!r} ({first[name]} and {row}); every "
                "class needs its own name"
            )
