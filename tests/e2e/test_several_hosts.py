"""Hosts with addresses, names and processes of their own: one run on them, and hosts that die.

They are Linux namespaces (tests/support/hosts.py) and share the project's folder. Frozen norms make
the network one without batch norm, whose losses do not depend on how a batch is shared.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.commands import users_environment
from support.hosts import Host, ended, network
from support.projects import runs, tiny_params, workspace, write_params
from support.repository import REPOSITORY
from support.watched_commands import CELL, WORDS, begun, inside, left, saved, wait
from uotft.core.records import Cell
from uotft.pipeline import select
from uotft.runs import machines
from uotft.training import checkpoints

pytestmark = pytest.mark.slow
STEPS, EVERY, HELD = 40, 10, 25
NAMES = ("node-a", "node-b")
REPORTED_S = 60
Start = Callable[..., subprocess.Popen[str]]
# what Python imports at its start: it writes down each batch, and holds one worker where asked
SITE = """
import json, os, sys, time
if "uotft.runs.worker" in sys.orig_argv:
    from uotft.training.streams import Stream
    batch, rank = Stream.__getitem__, os.environ.get("RANK", "0")
    def noted(self, step):
        with open(f"taken-{rank}.jsonl", "a") as file:
            rows = self.rows(step)[self.share].tolist()
            file.write(json.dumps([self.key[1], self.view, step, rows]) + "\\n")
        while os.path.exists(f"hold-{rank}-{step}"):
            time.sleep(0.1)
        return batch(self, step)
    Stream.__getitem__ = noted
