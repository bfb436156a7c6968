"""Class means of shards that fit no disk: each is fetched, embedded, added to the sums, dropped.

    uotft bank make --shards "https://example.org/web-{000..127}.tar" --backbone resnet18 \\
        --output web.safetensors

What stays on the disk, in the folder ``web.work``, are the sums of the shards so far, and with
``--features`` all features. Sums are added in the order of the shards, however many processes share
them, so the bank has the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uotft.core import locks, storage
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Progress
from uotft.core.text import indented, plural
from uotft.data import files, shard_stream, shards
from uotft.data.pixel_cache import in_parts, square, upright_size
from uotft.data.shard_stream import Shards
from uotft.data.shards import Picture
from uotft.models import weights
from uotft.models.inputs import views
from uotft.pipeline.bank_files import check_name
from uotft.pipeline.bank_weights import pretrained
from uotft.pipeline.banks import SHARE, Embedder, called
from uotft.selection import banks, features

DTYPE = "float16"  # of the features that are kept
PATIENCE_S = 600.0  # for another process that adds its shard to the sums
RECIPE = 1  # increase it when new code gives other sums


@dataclass(frozen=True)
class Reading:
    """How the pictures of shards are read.

    ``label`` names the member with the class, as for a data set of shards; ``size`` is the side in
    pixels that the network sees; with ``skip``, pictures that cannot be read are counted only.
    """

    label: str = "cls"
    size: int = 224
    skip: bool = False

    def pictures(self, tar: Path) -> tuple[list[Picture], list[str]]:
        """The pictures of a shard, and their labels."""
        extension, _, field = self.label.partition(".")
        found = [*shards.pictures(tar, files.suffixes(), extension, Counter())]
        what = f"{tar}: the label of {{}}"
        return found, [shards.label_of(p.label, field, what.format(p.name)) for p in found]


def work_folder(output: Path) -> Path:
    """Where the work on a bank is kept until it is whole."""
    return output.with_suffix(".work")


def make(
    every: Shards,
    backbone: str,
    reading: Reading,
    output: Path,
    progress: Progress,
    *,
    names: str = "",
    keep_features: bool = False,
) -> str:
    """Write the class means of shards; resumes at the shard. Returns a line for the user.

    ``names`` is a file of class names, where labels are its line numbers.
    """
    check_name(output)
    found = pretrained(backbone)
    made_of = {
        "recipe": RECIPE, "weights": weights.fingerprint(found.backbone), "label": reading.label,
        "size": reading.size, "features": keep_features,
    }  # fmt: skip
    sums = Sums(work_folder(output), every.places, made_of)
    embedder = Embedder(found, lambda items, label: items)
    done = shard_stream.each(every, sums.is_done)
    for number, tar in progress(done, f"embedding {plural(len(every.places), 'shard')}"):
        sums.keep(number, _sums_of(tar, reading, embedder, keep_features))
    sums.add()
    bank = _bank(sums.read(), embedder, names)
    if not bank.counts.sum():
        raise UserError(f"{every.places[0]}: no picture in any of the shards")
    origin = (
        f"class means of {plural(int(bank.counts.sum()), 'image')} of "
        f"{plural(len(every.places), 'shard')} at {reading.size} pixels, by "
        f"{called(found, backbone)}"
    )
    banks.write(output, ClassBank(bank.means, bank.names, bank.counts, trunk=bank.trunk,
                                  weights=str(made_of["weights"]), origin=origin))  # fmt: skip
    skipped = int(sums.read()["skipped"])
    note = f", {plural(skipped, 'picture')} could not be read" if skipped else ""
    return f"{output}: {origin}{note}"


def _sums_of(
    tar: Path, reading: Reading, embedder: Embedder, keep_features: bool
) -> dict[str, NDArray[Any]]:
    """What is kept of one shard: its classes, their sums (C, D) and counts, perhaps features."""
    found, texts = reading.pictures(tar)
    names, labels = np.unique(np.array(texts, np.str_), return_inverse=True)
    kept: list[NDArray[Any]] = []
    with tar.open("rb") as file:
        shown, at = _Shown(tar, file, found, reading), 0
        sums = np.zeros((len(names), 1))
        for part in embedder.parts(shown) if found else ():
            good = [row for row in range(at, at + len(part)) if row not in shown.bad]
            own = part[[row - at for row in good]]
            sums = sums + features.class_sums([own], labels[good], len(names))
            kept += [features.rounded(own, DTYPE)] if keep_features else []
            at += len(part)
    if shown.bad and not reading.skip:
        raise UserError(
            f"{len(shown.bad)} of {len(found)} pictures cannot be read; --unreadable skip leaves "
            f"them out:{indented(shown.bad.values())}"
        )
    if found and len(shown.bad) == len(found):
        raise UserError(f"{tar}: none of its pictures can be read:{indented(shown.bad.values())}")
    good = [row for row in range(len(found)) if row not in shown.bad]
    return {
        "names": names, "sums": sums, "skipped": np.array(len(shown.bad)),
        "counts": np.bincount(labels[good], minlength=len(names)),
        **({"features": np.concatenate(kept)} if kept else {}),
    }  # fmt: skip


class _Shown:
    """The pictures of one shard as tests see them; ``bad`` is {row: why} of the unreadable ones."""

    def __init__(
        self, tar: Path, file: BinaryIO, pictures: list[Picture], reading: Reading
    ) -> None:
        self.tar, self.file, self.pictures, self.size = tar, file, pictures, reading.size
        self.shape = (len(pictures), self.size, self.size, 3)
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, part: Any) -> NDArray[np.uint8]:
        side = round(self.size / SHARE)

        def one(row: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
            picture = self.pictures[row]
            content = os.pread(self.file.fileno(), picture.size, picture.offset)
            try:
                pixels = square(content, side, self.tar / picture.name)
            except UserError as error:
                self.bad[row] = str(error)
                return np.zeros((side, side, 3), np.uint8), (side, side)
            return pixels, upright_size(content)

        made = in_parts(one, range(len(self.pictures))[part])
        sizes = np.array([size for _, size in made], np.int32)
        return views([pixels for pixels, _ in made], sizes, SHARE, self.size)


class Sums:
    """The sums of all shards so far, in a folder that several processes share.

    ``total-N.npz`` holds those of the first N shards; ``part-HASH.npz`` those of a later one, until
    all before it are in. HASH is of its place: its number changes when another shard is left out.
    Features go to ``features.npy``, in the same order.
    """

    def __init__(self, folder: Path, places: tuple[str, ...], made_of: dict[str, Any]) -> None:
        self.folder, self.places, self.done = folder, places, 0
        record = folder / "made_of.json"
        with locks.waiting(folder / ".sums.lock", PATIENCE_S):
            if not record.is_file():
                storage.write_json(record, made_of)
            if storage.read_json(record) != made_of:
                raise UserError(
                    f"{folder} holds the sums of other settings or weights: delete it, or name "
                    "another --output"
                )
            self.read()

    def is_done(self, number: int) -> bool:
        """Whether a shard is in the sums, or its own are kept."""
        if number >= self.done:
            self.done = self._count()
        return number < self.done or self._part(number).is_file()

    def keep(self, number: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Keep the sums of a shard, and add them to the total if all before it are in."""
        _save(self._part(number), arrays)
        if number == self._count():
            self.add()

    def add(self) -> None:
        """Add the parts that follow the total to it."""
        with locks.waiting(self.folder / ".sums.lock", PATIENCE_S):
            first, total = self._count(), self.read()
            later = map(self._part, range(first, len(self.places)))
            parts = [*takewhile(Path.is_file, later)]
            if not parts:
                return
            for part in parts:
                total = self._added(total, storage.read_arrays(part))
            count = first + len(parts)
            total["places"] = np.array(self._places(count))
            _save(self.folder / f"total-{count:08}.npz", total)
            for part in parts:
                part.unlink()
            if first:
                (self.folder / f"total-{first:08}.npz").unlink()

    def read(self) -> dict[str, Any]:
        """The total; empty before the first shard. A `UserError` if it is of other shards."""
        if not (count := self._count()):
            none, empty = np.zeros(0, "U1"), np.zeros(0, np.int64)
            return {"names": none, "sums": np.zeros((0, 1)), "counts": empty, "skipped": 0}
        total = storage.read_arrays(self.folder / f"total-{count:08}.npz")
        if str(total["places"]) != self._places(count):
            raise UserError(
                f"{self.folder} holds the sums of {count} other shards: delete it, or name "
                "another --output (further shards may follow those that it has)"
            )
        return total

    def _added(self, total: dict[str, Any], part: dict[str, NDArray[Any]]) -> dict[str, Any]:
        if "features" in part:
            _append(self.folder / "features.npy", int(total["counts"].sum()), part["features"])
        new = np.setdiff1d(part["names"], total["names"])
        names, old = np.concatenate([total["names"], new]), len(total["names"])
        place = {name: row for row, name in enumerate(names.tolist())}
        rows = [place[name] for name in part["names"].tolist()]
        sums = np.zeros((len(names), max(total["sums"].shape[1], part["sums"].shape[1])))
        sums[:old] += total["sums"]
        sums[rows] += part["sums"]
        counts = np.pad(total["counts"], (0, len(new)))
        counts[rows] += part["counts"]
        skipped = total["skipped"] + part["skipped"]
        return {"names": names, "sums": sums, "counts": counts, "skipped": skipped}

    def _count(self) -> int:
        return max((int(p.stem[6:]) for p in self.folder.glob("total-*.npz")), default=0)

    def _places(self, count: int) -> str:
        """The SHA-256 of the first ``count`` places."""
        return hashlib.sha256("\n".join(self.places[:count]).encode()).hexdigest()

    def _part(self, number: int) -> Path:
        place = hashlib.sha256(self.places[number].encode()).hexdigest()
        return self.folder / f"part-{place[:32]}.npz"


