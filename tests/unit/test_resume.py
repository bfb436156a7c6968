"""Real kills of a tiny training: what goes on ends in the bytes of what never stopped."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import (
    find_overlap,
    take_for_embedded,
    tiny_params,
    users_environment,
    workspace,
    write_params,
)
from forks import at_call, crew, fork, killed, pair
from uotft import runtime, stages, store, unfinished
from uotft.config import Augment
from uotft.errors import Diverged, Interrupted, UserError
from uotft.images import Batch, Stream
from uotft.snapshot import State, restore, write

STEPS = 24
CELL = ("digits", "uot", 0)
MADE = ("model.safetensors", "model.json", "history.csv")


def change(root: Path, **recipe: object) -> None:
    """The tiny training with a checkpoint every fifth step, and these settings."""
    params = tiny_params()
    params["train"]["recipe"] |= {"steps": STEPS, "log_every": 1, "checkpoint_every": 5} | recipe
    write_params(root, params)


@pytest.fixture
def ready(fresh: Path) -> Path:
    """A tiny workspace with a selection to train on."""
    change(fresh)
    stages.select(workspace(fresh), *CELL)
    return fresh


def train(root: Path, *, progress: Callable = lambda items, label: items, **more: object) -> list:
    """Train in this process; returns the logged points."""
    points: list = []
    stages.train(
        workspace(root), *CELL, runtime.start(0, 1), progress=progress,
        log=lambda step, numbers: points.append((step, numbers)), **more,
    )  # fmt: skip
    return points


def made(root: Path) -> list[bytes]:
    """The bytes of what the training wrote, which is removed."""
    folder = workspace(root).cell("models", *CELL)
    content = [(folder / name).read_bytes() for name in MADE]
    for name in MADE:
        (folder / name).unlink()
    return content


def left(root: Path) -> Path:
    ws = workspace(root)
    return ws.unfinished(ws.cell("models", *CELL))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(step: int) -> Callable:
    def progress(items: range, label: str) -> Iterator[int]:
        for item in items:
            if item == step:
                die()
            yield item

    return progress


@pytest.mark.parametrize("recipe", [{}, {"ema": 0.9, "momentum": 0.0, "accumulate": 2}])
def test_killed_at_any_step_it_ends_in_the_same_bytes(ready: Path, recipe: dict) -> None:
    change(ready, **recipe)
    points, whole = train(ready), made(ready)
    for step, start in ((3, 0), (6, 5), (23, 20)):
        assert killed(fork(lambda at=step: train(ready, progress=dies_at(at))))
        found = unfinished.newest(left(ready))
        assert (found[1]["step"] if found else 0) == start
    ran: list[int] = []

    def count(items: range, label: str) -> range:
        ran.extend(items)
        return items

    assert train(ready, progress=count) == merged(points), "what was logged before is logged again"
    assert ran == list(range(20, STEPS)), "nothing that was done is done again"
    assert made(ready) == whole
    assert not left(ready).exists()


def merged(points: list) -> list:
    """Points before the resumed step come as one a step."""
    steps: dict[int, dict] = {}
    for step, numbers in points:
        if step < 20:
            steps.setdefault(step, {}).update(numbers)
    return [*steps.items(), *(point for point in points if point[0] >= 20)]


def test_killed_at_random_moments_it_ends_in_the_same_bytes(ready: Path) -> None:
    change(ready, checkpoint_every=1)
    start = time.monotonic()
    train(ready)
    duration, whole, rng = time.monotonic() - start, made(ready), np.random.default_rng()
    kills = 0
    for _ in range(40):
        pid = fork(lambda: train(ready))
        time.sleep(rng.uniform(0.05, 0.6) * duration)
        os.kill(pid, signal.SIGKILL)
        if not killed(pid):
            break
        kills += 1
    if not (workspace(ready).cell("models", *CELL) / MADE[2]).exists():
        train(ready)
    assert kills
    assert made(ready) == whole


@pytest.mark.parametrize("moment", ["fsync 1", "fsync 2", "fsync 3", "fsync 4", "rmtree 1"])
def test_killed_while_a_checkpoint_is_written(ready: Path, moment: str) -> None:
    """fsync 1 and 2: the first checkpoint's two files; 3 and 4: the second's; then the removal."""
    train(ready)
    whole = made(ready)
    name, number = moment.split()

    def work() -> None:
        setattr(os if name == "fsync" else unfinished.shutil, name, at_call(int(number), die))
        train(ready)

    assert killed(fork(work))
    found = unfinished.newest(left(ready))
    step = {"fsync 1": 0, "fsync 2": 0, "fsync 3": 5, "fsync 4": 5, "rmtree 1": 10}[moment]
    assert (found[1]["step"] if found else 0) == step
    train(ready)
    assert made(ready) == whole


def test_asked_to_stop_it_saves_and_goes_on(ready: Path) -> None:
    change(ready, checkpoint_every=0)
    train(ready)
    whole, asked = made(ready), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 10  # two validations ask, too

    with pytest.raises(Interrupted, match="before step 8"):
        train(ready, stop=stop)
    assert not workspace(ready).cell("models", *CELL).joinpath("model.json").exists()
    train(ready)
    assert made(ready) == whole


def test_pre_training_goes_on_too(ready: Path) -> None:
    params = tiny_params()
    params["pretrain"]["recipe"] |= {"steps": STEPS, "checkpoint_every": 5}
    write_params(ready, params)
    ws, quiet = workspace(ready), {"log": lambda *_: None}
    still = quiet | {"progress": lambda items, label: items}
    mortal = quiet | {"progress": dies_at(13)}
    stages.pretrain(ws, runtime.start(0, 1), **still)
    whole = [(ws.pretrained() / name).read_bytes() for name in MADE]
    assert killed(fork(lambda: stages.pretrain(ws, runtime.start(0, 1), **mortal)))
    assert unfinished.newest(ws.unfinished(ws.pretrained()))[1]["step"] == 10
    for name in MADE:
        (ws.pretrained() / name).unlink()
    stages.pretrain(ws, runtime.start(0, 1), **still)
    assert [(ws.pretrained() / name).read_bytes() for name in MADE] == whole


def test_random_states_go_on(tmp_path: Path) -> None:
    """Streams draw from none of them; a backbone with dropout or an objective may."""
    network = torch.nn.Linear(2, 2)
    state = State(network, torch.optim.SGD(network.parameters()), None, runtime.start(3, 1))
    write(tmp_path / "state.safetensors", state)

    def draw() -> list[float]:
        return [random.gauss(0, 1), np.random.rand(), float(torch.rand(1))]  # noqa: NPY002

    before = draw()
    assert draw() != before
    restore(tmp_path / "state.safetensors", state)
    assert draw() == before


@pytest.mark.parametrize("what", ["learning_rate", "data", "selection", "pretrained"])
def test_a_checkpoint_of_something_else_is_set_aside(
    ready: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert killed(fork(lambda: train(ready, progress=dies_at(7))))
    ws, name = workspace(ready), {"learning_rate": "train.recipe.learning_rate"}.get(what, "files.")
    if what == "learning_rate":
        change(ready, learning_rate=0.05)
    else:
        path = {
            "data": ws.data("glyphs"),
            "selection": ws.cell("selections", *CELL) / "selection.json",
            "pretrained": ws.pretrained() / "model.json",
        }[what]
        rewrite(path)
        if what == "data":
            take_for_embedded(ws, "glyphs")
            stages.select(ws, *CELL)
        find_overlap(ready)
        name += str(path.relative_to(ready))
    train(ready)
    anew = made(ready)
    said = capfd.readouterr().err
    assert f"has other {name}" in said
    assert ": set aside as 0.aside, and started anew" in said
    assert unfinished.newest(left(ready).with_name("0.aside"))[1]["step"] == 5
    train(ready)
    assert made(ready) == anew


def rewrite(path: Path) -> None:
    """Other bytes with the same meaning."""
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        np.savez(path, **store.read_arrays(path))


def test_how_often_it_saves_decides_nothing(ready: Path) -> None:
    train(ready)
    whole = made(ready)
    assert killed(fork(lambda: train(ready, progress=dies_at(7))))
    change(ready, checkpoint_every=3)
    train(ready)
    assert made(ready) == whole
    assert not left(ready).with_name("0.aside").exists()


def test_an_infinite_loss_stops_within_its_step(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(ready, learning_rate=1e18, eval_every=0)
    ran: list[int] = []
    stepped, steps = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *w: (stepped.append(1), steps(*w)))
    with pytest.raises(
        Diverged, match=r"step \d: the loss .*target rows \[\d+, .*source rows \["
    ) as e:
        train(ready, progress=lambda items, label: (ran.append(i) or i for i in items))
    assert f"step {ran[-1]}:" in str(e.value)
    assert len(stepped) == ran[-1], "the optimiser never steps on it"
    images = workspace(ready).images("digits")
    named = [int(n) for n in str(e.value).split("target rows [")[1].split("]")[0].split(",")]
    assert set(named) <= set(images.rows("train").tolist()), "rows of data/digits.npz"
    assert not workspace(ready).cell("models", *CELL).exists()


def test_weights_that_are_not_finite_are_not_saved(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with a finite loss may ruin the weights: the checkpoint before them stays."""
    assert killed(fork(lambda: train(ready, progress=dies_at(7))))
    steps = torch.optim.SGD.step

    def ruin(self: torch.optim.SGD, *words: object) -> None:
        steps(self, *words)
        self.count = getattr(self, "count", 0) + 1
        if self.count == 5:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", ruin)
    with pytest.raises(Diverged, match="before step 10"):
        train(ready)
    assert unfinished.newest(left(ready))[1]["step"] == 5