"""


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network(*NAMES) as made:
        yield made


@pytest.fixture
def ready(fresh: Path) -> Path:
    """A tiny project with a selection, and a short training of a network with frozen norms."""
    params = tiny_params()
    params["train"]["batch_norm"] = "frozen"
    params["train"]["recipe"] |= {
        "steps": STEPS, "log_every": 1, "eval_every": 20, "checkpoint_every": EVERY,
        "learning_rate": 0.01,  # so that rounding, the only difference, stays small
    }  # fmt: skip
    write_params(fresh, params)
    select.select(workspace(fresh), Cell(*CELL))
    site = fresh / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    left.cache_clear()
    return fresh


def environment(root: Path, stage: str = "train") -> dict[str, str]:
    """As inside DVC, where nothing upstream is brought up to date."""
    mine = users_environment() | {"DVC_STAGE": stage, "OMP_NUM_THREADS": "1"}
    paths = (str(root / "site"), str(REPOSITORY / "src"))
    return mine | {"PYTHONPATH": ":".join(paths)}


def machine(root: Path, host: Host, rank: int, *words: str) -> subprocess.Popen[str]:
    """`uotft WORDS` on one of two hosts, the first of which has the address 10.77.0.1."""
    many = ("--num-processes", "2", "--num-machines", "2", "--machine-rank", str(rank))
    many = (*many, "--main-process-ip", "10.77.0.1")
    command = (sys.executable, "-m", "uotft", *words, *many)
    return host.start(*command, cwd=root, environment=environment(root, words[0]))


def torchrun(root: Path, host: Host, rank: int, *words: str) -> subprocess.Popen[str]:
    """The same under torchrun."""
    launcher = ("torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")
    place = ("--node-rank", str(rank), "--master-addr", "10.77.0.1", "--master-port", "29500")
    command = (sys.executable, "-m", *launcher, *place, "-m", "uotft", *words)
    return host.start(*command, cwd=root, environment=environment(root, words[0]))


def accelerate(root: Path, host: Host, rank: int, *words: str) -> subprocess.Popen[str]:
    """The same under `accelerate launch`; without a GPU too, --multi_gpu starts processes."""
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no")
    many = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank))
    place = ("--main_process_ip", "10.77.0.1", "--main_process_port", "29500")
    command = (sys.executable, "-m", *launcher, *many, *place, "-m", "uotft", *words)
    return host.start(*command, cwd=root, environment=environment(root, words[0]))


def slurm(root: Path, host: Host, rank: int, *words: str) -> subprocess.Popen[str]:
    """The same by docs/slurm.sbatch, with what Slurm would set and stand-ins for its commands."""
    stand_ins = {
        "scontrol": "echo 10.77.0.1; echo 10.77.0.2",
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    }
    if rank == 0:  # once: the first host runs them while the second starts
        (root / "bin").mkdir(exist_ok=True)
        for name, does in stand_ins.items():
            (root / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
            (root / "bin" / name).chmod(0o755)
    mine = environment(root, words[0])
    mine["PATH"] = f"{root / 'bin'}:{mine['PATH']}"
    mine |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": str(rank), "SLURM_JOB_ID": "17"}
    mine["SLURM_JOB_NODELIST"] = "node-[a-b]"
    script = str(REPOSITORY / "docs" / "slurm.sbatch")
    return host.start("bash", script, *words, cwd=root, environment=mine)


def alone(root: Path, *words: str) -> str:
    """The same command on this machine, in one process."""
    done = subprocess.run(
        [sys.executable, "-m", "uotft", *words], cwd=root, env=environment(root, words[0]),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def both(root: Path, hosts: list[Host], start: Start, *words: str) -> list[str]:
    """Both hosts finish; what they said."""
    started = [start(root, host, rank, *words) for rank, host in enumerate(hosts)]
    said = ended(started, 240)
    assert [process.returncode for process in started] == [0, 0], said
    # torch's launchers wait for each other at the end; machine 0 may be gone before the other asks
    own = [text.split("Error waiting on exit barrier")[0] for text in said]
    assert not any("Traceback" in text for text in own), said
    return said


def losses(root: Path) -> list[list[float]]:
    """The losses of every step of the finished training, whose model is removed."""
    folder = workspace(root).cell("models", Cell(*CELL))
    with (folder / "history.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss/target"]]
    shutil.rmtree(folder)
    checkpoints.finish(left(root))
    assert len(rows) >= STEPS
    return [[float(row["loss/target"]), float(row["loss/source"])] for row in rows]


def taken(root: Path) -> dict[tuple[int, int, int], list[int]]:
    """{(stream, view, step): the rows of all ranks, in their order}; the notes are removed."""
    found: dict[tuple[int, int, int], list[int]] = {}
    for note in sorted(root.glob("taken-*.jsonl")):
        own = {}
        for stream, view, step, rows in map(json.loads, note.read_text().splitlines()):
            own[stream, view, step] = rows
        for place, rows in own.items():
            found.setdefault(place, []).extend(rows)
        note.unlink()
    return {place: rows for place, rows in found.items() if place[2] < STEPS}


def largest_difference(one: list[list[float]], other: list[list[float]]) -> float:
    assert len(one) == len(other)
    return max(
        abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_two_hosts_train_as_one_process(ready: Path, hosts: list[Host]) -> None:
    alone(ready, *WORDS)
    whole, order = losses(ready), taken(ready)
    assert sorted({step for _, _, step in order}) == list(range(STEPS))

    first, second = both(ready, hosts, machine, *WORDS)
    assert "validation top-1" in first
    assert "machine 1 has finished train digits uot 0; machine 0 has the results" in second
    assert taken(ready) == order, "the same images in the same order"
    assert largest_difference(losses(ready), whole) < 1e-5

    both(ready, hosts, torchrun, *WORDS)
    assert taken(ready) == order, "under torchrun"
    assert largest_difference(losses(ready), whole) < 1e-5
    assert [run.info.status for run in runs(ready)] == ["FINISHED"] * 3


@pytest.mark.parametrize("launcher", [machine, torchrun, accelerate, slurm])
def test_two_hosts_embed_as_one_process(ready: Path, hosts: list[Host], launcher: Start) -> None:
    folder = workspace(ready).features("glyphs")

    def made() -> dict[str, bytes]:
        content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        shutil.rmtree(folder)
        return content

    whole = made()
    first, second = both(ready, hosts, launcher, "embed", "--dataset", "glyphs")
    assert "training images, 8 features" in first
    finished = "machine 1 has finished embed glyphs; machine 0 has the results"
    assert (finished in second) == (launcher in (machine, slurm))
    assert made() == whole


def begin(root: Path, hosts: list[Host], start: Start, held: int) -> list[subprocess.Popen[str]]:
    """Both hosts train until the worker of one is held, and the other waits for it."""
    hold = root / f"hold-{held}-{HELD}"
    hold.touch()
    started = [start(root, host, rank, *WORDS) for rank, host in enumerate(hosts)]

    def is_held() -> bool:
        assert all(process.poll() is None for process in started), ended(started, 30)
        note = root / f"taken-{held}.jsonl"
        return begun(root) and note.exists() and f" {HELD}, [" in note.read_text()

    wait(is_held, 240)
    assert saved(root)
    time.sleep(2 * machines.BEAT_S + 2)  # each has heard the other
    return started


def release(root: Path) -> None:
    """Hold no worker any longer."""
    for hold in root.glob("hold-*"):
        hold.unlink()


def reported(process: subprocess.Popen[str], since: float) -> str:
    """What a command said that has to end: the first line of it that names a machine."""
    assert process.stdout
    for line in process.stdout:
        if "uotft: machine " in line:
            assert time.monotonic() - since < REPORTED_S
            return line
    raise AssertionError(f"it ended with {process.wait()}, and named none")


@pytest.mark.parametrize("dead", [0, 1])
def test_a_host_that_dies_is_named_and_two_go_on(ready: Path, dead: int) -> None:
    with network(*NAMES) as hosts:
        started = begin(ready, hosts, machine, held=dead)
        killed = time.monotonic()
        hosts[dead].die()
        said = reported(started[1 - dead], killed)
        assert f"machine {dead} ({NAMES[dead]}, 10.77.0.{dead + 1}) has not been heard" in said
        [rest] = ended(started[1 - dead :][:1], 60)
        assert started[1 - dead].returncode == 2, rest
        assert "Traceback" not in rest
        wait(lambda: not hosts[1 - dead].processes(), 30)
        ended(started[dead:][:1], 10)
        assert not inside(ready)
    release(ready)
    with network(*NAMES) as hosts:
        first, _ = both(ready, hosts, machine, *WORDS)
    assert "going on at step 20" in first


def test_a_cable_that_is_pulled_is_named_and_one_goes_on(ready: Path, hosts: list[Host]) -> None:
    alone(ready, *WORDS)
    whole = losses(ready)
    taken(ready)
    started = begin(ready, hosts, machine, held=1)
    pulled = time.monotonic()
    hosts[1].cut()
    first, second = (reported(process, pulled) for process in started)
    assert "machine 1 (node-b, 10.77.0.2) has not been heard from for 30 s" in first
    assert "machine 0 (node-a, 10.77.0.1) has not been heard from for 30 s" in second
    ended(started, 60)
    assert [process.returncode for process in started] == [2, 2]
    wait(lambda: not inside(ready), 30)
    last = runs(ready)[0]
    assert (last.info.status, "machine 1 (node-b" in last.data.tags["failure"]) == ("FAILED", True)

    release(ready)
    said = alone(ready, *WORDS)
    assert "was saved by 2 processes, and 1 resume from it: the order of the images stays" in said
    assert largest_difference(losses(ready), whole) < 1e-5


def test_a_host_that_dies_is_named_under_torchrun(ready: Path, hosts: list[Host]) -> None:
    started = begin(ready, hosts, torchrun, held=1)
    killed = time.monotonic()
    hosts[1].die()
    assert "machine 1 (node-b, 10.77.0.2) has" in reported(started[0], killed)
    ended(started, 90)
    assert started[0].returncode
    wait(lambda: not inside(ready), 30)


DVC_STAGE = """
stages:
  slow:
    cmd:
    - echo begun >> said
    - for i in $(seq 600); do [ -e go ] || sleep 0.1; done
    - echo made > made
    outs: [made]
