"""Arrays and tables <-> npz and json. Every write goes to a temporary name and is renamed.

A full disk leaves what was there before, and an error that names file, bytes needed and free.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from threading import get_native_id
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import numpy as np
import yaml
from numpy.typing import NDArray

from uotft.core import disk, environment
from uotft.core.errors import UserError
from uotft.core.records import Answers, Files, ImageSet

BLOCK = 2**24  # bytes of an array that are read at a time
SEAL = "seal"  # the key under which sealed JSON has its own SHA-256
#: What NumPy and zipfile raise on files with a byte that changed, wherever it is.
DAMAGE = (
    ValueError, BadZipFile, EOFError, TypeError, LookupError, ArithmeticError, MemoryError,
    OSError, RuntimeError, SyntaxError, struct.error, zlib.error,
)  # fmt: skip


def write(path: Path, fill: Callable[[BinaryIO], object], size: int = 0) -> None:
    """Call ``fill`` on a temporary file beside ``path``, flush it to disk, give it its name.

    The name is on the disk, too, on return. ``size`` is that of the file, where it is known before.
    """
    # two processes may write the same file, and two threads of one
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_native_id()}.tmp")
    try:
        new = not path.parent.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            number = os.fstat(file.fileno()).st_ino
        _rename(temporary, path, number)
        if new:
            sync(path.parent.parent)
    except OSError as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        if full := disk.ran_out(error, path, max(size, written)):
            raise full from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _rename(temporary: Path, path: Path, number: int) -> None:
    """Give the file, whose inode is ``number``, its name, also on the disk."""
    try:
        temporary.replace(path)
    except OSError:
        # NFS sends a request again whose answer was lost, and then tells of the second one's end
        if not path.exists() or path.stat().st_ino != number:
            raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Have the disk know the names in a folder: a power cut takes away none that it has now."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        getattr(os, "fdatasync", os.fsync)(opened)  # macOS has the second alone
    finally:
        os.close(opened)


def new_folder(folder: Path) -> Path:
    """An empty folder beside ``folder``, to be given its name: with the permissions of the umask.

    `tempfile.mkdtemp` would make one that is its user's alone, also under the later name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    made.mkdir()
    return made


def share(path: Path) -> None:
    """Give a file of ours the permissions of the umask: SQLite never lets a group write."""
    if path.stat().st_uid == os.geteuid():
        path.chmod(0o666 & ~environment.umask())


def write_bytes(path: Path, content: bytes) -> None:
    """A file with this content."""
    write(path, lambda file: file.write(content), len(content))


