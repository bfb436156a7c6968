"""Several trainings at a time: who works on what, what a failure stops, and which GPUs they get."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap
from uotft.core import environment, storage
from uotft.core.errors import Interrupted, UserError, WorkerFailed
from uotft.core.records import Cell
from uotft.core.signals import StopRequest
from uotft.pipeline import select
from uotft.runs import cells, channel, job, processes
from uotft.runs.pace import Pace
from uotft.runs.pool import Pool, width as pool_width
from uotft.runs.processes import Crew, Fleet


@pytest.fixture
def pool(tmp_path: Path):  # noqa: ANN201
    """Two crews without workers."""
    asked = StopRequest()
    made = Pool([Crew(Fleet(), tmp_path, asked=asked) for _ in range(2)], asked)
    yield made
    made.close()


def test_as_many_as_gpus_or_cores_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 8)

    def width(wanted: int, processes: int, threads: int) -> int:
        return pool_width(SimpleNamespace(jobs=0, cpu_threads=threads), processes, wanted)

    assert pool_width(SimpleNamespace(jobs=5, cpu_threads=1), 1) == 5, "params.yaml says it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert width(3, 1, 1) == 3, "the user has chosen"
    assert width(0, 1, 1) == 8
    assert width(0, 2, 2) == 2
    assert width(0, 1, 16) == 1
    assert width(0, 1, 0) == 1, "each takes all cores"
    assert environment.share_of_gpus(0, 1) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-b,5,7")
    assert width(0, 1, 1) == 4
    assert width(0, 2, 0) == 2
    assert width(0, 8, 0) == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for device in ("nvidia3", "nvidiactl", "nvidia-uvm"):  # a container with the host's fourth GPU
        (tmp_path / device).touch()
    monkeypatch.setattr(environment, "DEVICES", tmp_path)
    assert environment.gpus() == ["0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-b,5,7")
    shares = [environment.share_of_gpus(place, 2)["CUDA_VISIBLE_DEVICES"] for place in (0, 1, 2)]
    assert shares == ["2,GPU-b", "5,7", "2,GPU-b"], "more crews than GPUs share them"


def test_results_are_in_order_and_a_failure_stops_no_other(pool: Pool) -> None:
    crews, both = set(), threading.Barrier(2, timeout=20)

    def work(crew: Crew, item: int) -> int:
        if item < 2:
            both.wait()  # the first two are under way at the same time
        crews.add(id(crew))
        if item == 1:
            raise WorkerFailed(1)
        if item == 2:
            raise UserError("wrong")
        return 10 * item

    found = [*pool.run(work, range(5))]
    assert [found[0], *found[3:]] == [0, 30, 40]
    assert isinstance(found[1], WorkerFailed)
    assert isinstance(found[2], UserError)
    assert len(crews) == 2
    assert [*pool.run(lambda crew, item: item, "abc")] == [*"abc"], "it can be used again"


def test_one_request_to_stop_reaches_all(pool: Pool) -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work(crew: Crew, item: int) -> None:
        if item == 0:
            os.kill(os.getpid(), signal.SIGINT)
        while not crew.asked:
            pass
        seen.append(item)
        raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        [*pool.run(work, range(9))]
    assert len(seen) <= 2, "no other was begun"
    assert signal.getsignal(signal.SIGINT) == before


def test_closed_early_it_stops_what_is_under_way(pool: Pool) -> None:
    stopped = []

    def work(crew: Crew, item: int) -> int:
        while item and not crew.asked:
            pass
        stopped.append(item)
        return item

    with closing(pool.run(work, range(9))) as results:
        assert next(results) == 0
    assert set(stopped) <= {0, 1, 2}, "no other was begun, and all have ended"
    assert [*pool.run(lambda crew, item: item, "abc")] == [*"abc"]


def test_a_fault_of_the_program_stops_the_others(pool: Pool) -> None:
    def work(crew: Crew, item: int) -> None:
        if item == 0:
            raise ZeroDivisionError
        while not crew.asked:
            pass

    with pytest.raises(ZeroDivisionError):
        [*pool.run(work, range(9))]


def test_only_one_training_selects_at_a_time(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are drawn on the way."""
    inside, most = [], []

    def slow(ws: object, cell: Cell) -> None:
        inside.append(cell)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(cell)

    monkeypatch.setattr(job.select_stage, "select", slow)
    write_params(tmp_path, tiny_params())
    ws = workspace(tmp_path)
    every = [Cell("digits", "uot", seed) for seed in range(4)]
    assert [*pool.run(lambda crew, cell: job.select(ws, cell), every)] == [None] * 4
    assert most == [1] * 4