"""


def test_of_two_hosts_one_runs_a_stage_of_dvc(hosts: list[Host], fresh: Path) -> None:
    """DVC's own lock takes a process of another host for dead, and runs the stage twice."""
    (fresh / "dvc.yaml").write_text(DVC_STAGE)
    mine = users_environment() | {"PYTHONPATH": str(REPOSITORY / "src")}
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, cwd=fresh, check=True, env=mine)
    code = (
        "import pathlib, sys; from uotft.runs import job; from uotft.core import messages\n"
        "from uotft.pipeline.workspace import Workspace\n"
        "messages.setup(); job._repro(Workspace.find(pathlib.Path.cwd()), ['slow'])"
    )
    words = [sys.executable, "-c", code]
    first = hosts[0].start(*words, cwd=fresh, environment=mine)
    wait(lambda: (fresh / "said").exists())
    second = hosts[1].start(*words, cwd=fresh, environment=mine)
    assert second.stdout
    waits = next((line for line in second.stdout if "waiting for process" in line), "")
    (fresh / "go").touch()
    said = ended([first, second], 120)
    assert [first.returncode, second.returncode] == [0, 0], said
    assert (fresh / "said").read_text() == "begun\n", "once"
    assert re.search(r"waiting for process \d+ on node-a, since .* which runs DVC", waits)
    assert "slow:" in (fresh / "dvc.lock").read_text()
