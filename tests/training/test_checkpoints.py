"""Real kills of a tiny training: what goes on ends in the bytes of what never stopped."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from support.child_processes import fork, killed, pair
from support.commands import users_environment
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap, take_for_embedded
from support.tiny_training import CELL, MADE, STEPS, change, dies_at, left, made, train
from support.watched_commands import wait
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import Diverged, Interrupted, UserError
from uotft.core.records import Cell
from uotft.pipeline import pretrain, readers, select
from uotft.training import checkpoints, runtime
from uotft.training.state import State, restore, write


def test_asked_to_stop_it_saves_and_goes_on(trainable: Path) -> None:
    change(trainable, checkpoint_every=0)
    train(trainable)
    whole, asked = made(trainable), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 10  # two validations ask, too

    with pytest.raises(Interrupted, match="before step 8"):
        train(trainable, stop=stop)
    assert not workspace(trainable).cell("models", Cell(*CELL)).joinpath("model.json").exists()
    train(trainable)
    assert made(trainable) == whole


def test_pre_training_goes_on_too(trainable: Path) -> None:
    params = tiny_params()
    params["pretrain"]["recipe"] |= {"steps": STEPS, "checkpoint_every": 5}
    write_params(trainable, params)
    ws, quiet = workspace(trainable), {"log": lambda *_: None}
    still = quiet | {"progress": lambda items, label: items}
    mortal = quiet | {"progress": dies_at(13)}
    pretrain.pretrain(ws, Context(runtime.start(0, 1), **still))
    whole = [(ws.pretrained() / name).read_bytes() for name in MADE]
    checkpoints.finish(ws.unfinished(ws.pretrained()))  # as `uotft pretrain` does
    assert killed(fork(lambda: pretrain.pretrain(ws, Context(runtime.start(0, 1), **mortal))))
    assert checkpoints.newest(ws.unfinished(ws.pretrained()))[1]["step"] == 10
    for name in MADE:
        (ws.pretrained() / name).unlink()
    pretrain.pretrain(ws, Context(runtime.start(0, 1), **still))
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
    trainable: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert killed(fork(lambda: train(trainable, progress=dies_at(7))))
    ws, name = (
        workspace(trainable),
        {"learning_rate": "train.recipe.learning_rate"}.get(what, "files."),
    )
    if what == "learning_rate":
        change(trainable, learning_rate=0.05)
    else:
        path = {
            "data": ws.data("glyphs"),
            "selection": ws.cell("selections", Cell(*CELL)) / "selection.json",
            "pretrained": ws.pretrained() / "model.json",
        }[what]
        rewrite(path)
        if what == "data":
            take_for_embedded(ws, "glyphs")
            select.select(ws, Cell(*CELL))
        find_overlap(trainable)
        name += str(path.relative_to(trainable))
    train(trainable)
    anew = made(trainable)
    said = capfd.readouterr().err
    assert f"has other {name}" in said
    assert ": set aside as 0.aside, and started anew" in said
    assert checkpoints.newest(left(trainable).with_name("0.aside"))[1]["step"] == 5
    train(trainable)
    assert made(trainable) == anew


def rewrite(path: Path) -> None:
    """Other bytes with the same meaning."""
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        np.savez(path, **storage.read_arrays(path))


def test_how_often_it_saves_decides_nothing(trainable: Path) -> None:
    train(trainable)
    whole = made(trainable)
    assert killed(fork(lambda: train(trainable, progress=dies_at(7))))
    change(trainable, checkpoint_every=3)
    train(trainable)
    assert made(trainable) == whole
    assert not left(trainable).with_name("0.aside").exists()


def test_an_infinite_loss_stops_within_its_step(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(trainable, learning_rate=1e18, eval_every=0)
    ran: list[int] = []
    stepped, steps = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *w: (stepped.append(1), steps(*w)))
    with pytest.raises(
        Diverged, match=r"step \d: the loss .*target rows \[\d+, .*source rows \["
    ) as e:
        train(trainable, progress=lambda items, label: (ran.append(i) or i for i in items))
    assert f"step {ran[-1]}:" in str(e.value)
    assert len(stepped) == ran[-1], "the optimiser never steps on it"
    images = readers.images(workspace(trainable), "digits")
    named = [int(n) for n in str(e.value).split("target rows [")[1].split("]")[0].split(",")]
    assert set(named) <= set(images.rows("train").tolist()), "rows of data/digits.npz"
    assert not workspace(trainable).cell("models", Cell(*CELL)).exists()


def test_weights_that_are_not_finite_are_not_saved(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with a finite loss may ruin the weights: the checkpoint before them stays."""
    assert killed(fork(lambda: train(trainable, progress=dies_at(7))))
    steps = torch.optim.SGD.step

    def ruin(self: torch.optim.SGD, *words: object) -> None:
        steps(self, *words)
        self.count = getattr(self, "count", 0) + 1
        if self.count == 5:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", ruin)
    with pytest.raises(Diverged, match="before step 10"):
        train(trainable)
    assert checkpoints.newest(left(trainable))[1]["step"] == 5


def test_machines_that_share_no_folder_are_told(trainable: Path) -> None:
    """A copy of it on each is enough to train, but each finds other checkpoints in its own."""

    assert killed(fork(lambda: train(trainable, progress=dies_at(7))))
    elsewhere = shutil.copytree(trainable, trainable.with_name("elsewhere"))
    shutil.rmtree(left(elsewhere))

    def work(rank: int) -> None:
        with pytest.raises(UserError, match="checkpoint of step 0, another one of step 5"):
            train(elsewhere if rank else trainable)

    assert not any([killed(pid) for pid in pair(work)])

    shutil.rmtree(left(trainable))
    assert not any(
        [killed(pid) for pid in pair(lambda rank: train(elsewhere if rank else trainable))]
    )
    apart = made(trainable)
    assert not any([killed(pid) for pid in pair(lambda rank: train(trainable))])
    assert made(trainable) == apart


def test_a_loss_that_is_not_finite_on_one_process_stops_both(trainable: Path) -> None:
    def work(rank: int) -> None:
        from uotft.training.objectives import joint

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
            train(trainable)

    assert not any([killed(pid) for pid in pair(work)])
    assert checkpoints.newest(left(trainable))[1]["step"] == 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this")
def test_workers_whose_launcher_is_killed_save_and_leave(trainable: Path) -> None:
    """Another one, which knows nothing of uotft: the workers ask the kernel themselves."""
    change(trainable, steps=100_000, checkpoint_every=0)
    events = trainable / "events.jsonl"
    events.touch()
    words = ["--standalone", "--nproc-per-node", "2", "-m", "uotft.runs.worker", str(events)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words, "train", *map(str, CELL)],
        cwd=trainable,
        env=users_environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait(lambda: '"step": 3,' in events.read_text() or launcher.poll() is not None)
    found = subprocess.run(
        ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
    )
    workers = found.stdout.split()
    assert len(workers) == 2
    launcher.kill()
    launcher.wait()
    wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert checkpoints.newest(left(trainable))[1]["step"] > 3
