import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from uotft.core import storage
from uotft.core.errors import UserError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    storage.write_bytes(path, b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_threads_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first removes its temporary name at its end, while the second writes under its own."""
    path, sync = tmp_path / "same", storage.sync
    renamed, under_way, done = (threading.Event() for _ in range(3))

    def first_waits(folder: Path) -> None:
        sync(folder)
        if not renamed.is_set():
            renamed.set()
            assert under_way.wait(20)

    def second(file: BinaryIO) -> None:
        under_way.set()
        assert done.wait(20)
        file.write(b"second")

    monkeypatch.setattr(storage, "sync", first_waits)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(storage.write_bytes, path, b"first")
        assert renamed.wait(20)
        other = threads.submit(storage.write, path, second)
        first.result()
        assert path.read_bytes() == b"first"
        done.set()
        other.result()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("same", b"second")]


def test_a_digit_that_became_an_e_is_damage(tmp_path: Path) -> None:
    """JSON reads 2.302585e92994046 as infinity."""
    path = tmp_path / "state.json"
    storage.write_sealed(path, {"loss": 2.302585092994046})
    assert storage.read_sealed(path) == {"loss": 2.302585092994046}
    path.write_bytes(path.read_bytes().replace(b"2.302585092994046", b"2.302585e92994046"))
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        storage.read_sealed(path)


def test_arrays_come_back_and_files_repeat_exactly(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        storage.write_arrays(tmp_path / name, x=np.arange(5), names=np.array(["a", "b"]))
    assert storage.read_arrays(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2, 3, 4]
    assert storage.fingerprint(tmp_path / "a.npz") == storage.fingerprint(tmp_path / "b.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"hello"])
def test_broken_arrays_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz"):
        storage.read_arrays(tmp_path / "a.npz")


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json is missing; `dvc repro` makes it"):
        storage.read_json(tmp_path / "x.json")


def test_rows_of_a_mapped_array_come_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BLOCK", 64)  # bytes: four rows
    array = np.arange(40, dtype=np.float64).reshape(20, 2)
    np.save(tmp_path / "a.npy", array)
    mapped, rows = storage.mapped(tmp_path / "a.npy"), np.array([0, 3, 4, 9, 17, 19])
    assert [len(part) for part in storage.blocks(mapped)] == [4, 4, 4, 4, 4]
    assert np.array_equal(np.concatenate([*storage.blocks(mapped)]), array)
    assert [len(part) for part in storage.blocks(mapped, rows)] == [4, 2]
    taken = storage.taken(mapped, rows, tmp_path)
    assert np.array_equal(taken, array[rows])
    assert isinstance(taken, np.memmap)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"], "the copy has no name"
