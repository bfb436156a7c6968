"""Two projects below one folder train at once into one store, which commands find from there."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from support.commands import answer
from support.projects import runs, tiny_params, workspace, write_params
from support.tracking_page import ask, served
from support.watched_commands import WORDS, ranks, running, start, wait
from uotft.core.records import Cell
from uotft.pipeline import select

NONE = ("train", "--dataset", "digits", "--strategy", "none", "--seed", "0")
EVALUATE = ("evaluate", "--dataset", "digits", "--strategy", "uot")


def params(*, endless: bool = False) -> dict:
    """The toy settings with one seed and a store in the folder above."""
    made = tiny_params() | {"seeds": [0], "tracking": ".."}
    if endless:
        made["train"]["recipe"] |= {"steps": 1_000_000, "eval_every": 0}
    return made


def together(folders: list[Path], *words: str) -> None:
    """Run a command in several projects at once."""
    for process in [start(folder, *words) for folder in folders]:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert "kept in" not in said, "all is sent"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_projects_and_one_store(tiny: Path, tmp_path: Path) -> None:
    both = [tmp_path / name for name in ("uotft-a", "uotft-b")]
    for folder in both:
        shutil.copytree(tiny, folder)
        write_params(folder, params())
        for strategy in ("none", "uot"):
            select.select(workspace(folder), Cell("digits", strategy, 0))
    for words in ("sync", "ui", "compare --experiment digits"):
        done = answer("uotft", *words.split(), cwd=tmp_path)
        assert done.returncode == 2
        assert "no project (params.yaml) and no tracking store" in done.stderr

    together(both, *WORDS)  # on a store that is not there yet
    together(both, *EVALUATE)
    found = {run.data.tags["project"]: run for run in runs(tmp_path)}
    assert sorted(found) == ["uotft-a", "uotft-b"]
    assert len({run.data.tags["model.sha256"] for run in found.values()}) == 1, "the same settings"
    for run in found.values():
        assert run.info.status == "FINISHED"
        assert "test/top1" in run.data.metrics
        assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(
            tmp_path / "mlruns"
        )
    for folder in both:
        assert not (folder / "mlflow.db").exists()
    done = answer("uotft", "compare", "--experiment", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "uot project=uotft-a" in done.stdout
    assert "uot project=uotft-b" in done.stdout
    assert "\n2 runs\n" in done.stdout

    # one is killed with its sender, as by a power cut, while the other one goes on
    write_params(both[0], params(endless=True))
    endless = start(both[0], *NONE)
    wait(lambda: len(runs(tmp_path)) == 3)
    [sender] = running(both[0], "uotft.tracking.sender")
    os.kill(sender, signal.SIGKILL)
    endless.kill()
    endless.communicate()
    wait(lambda: not ranks(both[0]))
    together(both[1:], *NONE)
    [folder] = (tmp_path / "unsent").iterdir()
    assert answer("uotft", "sync", cwd=tmp_path).stdout == "digits-none-0: sent\n"
    assert not folder.exists()
    named = [run for run in runs(tmp_path) if run.info.run_name == "digits-none-0"]
    states = {run.data.tags["project"]: run.info.status for run in named}
    assert states == {"uotft-a": "KILLED", "uotft-b": "FINISHED"}

    with served(tmp_path) as (_, port):
        status, page = ask(port)
        assert status == 200
        assert b'"digits"' in page
    assert "../mlflow.db (" in answer("uotft", "doctor", cwd=both[0]).stdout
