"""Several machines and other launchers, as the user starts them: one run, the bytes of one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.child_processes import killed, pair
from support.commands import users_environment
from support.ports import free_port
from support.projects import runs, tiny_params, workspace, write_params
from uotft.core.context import Context
from uotft.core.records import Cell
from uotft.pipeline import select, train
from uotft.runs import processes
from uotft.training import checkpoints, runtime

CELL = ("digits", "uot", 0)
WORDS = ("train", "--dataset", "digits", "--seed", "0")
# inside DVC, a training brings nothing up to date
ENVIRONMENT = users_environment() | {"DVC_STAGE": "train", "OMP_NUM_THREADS": "1"}
MADE = ("model.safetensors", "history.csv")


@pytest.fixture
def ready(fresh: Path) -> Path:
    """A tiny project with a selection, and a training that leaves time to interrupt it."""
    params = tiny_params()
    params["train"]["recipe"] |= {"steps": 400, "eval_every": 100, "checkpoint_every": 10}
    write_params(fresh, params)
    select.select(workspace(fresh), Cell(*CELL))
    return fresh


def made(root: Path) -> list[bytes]:
    """The bytes of what the training wrote, which is removed."""
    ws = workspace(root)
    folder = ws.cell("models", Cell(*CELL))
    content = [(folder / name).read_bytes() for name in MADE]
    shutil.rmtree(folder)
    checkpoints.finish(ws.unfinished(folder))  # as the command does, whose work it may be
    return content


def of_two_processes(root: Path) -> list[bytes]:
    """What two processes of one machine make of it, without a launcher."""
    quiet = {"log": lambda *_: None, "progress": lambda items, label: items}

    def work(rank: int) -> None:
        train.train(workspace(root), Cell(*CELL), Context(runtime.start(0, 1), **quiet))

    assert not any([killed(pid) for pid in pair(work)])
    return made(root)


def start(root: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=root, env=ENVIRONMENT | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def machines(root: Path) -> list[subprocess.Popen[str]]:
    """Two machines, here, with a process each."""
    place = ("--main-process-ip", "127.0.0.1", "--main-process-port", str(free_port()))
    many = ("--num-processes", "2", "--num-machines", "2", *place)
    return [start(root, "uotft", *WORDS, *many, "--machine-rank", str(rank)) for rank in (0, 1)]


def said_by(started: list[subprocess.Popen[str]], code: int) -> list[str]:
    """What each printed before it ended with this exit code; none is left when one did not."""
    try:
        said = ["".join(p.communicate(timeout=240)) for p in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [code] * len(started), said
    assert not any("Traceback" in text for text in said), said
    return said


def wait(started: list[subprocess.Popen[str]], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in started), [p.communicate() for p in started]
        time.sleep(0.02)


@pytest.mark.slow
def test_two_machines_make_one_run_and_go_on_together(ready: Path) -> None:
    whole = of_two_processes(ready)
    ws = workspace(ready)
    left = ws.unfinished(ws.cell("models", Cell(*CELL)))

    both = machines(ready)
    wait(both, lambda: (left / "run.json").exists() and any(left.glob("step-*/state.json")))
    both[1].send_signal(signal.SIGTERM)
    said_by(both, 130)
    [run] = runs(ready)
    assert run.info.status == "KILLED"
    assert run.data.params["processes"] == "2"

    first, second = said_by(machines(ready), 0)
    assert "going on at step" in first
    assert "validation top-1" in first
    assert "machine 1 has finished train digits uot 0; machine 0 has the results" in second
    assert "top-1" not in second
    assert "training" not in second, "no bar"
    assert made(ready) == whole
    assert [(r.info.run_id, r.info.status) for r in runs(ready)] == [(run.info.run_id, "FINISHED")]


@pytest.mark.slow
def test_machines_that_do_not_meet(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine 0 waits for the other, or the other for machine 0: not for ever, and they say so."""
    monkeypatch.setattr(processes, "MEET_S", 1)
    worker = ("uotft.runs.worker", os.devnull, "pretrain")
    alone = [processes.fleet(2, 2, rank, "127.0.0.1", free_port()) for rank in (0, 1)]
    places = [place for each in alone for place in each.ranks(tiny / "no such file")]
    said = said_by([start(tiny, *worker, **place) for place in places], 2)
    assert all("uotft: the machines did not meet: " in text for text in said)


@pytest.mark.slow
def test_accelerate_launch_and_its_config_make_one_run(ready: Path) -> None:
    """`accelerate config` decides how many processes there are, and nothing about the weights."""
    whole = of_two_processes(ready)
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "num_processes": 2,
        "machine_rank": 0,
        "main_process_port": 0,
        "mixed_precision": "bf16",
        "use_cpu": False,
    }
    (ready / "accelerate.yaml").write_text(yaml.safe_dump(config))
    launcher = ("accelerate.commands.launch", "--config_file", "accelerate.yaml")

    [said] = said_by([start(ready, *launcher, "-m", "uotft", *WORDS)], 0)
    assert said.count("validation top-1") == 1
    assert made(ready) == whole
    [run] = runs(ready)
    assert (run.info.status, run.data.params["processes"]) == ("FINISHED", "2")
    assert run.data.params["train.recipe.precision"] == "no"

    worker = ("-m", "uotft.runs.worker", "events.jsonl", "train", *map(str, CELL))
    said_by([start(ready, *launcher, *worker)], 0)
    assert made(ready) == whole
    assert (ready / "events.jsonl").read_text().count('"step": 400,') == 1
    assert len(runs(ready)) == 1, "a worker by hand tracks nothing"
