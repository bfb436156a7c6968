"""Cells of a scheduler, without one: who is fit, who waits, and what is not trained twice."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from support.projects import tiny_params, workspace, write_params
from uotft.core import environment, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.core.signals import StopRequest
from uotft.pipeline import freshness
from uotft.pipeline.workspace import Workspace
from uotft.runs import job, outlook, remote, scheduler
from uotft.runs.processes import Crew, Fleet
from uotft.tracking import outbox, session

CELL = Cell("digits", "uot", 0)


def needed(root: Path) -> dict[str, Any]:
    (root / "unfinished").mkdir(exist_ok=True)
    (root / "unfinished/token").touch()
    return {"root": str(root), "token": "token", **scheduler._packages()}


def test_a_worker_needs_the_same_folder_and_the_same_code(tmp_path: Path) -> None:
    assert scheduler.unfit(needed(tmp_path)) == ""
    other = needed(tmp_path) | {"uotft": "0.1.0, code 12345678"}
    assert "has another uotft (0.1.0, code " in scheduler.unfit(other)
    other = needed(tmp_path) | {"torch": "1.0"}
    assert "has another torch" in scheduler.unfit(other)
    (tmp_path / "unfinished/token").unlink()
    other = scheduler._packages() | {"root": str(tmp_path), "token": "token"}
    assert f"does not see the project's folder {tmp_path}" in scheduler.unfit(other)


def test_a_worker_trains_for_the_store_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    monkeypatch.setenv("RANK", "3")
    handed = environment.handed()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://the.workers.own")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    there = environment.unlaunched(handed)
    assert there["MLFLOW_TRACKING_URI"] == "http://mine"
    assert there["CUDA_VISIBLE_DEVICES"] == "", "what the worker's user has set stays"
    assert "RANK" not in there
    assert "MLFLOW_TRACKING_URI" not in environment.unlaunched({"MLFLOW_TRACKING_URI": ""})


def test_a_file_of_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "variants/a/model.json"
    storage.write_bytes(file, b"new")
    fingerprint = storage.fingerprint(file)
    storage.write_bytes(file, b"old")
    later = threading.Timer(0.5, storage.write_bytes, (file, b"new"))
    later.start()
    scheduler._see(tmp_path, file, fingerprint)
    later.join()
    monkeypatch.setattr(scheduler, "SEEN_S", 0.1)
    with pytest.raises(UserError, match="a worker has written it, and it is not seen here"):
        scheduler._see(tmp_path, file, "another")


@pytest.fixture
def trained(trainable: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that were trained, in name alone."""
    found: list[Cell] = []

    def train(ws: Any, cell: Cell, *more: Any) -> tuple[dict[str, Any], str]:
        found.append(cell)
        facts = {"validation": {"val/top1": 50.0}}
        storage.write_json(ws.cell("models", cell) / "model.json", facts)
        freshness.write_finished(ws, cell, freshness.of_cell(ws, cell, 1), 1.0)
        return facts, "trained"

    monkeypatch.setattr(job, "_train", train)
    for name in ("validation", "chance", "fallen"):
        monkeypatch.setattr(outlook, name, lambda *_: "")
    return found


def test_a_cell_that_was_finished_meanwhile_is_not_trained_again(
    trainable: Path, trained: list[Cell]
) -> None:
    """Another machine, or another command, had it after this one looked for missing cells."""
    ws, crew = workspace(trainable).with_changes(["train.lambda=0.5"]), Crew(Fleet(), trainable)
    assert job.train(ws, CELL, crew, current=True) == "trained"
    assert "is trained already" in job.train(ws, CELL, crew, current=True)
    assert trained == [CELL]
    assert job.train(ws, CELL, crew, current=True, again=True) == "trained"
    other = workspace(trainable).with_changes(["train.lambda=0.6"])
    assert job.train(other, CELL, crew, current=True) == "trained"
    assert len(trained) == 3


def test_no_password_is_sent_to_workers(trainable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@127.0.0.1:9")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI has a password") as refused:
        scheduler.check(Fleet(scheduler="tcp://127.0.0.1:9"), workspace(trainable))
    assert "s3cret" not in str(refused.value)


def test_a_cell_that_another_machine_holds_is_waited_for(
    trainable: Path, trained: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BUSY_S", 0.05)
    ws, crew = workspace(trainable).with_changes(["train.lambda=0.5"]), Crew(Fleet(), trainable)
    lines: list[str] = []

    def wait() -> None:
        lines.append(remote._when_free(ws, CELL, crew, remote.Report(-1)))

    waiting = threading.Thread(target=wait)
    with job.owning(ws, ws.cell("models", CELL)) as lock:
        waiting.start()
        time.sleep(0.5)
        assert not lines
        job._select(ws, CELL)
        job._train(ws, CELL, crew, lock, lambda points: None)
    waiting.join(30)
    assert "is trained already" in lines[0]
    assert trained == [CELL]


def ordered(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a worker gets to train the cell."""
    found: list[Any] = []

    def run(task: Any, work: Any, key: str, order: Any, *more: Any) -> dict[str, Any]:
        found.append(json.loads(json.dumps(order)))
        return {"code": 0, "history": [], "made": {}, "line": ""}

    monkeypatch.setattr(scheduler._Task, "run", run)
    fleet = Fleet(scheduler="tcp://1.2.3.4:5")
    there = scheduler._There(Mock(), fleet, {"token": "token"}, StopRequest())
    there.train(ws, CELL, lambda points: None, lambda where: None)
    return found[0]


def edit(root: Path, **recipe: int) -> None:
    """Change params.yaml, as while a cell is in the queue."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["seeds"] = [7]
    params["train"]["recipe"] |= recipe
    write_params(root, params)


def test_a_cell_whose_params_yaml_was_edited_in_the_queue_is_refused(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the machine of the command: the run would name settings that were not used."""
    order = ordered(workspace(trainable).with_changes(["train.lambda=0.5"]), monkeypatch)
    edit(trainable, steps=2)
    monkeypatch.chdir(trainable)
    changed = r"inputs changed since this command began: train\.recipe\.steps; give the command ag"
    with pytest.raises(UserError, match=changed):
        remote._train(order, remote.Report(-1))


def test_a_cell_is_trained_by_the_settings_of_its_command(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["train.lambda=0.5", "selectors.uot.tau_target=.inf"]
    ws, trained = workspace(trainable).with_changes(changes), list[Workspace]()
    order = ordered(ws, monkeypatch)
    edit(trainable)

    def train(there: Workspace, *more: Any, **options: Any) -> str:
        trained.append(there)
        storage.write_csv(there.cell("models", CELL) / "history.csv", [{"step": 1}])
        return ""

    monkeypatch.chdir(trainable)
    monkeypatch.setattr(Crew, "start", lambda crew: None)
    monkeypatch.setattr(job, "train", train)
    remote._train(order, remote.Report(-1))
    assert trained == [ws]


def test_a_run_elsewhere_is_a_child_of_the_run_around_its_command(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    with session.run(tmp_path, "digits", "search") as parent:
        handed = session.enclosing()
    assert handed == parent.id
    with session.inside(handed), session.run(tmp_path, "digits", "training") as run:
        assert storage.read_json(run.folder / outbox.RUN)["parent"] == parent.id
    assert session.enclosing() == ""