def write_json(path: Path, value: object) -> None:
    """Indented, key order kept, and never NaN."""
    write_bytes(path, _json(value))


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(need(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run dvc repro") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's, ten times as fast as PyYAML alone, where it is built in; refuses a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [(k.tag, k.value) for k, _ in node.value if isinstance(k, yaml.ScalarNode)]
        if len({*keys}) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)[1]
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} is written twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def from_yaml(text: str) -> Any:
    """The value of a YAML text. Like `yaml.safe_load` this makes no objects of tags."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; a tag that would make an object of it is refused."""
    try:
        return from_yaml(need(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error


def write_sealed(path: Path, facts: dict[str, Any]) -> None:
    """JSON that ends with the SHA-256 of all before it: any byte that changes is known."""
    write_bytes(path, _sealed(facts))


def read_sealed(path: Path) -> dict[str, Any]:
    """The facts of ``write_sealed``, refused if the file is not what it wrote, to the byte."""
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.pop(SEAL, None) is None:
        raise UserError(f"{path}: not sealed: damaged, or not written by uotft")
    try:
        whole = _sealed(facts) == path.read_bytes()
    except ValueError:  # a digit became an e: JSON reads 2.3e92994046 as infinity, and writes none
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged: it is not what its own SHA-256 was taken of")
    return facts


def _sealed(facts: dict[str, Any]) -> bytes:
    return _json({**facts, SEAL: hashlib.sha256(_json(facts)).hexdigest()})


def _json(value: object) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # file names that are no text become escapes, which JSON reads back
    return text.encode(errors="backslashreplace")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row, under the keys of all rows in order of first appearance."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with need(path).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def write_arrays(path: Path, **arrays: Any) -> None:
    """A compressed npz."""
    write(path, lambda file: np.savez_compressed(file, **arrays))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz; pickled objects are refused, and so is what is damaged.

    By the CRC-32 of each array, which is read to its end: a head that says too little hides the
    rest from the comparison. NumPy writes no comments: one has swallowed the entries after it.
    """
    try:
        with ZipFile(need(path)) as archive:
            if any(entry.comment for entry in archive.infolist()):
                raise ValueError("an entry with a comment")
            return {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    except DAMAGE as error:
        raise UserError(f"{path}: not a readable npz of plain arrays ({error})") from error


def _array(archive: ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            if "Object arrays" not in str(error):
                raise
            raise ValueError(
                f"{name.removesuffix('.npy')} holds Python objects, which are code to unpickle; "
                "save text as np.array(..., dtype=str), numbers as np.array(..., dtype=float)"
            ) from error
        if file.read(1):
            raise ValueError(f"{name} holds more than its head says")
    return np.asarray(array)


def mapped(path: Path) -> NDArray[Any]:
    """The array of an npy, mapped into memory; pickled objects are refused."""
    try:
        return np.asarray(np.load(need(path), mmap_mode="r", allow_pickle=False))
    except DAMAGE as error:
        raise UserError(f"{path}: not a readable npy of a plain array ({error})") from error


def blocks(array: NDArray[Any], rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[Any]]:
    """An array (n, D), or some of its ``rows``, in consecutive parts of at most BLOCK bytes.

    Of a memory map, the pages of a part leave this process's memory when the next one is asked for.
    """
    step = max(1, BLOCK // max(1, array.itemsize * array.shape[1]))
    for start in range(0, len(array if rows is None else rows), step):
        part = slice(start, start + step)
        yield array[part] if rows is None else array[rows[part]]
        _release(array)


def taken(array: NDArray[Any], rows: NDArray[np.int64], folder: Path) -> NDArray[Any]:
    """Some ``rows`` of an array (n, D), copied block by block to a file without a name.

    The file is in ``folder`` and goes with the array.
    """
    size = len(rows) * array[:1].nbytes
    try:
        with TemporaryFile(dir=folder) as file:
            for part in blocks(array, rows):
                file.write(part.tobytes())
            file.flush()
            return np.memmap(file, array.dtype, "r", shape=(len(rows), array.shape[1]))
    except OSError as error:
        if full := disk.ran_out(error, folder / "rows", size):
            raise full from error
        raise


def _release(array: Any) -> None:
    """Let the pages of a memory map go, as far as this process holds them."""
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap):
        array.madvise(mmap.MADV_DONTNEED)


def write_images(path: Path, images: ImageSet) -> None:
    """An image set as one npz: its pixels, or the columns that say which files hold them."""
    columns = {"images": images.images} if images.files is None else vars(images.files)
    write_arrays(
        path, **columns, labels=images.labels, splits=images.splits, names=np.array(images.names)
    )


def read_images(path: Path) -> ImageSet:
    """The image set of ``write_images``; that of files has no pixels yet."""
    a = read_arrays(path)
    names, files, pixels = tuple(a.pop("names").tolist()), None, a.pop("images", np.empty(0))
    labels, splits = a.pop("labels"), a.pop("splits")
    if a:
        columns: dict[str, Any] = {k: v if v.ndim else v.item() for k, v in a.items()}
        files = Files(**columns)
    return ImageSet(pixels, labels, splits, names, files)


def write_answers(path: Path, answers: dict[int, Answers]) -> None:
    """{seed: answers} on the same test images: ``seeds`` (m,), ``predicted`` (m, n), the rest."""
    [first, *_] = answers.values()
    write_arrays(
        path,
        rows=first.rows.astype(np.int32),
        labels=first.labels.astype(np.int32),
        names=np.array(first.names),
        data=first.data,
        seeds=np.array([*answers]),
        predicted=np.array([a.predicted for a in answers.values()], np.int32),
    )


def read_answers(path: Path) -> dict[int, Answers]:
    """The {seed: answers} of ``write_answers``."""
    a = read_arrays(path)
    rows, labels, names = a["rows"], a["labels"], tuple(a["names"].tolist())
    return {
        seed: Answers(rows, labels, predicted, names, str(a["data"]))
        for seed, predicted in zip(a["seeds"].tolist(), a["predicted"], strict=True)
    }


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with need(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need(path: Path) -> Path:
    """``path`` itself, or an error that says how to make it."""
    if not path.is_file():
        raise UserError(f"{path} is missing; `dvc repro` makes it")
    return path
