"""Image files become squares of uint8, each decoded once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from support.child_processes import fork
from uotft.data import pixel_cache

SIDE = {"stored": 32, "size": 24}
ALL = np.arange(8)


def child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own; returns how it ended."""

    def fresh() -> None:
        pixel_cache.pool.cache_clear()  # threads stay behind in a fork
        work()

    return os.waitpid(fork(fresh), 0)[1]


def whole(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.int64)


def test_each_file_is_decoded_once(tmp_path: Path) -> None:
    images = pictures.scenes(tmp_path, 8, **SIDE)
    first = images.images[ALL]
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    again = pixel_cache.Store(images.files, tmp_path / "store")
    assert first.shape == (8, 32, 32, 3)
    assert np.array_equal(again[ALL], first)
    assert np.array_equal(again[::-1][0], first[7])
    assert all(np.array_equal(a, b) for a, b in zip(again.read(ALL), first, strict=True))
    assert all(np.abs(a - whole(pictures.scene(i))).max() <= 1 for i, a in enumerate(first))


def test_a_picture_that_has_its_size_is_not_scaled() -> None:
    """Scaling would give the same pixels, and import torch."""
    content = pictures.encoded(pictures.scene(0).resize((40, 40)))
    kept = pixel_cache.square(content, 40, Path("a.png"))
    assert np.array_equal(kept, pixel_cache.scaled(kept, 40))
    code = (
        "import sys; from pathlib import Path; from uotft.data import pixel_cache; "
        "pixel_cache.square(sys.stdin.buffer.read(), 40, Path()); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=content, capture_output=True, check=True
    )
    assert done.stdout == b"False\n"


def test_only_the_rows_asked_for_are_decoded(tmp_path: Path) -> None:
    images = pictures.scenes(tmp_path, 8, stored=256)
    assert images.images[[3]].shape == (1, 256, 256, 3)
    assert images.images.there.tolist() == [row == 3 for row in range(8)]
    assert (tmp_path / "store/pixels.npy").stat().st_blocks * 512 < 2.2 * 256 * 256 * 3


def test_a_large_data_set_keeps_only_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pictures.scenes(tmp_path, 8, **SIDE).images
    monkeypatch.setattr(pixel_cache, "WHOLE", 0)
    seen = store.read(ALL)
    assert not store.there.any()
    store.hold(ALL[:2])
    assert store.there.tolist() == [True] * 2 + [False] * 6
    assert np.array_equal(store[ALL], seen)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_says_which_side_is_up(orientation: int) -> None:
    content = pictures.turned(pictures.scene(0), orientation)
    found = pixel_cache.square(content, 32, Path("a.png"))
    assert np.abs(found - whole(pictures.scene(0))).max() <= 1, "as Pillow would, but for rounding"
    assert pixel_cache.upright_size(content) == (72, 96)


def test_processes_may_fill_one_store_at_once(tmp_path: Path) -> None:
    images = pictures.image_set(
        tmp_path, {f"{i:03}.png": pictures.encoded(pictures.scene(i)) for i in range(40)}, **SIDE
    )

    def work() -> None:
        pixel_cache.pool.cache_clear()
        pixel_cache.CHUNK = 4 * 3 * images.files.stored**2
        pixel_cache.Store(images.files, tmp_path / "cache" / "one").fill(np.arange(40))

    workers = [fork(work) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 4
    left = pixel_cache.Store(images.files, tmp_path / "cache" / "one")
    assert left.there.all()
    assert np.array_equal(
        left.kept, pixel_cache.Store(images.files, tmp_path / "alone")[np.arange(40)]
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["one"]


@pytest.mark.parametrize("moment", ["between chunks", "before the flush", "after the flush"])
def test_a_kill_while_a_store_is_filled_loses_no_more_than_a_chunk(
    tmp_path: Path, moment: str
) -> None:
    images = pictures.scenes(tmp_path, 8, **SIDE)
    folder = tmp_path / "store"

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        pixel_cache.CHUNK = 4 * 3 * images.files.stored**2
        calls = []

        def flush(number: int) -> None:
            calls.append(number)
            if len(calls) == 2:
                if moment == "after the flush":
                    flushed(number)
                die()
            flushed(number)

        def bar(starts: range, label: str) -> object:
            for start in starts:
                if start and moment == "between chunks":
                    die()
                yield start

        flushed, pixel_cache.os.fsync = os.fsync, flush
        pixel_cache.Store(images.files, folder).fill(ALL, bar)

    assert os.WTERMSIG(child(work)) == signal.SIGKILL
    left = pixel_cache.Store(images.files, folder)
    assert left.there.tolist() == [True] * 4 + [False] * 4
    assert np.array_equal(left[ALL], pixel_cache.Store(images.files, tmp_path / "other")[ALL])
