"""Fault 4: a full disk, or a limit on the size of files, while checkpoints, features, pixels,
MLflow's database or DVC's cache are written.

Expected: before the start, what is needed is compared with what is free; later, an error names
path, bytes needed and bytes free, with exit code 2; what was saved stays whole, and the same
command goes on when there is room.

Full disks are real: small file systems in memory, where mounting is allowed, and RLIMIT_FSIZE
anywhere.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from support import pictures
from support.child_processes import fork
from support.commands import call
from support.projects import clone, workspace
from support.watched_commands import (
    WORDS,
    begun,
    change,
    inside,
    last,
    left,
    mounted,
    ranks,
    saved,
    started,
    statuses,
    temporary,
    wait,
    wait_for,
)
from uotft.core import disk, storage
from uotft.core.errors import UserError
from uotft.data import pixel_cache
from uotft.training import checkpoints

Count = Callable[[int, int], int]
SIDE = {"stored": 32, "size": 24}
ALL = np.arange(8)


def fill(folder: Path) -> Path:
    """Take all that is free there."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**20, 2**12):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler


def stopped_by_a_full_disk(said: str, process_code: int, project: Path) -> int:
    """Check what a training said and left; returns the step that it goes on at."""
    assert process_code == 2, said[-3000:]
    assert "Traceback" not in said
    files = rf"{left(project)}/step-0\d+/(rank-\d\.safetensors|state\.json)"
    points = rf"{project}/unsent/\w+\.\d/points\.jsonl"  # on a limit on the size of any file
    assert re.search(rf"uotft: ({files}|{points}): cannot be written: ", said), said[-3000:]
    assert " bytes or more are needed, " in said
    assert " files are free in " in said
    assert not inside(project)
    found = checkpoints.newest(left(project))
    assert found is not None, "the checkpoint before is whole"
    step: int = found[1]["step"]
    return step


def goes_on(project: Path, step: int, *more: str) -> None:
    """The same command goes on at ``step`` and saves again."""
    with started(project, *WORDS, *more) as again:
        wait_for(again, lambda: last(project) > step)
        again.terminate()
        said, _ = again.communicate(timeout=60)
    assert f"uotft: going on at step {step}" in said
    assert again.returncode == 130


@pytest.mark.slow
def test_a_disk_that_fills_up_while_checkpoints_are_written(
    cell: Path, trials: Count, measured: Callable[[str], None]
) -> None:
    number = trials(1, 5)
    with mounted(cell / "unfinished", "size=4m"):
        for _ in range(number):
            before = last(cell)
            with started(cell, *WORDS) as process:
                wait_for(process, lambda before=before: begun(cell, before))
                while process.poll() is None:  # what older checkpoints free is taken, too
                    filler = fill(cell / "unfinished")
                    time.sleep(0.002)
                said = process.stdout.read()
            step = stopped_by_a_full_disk(said, process.returncode, cell)
            assert "No space left on device" in said
            assert "make room, and give the same command again" in said
            assert "FAILED" in statuses(cell)
            filler.unlink()
            assert not temporary(cell)
            goes_on(cell, step)
    measured(f"{number}/{number} checkpoints on a full disk: path and bytes named, exit code 2, "
             "the one before whole and gone on with")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_limit_on_the_size_of_files(
    cell: Path, world: int, trials: Count, measured: Callable[[str], None]
) -> None:
    """RLIMIT_FSIZE, set on the running worker: of two ranks, on one alone."""
    more = ("--num-processes", str(world))
    if world == 1 and not trials(0, 1):
        pytest.skip("the next one does more; make faults does both")
    number, times = trials(1, 5), []
    for _ in range(number):
        with started(cell, *WORDS, *more) as process:
            wait_for(process, lambda: begun(cell) and len(ranks(cell)) == world)
            limits = (1000, resource.RLIM_INFINITY)
            resource.prlimit(ranks(cell)[world - 1], resource.RLIMIT_FSIZE, limits)
            begin = time.monotonic()
            said, _ = process.communicate(timeout=90)
            times.append(time.monotonic() - begin)
        assert "File too large" in said
        assert "raise the limit (ulimit -f)" in said
        step = stopped_by_a_full_disk(said, process.returncode, cell)
        goes_on(cell, step, *more)
    measured(f"world {world}: {number}/{number} with RLIMIT_FSIZE named, exit code 2 after at most "
             f"{max(times):.1f} s, gone on with")  # fmt: skip