def test_two_processes_go_on_to_the_same_bytes(ready: Path) -> None:
    """Going on starts with a validation, for which each process needs its own batch norm."""
    change(ready, checkpoint_every=6, eval_every=6)
    assert not any([killed(pid) for pid in pair(lambda rank: train(ready))])
    whole = made(ready)
    assert all([killed(pid) for pid in pair(lambda rank: train(ready, progress=dies_at(13)))])
    assert unfinished.newest(left(ready))[1]["step"] == 12
    assert not any([killed(pid) for pid in pair(lambda rank: train(ready))])
    assert made(ready) == whole


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_rows_of_a_step_do_not_know_the_number_of_processes(ready: Path, world: int) -> None:
    """What each process really took of each batch, put together by rank, is the order of one."""
    expected = {
        name: Stream(
            np.zeros((n, 1, 1), np.uint8), np.zeros(n, int), name=name, batch_size=8, seed=0,
            augment=Augment(),
        )
        for name, n in rows_of(ready).items()
    }  # fmt: skip

    def work(rank: int) -> None:
        taken, batch = [], Stream.__getitem__

        def note(self: Stream, step: int) -> Batch:
            mine = self.rows(step)[self.share].tolist()
            taken.append((self.key[1], step, rank, mine))
            return batch(self, step)

        Stream.__getitem__ = note
        train(ready)
        store.write_json(ready / f"taken-{rank}.json", taken)

    assert not any([killed(pid) for pid in crew(work, world)])
    taken = [
        entry for rank in range(world) for entry in store.read_json(ready / f"taken-{rank}.json")
    ]
    for stream in expected.values():
        for step in range(STEPS):
            mine = [rows for key, at, _, rows in taken if (key, at) == (stream.key[1], step)]
            assert [len(rows) for rows in mine] == [8 // world] * world
            assert sum(mine, []) == stream.rows(step).tolist()


def rows_of(root: Path) -> dict[str, int]:
    """How many images the two streams of the tiny training have."""
    ws = workspace(root)
    chosen = stages.read_selection(ws, *CELL)
    kept = np.array([c["row"] for c in chosen["classes"]])
    classes = len(ws.images("digits").names)
    return {
        "target": classes * ws.params.subset.shots,
        "source": len(stages.source_part(ws, kept).rows),
    }


def test_machines_that_share_no_folder_are_told(ready: Path) -> None:
    """A copy of it on each is enough to train, but each finds other checkpoints in its own."""

    assert killed(fork(lambda: train(ready, progress=dies_at(7))))
    elsewhere = shutil.copytree(ready, ready.with_name("elsewhere"))
    shutil.rmtree(left(elsewhere))

    def work(rank: int) -> None:
        with pytest.raises(UserError, match="step 0 for one process and of step 5 for another"):
            train(elsewhere if rank else ready)

    facts = store.read_json(left(ready) / "step-000000005" / "state.json")
    facts["belongs"]["processes"] = 2
    store.write_json(left(ready) / "step-000000005" / "state.json", facts)
    assert not any([killed(pid) for pid in pair(work)])

    shutil.rmtree(left(ready))
    assert not any([killed(pid) for pid in pair(lambda rank: train(elsewhere if rank else ready))])
    apart = made(ready)
    assert not any([killed(pid) for pid in pair(lambda rank: train(ready))])
    assert made(ready) == apart


def test_a_loss_that_is_not_finite_on_one_process_stops_both(ready: Path) -> None:
    def work(rank: int) -> None:
        from uotft.objectives import joint

        terms, calls = joint.terms, []

        def spoiled(*words: object, **more: object) -> dict:
            calls.append(1)
            good = terms(*words, **more)
            return (
                good
                if rank == 0 or len(calls) < 8
                else good | {"source": (math.inf * good["source"][0], 1.0)}
            )

        joint.terms = spoiled
        with pytest.raises(Diverged, match="step 7: the loss source is not finite"):
            train(ready)

    assert not any([killed(pid) for pid in pair(work)])
    assert unfinished.newest(left(ready))[1]["step"] == 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this")
def test_workers_whose_launcher_is_killed_save_and_leave(ready: Path) -> None:
    change(ready, steps=100_000, checkpoint_every=0)
    journal = ready / "journal.jsonl"
    journal.touch()
    words = ["--standalone", "--nproc-per-node", "2", "-m", "uotft.worker", str(journal)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "uotft.launcher", *words, "train", *map(str, CELL)],
        cwd=ready,
        env=users_environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait(lambda: '"step": 3,' in journal.read_text() or launcher.poll() is not None)
    found = subprocess.run(
        ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
    )
    workers = found.stdout.split()
    assert len(workers) == 2
    launcher.kill()
    launcher.wait()
    wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert unfinished.newest(left(ready))[1]["step"] > 3


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)
