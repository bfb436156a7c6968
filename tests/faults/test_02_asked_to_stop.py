"""Fault 2: a stop is asked for at any moment: SIGTERM or Ctrl-C to the watcher, SIGTERM to one rank
of two, a stop at every question that a loop asks, SIGTERM to long commands.

Expected: all ranks save the same step and end within 25 s with exit code 130, and the same command
goes on; no half file, no process is left.

The long commands are preparation, the search for overlaps, feature extraction, k-means and
validation. Each says in one line what happened.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.child_processes import crew, killed
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap
from support.tiny_training import made, train
from support.watched_commands import (
    CELL,
    WORDS,
    begun,
    inside,
    last,
    left,
    ranks,
    started,
    statuses,
    temporary,
    wait_for,
)
from uotft.core import signals, storage
from uotft.core.errors import Interrupted
from uotft.core.records import Cell, ImageSet
from uotft.pipeline import select
from uotft.runs.processes import Crew, Fleet, follow
from uotft.training import checkpoints

Count = Callable[[int, int], int]


@pytest.mark.parametrize(
    "whom",
    [
        "the watcher",
        pytest.param("one rank", marks=pytest.mark.slow),
        pytest.param("the watcher by Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_all_ranks_save_the_same_step(
    cell: Path, whom: str, trials: Count, measured: Callable[[str], None]
) -> None:
    times, number = [], trials(1, 10)
    for _ in range(number):
        before = last(cell)
        with started(cell, *WORDS, "--num-processes", "2") as process:
            wait_for(process, lambda before=before: begun(cell, before))
            time.sleep(random.uniform(0, 0.5))
            asked = random.choice([*ranks(cell).values()]) if "rank" in whom else process.pid
            os.kill(asked, signal.SIGINT if "Ctrl-C" in whom else signal.SIGTERM)
            begin = time.monotonic()
            said, _ = process.communicate(timeout=60)
        times.append(time.monotonic() - begin)
        assert process.returncode == 130, said[-3000:]
        assert "Traceback" not in said
        assert "uotft: interrupted; the same command goes on at step" in said
        assert not inside(cell), "no worker is left"
        assert not (cell / "models/digits/uot/0").exists()
        found = checkpoints.newest(left(cell))
        assert found is not None
        assert found[1]["step"] > before
        assert set(found[1]["files"]) == {"rank-0.safetensors", "rank-1.safetensors"}
        assert not temporary(cell)
    assert max(times) < 25
    assert statuses(cell) == ["KILLED"], "one run, however often it goes on"
    measured(f"signal to {whom}: {number}/{number} with both ranks' state of one step, "
             f"exit code 130, at most {max(times):.1f} s")  # fmt: skip


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("head_steps", [0, 6])
def test_a_stop_at_any_question_goes_on_to_the_same_bytes(
    fresh: Path, world: int, head_steps: int, trials: Count, measured: Callable[[str], None]
) -> None:
    """In a step, in a validation, while the head is trained; asked is the last rank alone."""
    params = tiny_params()
    params["train"]["recipe"] |= {"steps": 6, "log_every": 1, "eval_every": 3}
    params["train"]["recipe"] |= {"checkpoint_every": 0}
    params["train"] |= {"head_steps": head_steps}
    write_params(fresh, params)
    select.select(workspace(fresh), Cell(*CELL))
    find_overlap(fresh)

    def work(rank: int, at: int) -> None:
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            return rank == world - 1 and len(asked) >= at

        try:
            train(fresh, stop=stop)
        except Interrupted:
            os._exit(0)
        storage.write_json(fresh / f"asked-{rank}.json", len(asked))

    def run(at: int) -> None:
        assert not any([killed(pid) for pid in crew(lambda rank: work(rank, at), world)])

    run(10**9)
    whole, questions = made(fresh), storage.read_json(fresh / f"asked-{world - 1}.json")
    moments = [*range(1, questions + 1)]
    chosen = moments if trials(0, 1) else [1, 6, 9, *({13, questions} & {*moments[9:]})]
    for at in chosen:
        run(at)
        files = workspace(fresh).cell("models", Cell(*CELL)) / "model.json"
        assert not files.exists(), f"question {at} of {questions} was not heard"
        found = checkpoints.newest(left(fresh))
        assert (found[1]["step"] if found else 0) > 0 or at < 3, "the work is kept"
        run(10**9)
        assert made(fresh) == whole
        assert not left(fresh).exists()
    measured(f"world {world}: stopped at {len(chosen)} of {questions} moments, "
             f"{len(chosen)}/{len(chosen)} go on to the same bytes")  # fmt: skip


def large(cell: Path, images: int, validation: int = 0) -> None:
    """Many images for the source, of which some may be for validation."""
    pixels = np.tile(np.arange(16, dtype=np.uint8) * 16, (images, 16, 1))
    splits = np.where(np.arange(images) < validation, "val", "train")
    names = tuple(f"{i:02}" for i in range(12))
    storage.write_images(
        workspace(cell).data("glyphs"), ImageSet(pixels, np.arange(images) % 12, splits, names)
    )


def prepare(cell: Path) -> tuple[str, ...]:
    params = tiny_params()
    params["datasets"]["glyphs"]["per_class"] = 100_000
    write_params(cell, params)
    return "prepare", "--dataset", "glyphs"


def overlap(cell: Path) -> tuple[str, ...]:
    large(cell, 100_000)
    return "data", "overlap", "--source", "glyphs", "--target", "digits", "--output", "o.json"


def embed(cell: Path) -> tuple[str, ...]:
    large(cell, 400_000)
    return "embed", "--dataset", "glyphs"


def clusters(cell: Path) -> tuple[str, ...]:
    rng = np.random.default_rng(0)
    np.save(cell / "features.npy", rng.normal(size=(200_000, 64)).astype(np.float32))
    words = "--output", "bank.npz", "--clusters", "2000", "--iterations", "200"
    return "units", "--features", "features.npy", *words


def validation(cell: Path) -> tuple[str, ...]:
    large(cell, 61_000, 60_000)
    params = tiny_params()
    params["backbone"]["widths"] = [64, 128]
    write_params(cell, params)
    return ("pretrain",)


#: Each with the line after which the work has begun; the others need no time to begin.
LONG = {
    "prepare": (prepare, ""),
    "overlap": (overlap, ""),
    "k-means": (clusters, ""),
    "embed": (embed, "for features and their shards"),
    "validation": (validation, "for checkpoints"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_long_command_is_stopped(
    cell: Path, name: str, trials: Count, measured: Callable[[str], None]
) -> None:
    """At a random moment; what was there before stays."""
    if name in ("prepare", "overlap", "embed") and not trials(0, 1):
        pytest.skip("as the others; make faults does all")
    number, times = trials(1, 10), []
    make, line = LONG[name]
    words = make(cell)
    before = {path: path.stat().st_mtime_ns for path in cell.rglob("*.npz")}
    for _ in range(number):
        with started(cell, *words) as process:
            while line and line not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(random.uniform(0.5, 1.5) + (0 if line else 3))
            assert process.poll() is None, process.stdout.read()
            process.terminate()
            begin = time.monotonic()
            said, _ = process.communicate(timeout=60)
        times.append(time.monotonic() - begin)
        assert process.returncode == 130, said[-3000:]
        assert said.strip().rpartition("\n")[2].startswith("uotft: interrupted"), said
        assert "Traceback" not in said
        assert not inside(cell)
        assert not temporary(cell)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        shutil.rmtree(cell / "unfinished", ignore_errors=True)  # it would go on, and be done soon
    assert max(times) < 25
    measured(f"{name}: {number}/{number} with exit code 130, at most {max(times):.1f} s")


class Fragile:
    """A signal comes while its destructor runs, where Python ignores exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_in_a_destructor_stops_the_workers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    worker = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(20)"], start_new_session=True
    )
    start, crew = time.monotonic(), Crew(Fleet(), tmp_path, workers=[worker])
    crew.busy[:] = crew.workers
    with signals.passed_on(crew.workers) as asked:
        Fragile()
        with pytest.raises(KeyboardInterrupt):
            follow(crew, tmp_path / "events.jsonl", asked, lambda points: None)
        assert worker.wait(10) == -signal.SIGTERM
        assert time.monotonic() - start < 10
        with pytest.raises(KeyboardInterrupt):  # the second signal waits for nothing
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