def _save(path: Path, arrays: dict[str, Any]) -> None:
    """An npz that is not compressed: sums do not get smaller."""
    storage.write(path, lambda file: np.savez(file, **arrays))


def _append(path: Path, rows: int, part: NDArray[Any]) -> None:
    """Have an npy end with ``part`` after its first ``rows``: what a killed process added goes."""
    with path.open("r+b" if rows else "wb") as file:
        _head(file, rows + len(part), part)
        start = file.tell()
        file.seek(start + rows * part[:1].nbytes)
        file.write(part.tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _head(file: BinaryIO, rows: int, part: NDArray[Any]) -> None:
    """The head of an npy; NumPy leaves room in it for any number of rows."""
    np.lib.format.write_array_header_1_0(file, {
        "descr": np.lib.format.dtype_to_descr(part.dtype),
        "fortran_order": False,
        "shape": (rows, part.shape[1]),
    })  # fmt: skip


def _bank(total: dict[str, Any], embedder: Embedder, names: str) -> ClassBank:
    """The class means, in the order of a data set of shards."""
    held = total["counts"] > 0
    texts, counts = total["names"][held].tolist(), total["counts"][held]
    order = shards.ordered(texts)
    known = tuple(texts[place] for place in order)
    means, trunk = embedder.split((total["sums"][held] / counts[:, None])[order])
    known = shards.named(known, Path(names)) if names else known
    return ClassBank(means, known, counts[order], trunk=trunk)