def test_a_training_that_has_no_room_does_not_start(
    cell: Path, measured: Callable[[str], None]
) -> None:
    with mounted(cell / "unfinished", "size=32k"):
        done = call("uotft", *WORDS, cwd=cell, DVC_STAGE="train")
        assert done.returncode == 2
        assert f"KiB are free in {left(cell).parent}" in done.stderr
        assert "KiB for checkpoints, " in done.stderr
        assert "make room" in done.stderr
        assert not saved(cell)
    measured("no room for checkpoints: needed and free said, exit code 2 before the first step")


@pytest.mark.slow
def test_features_on_a_disk_that_fills_up(cell: Path, measured: Callable[[str], None]) -> None:
    """Refused before it starts; or in the middle, and the shards that are there are kept."""
    words, ws = ("embed", "--dataset", "glyphs"), workspace(cell)
    images = storage.read_images(ws.data("glyphs"))
    many = np.tile(np.arange(len(images.labels)), 3000)
    large = type(images)(images.images[many], images.labels[many],
                         np.full(len(many), "train"), images.names)  # fmt: skip
    storage.write_images(ws.data("glyphs"), large)
    folder = cell / "unfinished/embeddings/glyphs-images"
    with mounted(cell / "unfinished", "size=8m"):
        done = call("uotft", *words, cwd=cell)
        assert done.returncode == 2
        assert "MiB for features and their shards (about); " in done.stderr
        assert f"MiB are free in {folder.parent}" in done.stderr
    with mounted(cell / "unfinished", "size=64m"):
        with started(cell, *words) as process:
            wait_for(process, lambda: any(folder.glob("shard-*.npz")))
            filler = fill(cell / "unfinished")
            said, _ = process.communicate(timeout=90)
        assert process.returncode == 2, said[-3000:]
        assert f"uotft: {folder}/shard-" in said
        assert "npz: cannot be written: No space left on device: " in said
        assert "Traceback" not in said
        assert not temporary(cell)
        there = {path.name: path.read_bytes() for path in folder.glob("shard-*.npz")}
        assert there
        filler.unlink()
        with started(cell, *words) as process:
            assert any("uotft: resuming" in process.stdout.readline() for _ in range(3))
            process.terminate()
            process.communicate(timeout=60)
        assert {p.name: p.read_bytes() for p in folder.glob("shard-*.npz")}.items() >= there.items()
    measured("features: refused before the start; a full disk in the middle is named, and "
             f"{len(there)} shards are kept")  # fmt: skip