def test_cells_of_a_command_count_by_their_images(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A row with reuse reads twice as many as one without, and a head that is fitted none."""
    ws, told = workspace(fresh), list[list[int]]()
    monkeypatch.setattr(job, "train", lambda ws, cell, crew, **more: f"trained {cell}")
    monkeypatch.setattr(Pace, "told", lambda pace, left: told.append([*left]) or "")
    rows = [Cell("digits", strategy, 0) for strategy in ("none", "class_means", "uot")]
    assert cells.train_some([(ws, cell) for cell in rows], Fleet(), 1) == []
    steps, train = 12, ws.params.train
    images = [steps * train.target_batch, 0, steps * (train.target_batch + train.source_batch)]
    assert told == [images, images[1:], images[2:]]


def test_how_many_are_done_and_how_long_the_others_take() -> None:
    pace = Pace(2, [(100, 20.0)] * 9)
    assert cells._to_go(pace, [100] * 27, 36) == "9 of 36 are done, about 4 min to go"
    # cells of other sizes count by their images; those without a step by the others without
    assert pace.left([300, 100]) == 2 * 20
    assert pace.left([0, 0, 0]) == 0
    pace.add(0, 4.0)
    assert pace.left([100, 0, 0]) == (20 + 2 * 4) / 2
    # one without a step tells nothing of those that train
    assert cells._to_go(Pace(1, [(0, 3.0)]), [100, 0], 3) == "1 of 3 are done"


def test_a_channel_carries_words_and_what_is_held(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    words = ["train", "x" * 100_000, "täglich"]
    with ours, theirs, (tmp_path / "lock").open("w") as file:
        sender = threading.Thread(target=channel.send, args=(ours, words, [file.fileno()]))
        sender.start()
        found = channel.receive(theirs)
        sender.join()
        assert found is not None
        assert found[0] == words
        [held] = found[1]
        assert os.fstat(held).st_ino == os.fstat(file.fileno()).st_ino
        os.close(held)
        assert not channel.has_answer(ours)
        channel.answer(theirs)
        channel.wait([ours], 10)
        assert channel.has_answer(ours)
        assert not channel.has_answer(ours), "one answer each"
        ours.close()
        assert channel.receive(theirs) is None


def test_a_command_that_is_killed_leaves_a_worker_no_more_work() -> None:
    """It had an answer to read, so the worker is told of a reset, not of an end."""
    ours, theirs = socket.socketpair()
    with theirs:
        channel.answer(theirs)
        ours.close()
        assert channel.receive(theirs) is None


def test_a_worker_that_stays_trains_as_a_new_one_does(trainable: Path) -> None:
    """To the bit: nothing of one training is left in memory for the next, of another precision."""
    find_overlap(trainable)
    ws = workspace(trainable)
    bf16 = ws.with_changes(["train.recipe.precision=bf16"])
    work = [(ws, Cell("digits", "none", 0)), (bf16, Cell("digits", "uot", 0)),
            (ws, Cell("digits", "uot", 0))]  # fmt: skip
    for there, cell in work:
        select.select(there, cell)

    def weights(one_each: bool) -> list[bytes]:
        crews, found = [], []
        for there, cell in work:
            if one_each or not crews:
                crews.append(Crew(Fleet(), trainable))
            words = ["train", cell.target, cell.strategy, str(cell.seed), *there.overrides]
            with crews[-1].work(words) as follow:
                follow(lambda points: None)
            file = there.cell("models", cell) / "model.safetensors"
            found.append(file.read_bytes())
            file.unlink()
        pids = [worker.pid for crew in crews for worker in crew.workers]
        assert len(pids) == len(crews)
        for crew in crews:
            crew.dismiss()
        return found

    assert weights(one_each=False) == weights(one_each=True)


def test_a_worker_that_was_lost_is_replaced(trainable: Path) -> None:
    find_overlap(trainable)
    cell = Cell("digits", "none", 0)
    select.select(workspace(trainable), cell)
    with processes.crew(Fleet(), trainable) as crew:
        crew.start()
        [lost] = crew.workers
        lost.kill()
        lost.wait()
        with crew.work(["train", "digits", "none", "0"]) as follow:
            follow(lambda points: None)
        with (
            pytest.raises(WorkerFailed) as failed,
            crew.work(["train", "digits", "uot", "7"]) as follow,
        ):
            follow(lambda points: None)  # nothing is selected for it
        assert cells.reason(failed.value).endswith(
            "selection.json is missing; `dvc repro` makes it"
        )
        with crew.work(["train", "digits", "none", "0"]) as follow:
            follow(lambda points: None)
    facts = storage.read_json(workspace(trainable).cell("models", cell) / "model.json")
    assert facts["strategy"] == "none"