def child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own; returns how it ended."""

    def fresh() -> None:
        pixel_cache.pool.cache_clear()  # threads stay behind in a fork
        work()

    return os.waitpid(fork(fresh), 0)[1]


def test_a_full_disk_is_an_error_and_nothing_is_declared_to_be_there(tmp_path: Path) -> None:
    images = pictures.scenes(tmp_path, 8, **SIDE)
    kept = tmp_path / "store/pixels.npy"
    room = kept.stat().st_size - 100

    def work() -> None:  # a limit on the size of files stops writing in the middle of the last row
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        needed = 8 * 32 * 32 * 3
        with pytest.raises(
            UserError, match=f"{kept}: cannot be written: File too large: {needed:,} bytes or more"
        ):
            images.images.fill(ALL)

    assert child(work) == 0
    assert not pixel_cache.Store(images.files, tmp_path / "store").there.any()


def test_pixels_on_a_disk_that_is_full(tmp_path: Path) -> None:
    images = pictures.scenes(tmp_path, 8, **SIDE)
    with mounted(tmp_path / "small", "size=200k") as small:
        held = pixel_cache.Store(images.files, small / "store")
        held.fill(ALL[:3])
        filler = fill(small)
        with pytest.raises(UserError, match="for the pixels of 5 images .* are free in"):
            held.fill(ALL)
        usage = disk.shutil.disk_usage(tmp_path)
        with pytest.MonkeyPatch.context() as patch:  # it fills up after it was asked
            patch.setattr(disk.shutil, "disk_usage", lambda place: usage)
            with pytest.raises(UserError, match="pixels.npy: cannot be written: No space left"):
                held.fill(ALL)
        assert held.there.tolist() == [True] * 3 + [False] * 5
        filler.unlink()
        held.fill(ALL)
        assert np.array_equal(held[ALL], images.images[ALL])
        fill(small)
        with pytest.raises(UserError, match="another/pixels.npy: cannot be written: No space left"):
            pixel_cache.Store(images.files, small / "another")
        assert not (small / "another").exists()


def test_the_states_have_their_room_from_the_start(tmp_path: Path) -> None:
    """They are mapped: a page that the disk has no room for would end the process."""
    pixel_cache._create(tmp_path / "store", (10**6, 8, 8, 3))
    assert (tmp_path / "store/there.npy").stat().st_blocks * 512 >= 10**6
    assert (tmp_path / "store/pixels.npy").stat().st_blocks * 512 < 10**5


def test_a_store_that_cannot_fit_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = pictures.scenes(tmp_path, 8, **SIDE).images
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=8 * 32 * 32 * 3 - 1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"24\.0 KiB for the pixels of 8 images.*, or lower `stor"):
        held.hold(ALL)
    held.hold(ALL[:7])


@pytest.mark.parametrize("what", ["arrays", "bytes", "json"])
def test_what_stood_there_before_is_as_it_was(tmp_path: Path, what: str) -> None:
    path = tmp_path / "folder" / "file"
    write = {
        "arrays": lambda n: storage.write_arrays(path, a=np.random.default_rng(0).random(n)),
        "bytes": lambda n: storage.write_bytes(path, bytes(8 * n)),
        "json": lambda n: storage.write_json(path, [1] * n),
    }[what]
    write(10)
    before = path.read_bytes()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(
            UserError, match=f"{path}: cannot be written: File too large: [0-9,]+ b"
        ):
            write(100_000)

    assert child(work) == 0
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_full_disk_under_mlflows_database_ends_no_training(
    cell: Path, measured: Callable[[str], None]
) -> None:
    change(cell, steps=1500, log_every=1)
    with mounted(cell / "small", "size=8m") as small:
        make = "import pathlib; from uotft.tracking import store; store.make_store(pathlib.Path())"
        assert call(sys.executable, "-c", make, cwd=small).returncode == 0
        uri = f"sqlite:///{small / 'mlflow.db'}"
        with started(cell, *WORDS, MLFLOW_TRACKING_URI=uri) as process:
            wait_for(process, lambda: begun(cell))
            fill(small)
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
        assert (cell / "models/digits/uot/0/model.json").is_file()
    measured("MLflow's database on a full disk: the training ends well")


@pytest.mark.slow
def test_a_full_disk_under_dvcs_cache(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """DVC says so; nothing of the pipeline is lost, and with room the same command goes on."""
    project = clone(tmp_path / "project")
    words = ("dvc", "repro", "prepare@digits")
    with mounted(tmp_path / "small", "size=8k") as small:
        done = call("dvc", "config", "--local", "cache.dir", str(small / "cache"), cwd=project)
        assert done.returncode == 0, done.stderr
        done = call("dvc", "config", "--local", "cache.type", "copy", cwd=project)
        done = call(*words, cwd=project)
        assert done.returncode, done.stdout
        assert "No space left on device" in done.stderr
        assert str(small) in done.stderr
        assert (project / "data/digits.npz").is_file()
    done = call("dvc", "config", "--local", "--unset", "cache.dir", cwd=project)
    done = call(*words, cwd=project)
    assert done.returncode == 0, done.stderr
    wait(lambda: not inside(project), 10)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "a limit is an error, no signal"
    measured("DVC's cache full: DVC's error names the disk, and with room the stage runs again")
