"""A team's server: MLflow on PostgreSQL and S3, which restart while people train against it."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from support.commands import answer, call
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap
from support.team_server import Team, team_server
from support.watched_commands import started, wait_for
from uotft.core import jsonl, storage
from uotft.core.records import Cell
from uotft.pipeline import select
from uotft.tracking import delivery, session, store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
STEPS, EVERY, HELD = 2000, 20, 600  # of a training, between two points of its losses, and a wait
# what Python imports at its start: a worker waits there, as long as the file "hold" exists
SITE = f"""
import os, sys, time
if "uotft.runs.worker" in sys.orig_argv:
    from uotft.training.streams import Stream
    batch = Stream.__getitem__
    def held(self, step):
        while step >= {HELD} and os.path.exists("hold"):
            time.sleep(0.05)
        return batch(self, step)
    Stream.__getitem__ = held
"""


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    """The server, for all tests here."""
    with team_server() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "MLFLOW_HTTP_REQUEST_TIMEOUT", "60"
        )  # s; a store that is back is slow at first
        yield made


@pytest.fixture(scope="module")
def both(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{strategy: the project of the person who trains it}."""
    folders = {}
    for strategy in ("none", "uot"):
        folders[strategy] = folder = tmp_path_factory.mktemp("home") / "project"
        shutil.copytree(tiny, folder)
        params = tiny_params() | {"seeds": [0]}
        params["train"]["recipe"] |= {"steps": STEPS, "log_every": EVERY, "eval_every": STEPS // 4}
        write_params(folder, params)
        find_overlap(folder)
        select.select(workspace(folder), Cell("digits", strategy, 0))
        storage.write_bytes(folder / "site/sitecustomize.py", SITE.encode())
        (folder / "hold").touch()
    return folders


def words(strategy: str) -> list[str]:
    return ["train", "--dataset", "digits", "--strategy", strategy, "--seed", "0"]


def here(team: Team) -> dict[str, str]:
    """What a user sets."""
    return {"MLFLOW_TRACKING_URI": team.address}


def runs(team: Team) -> dict[str, Any]:
    """{name: run} of the server."""
    import mlflow

    mlflow.set_tracking_uri(team.address)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert len({run.info.run_name for run in found}) == len(found), "no run is there twice"
    return {run.info.run_name: run for run in found}


def must_be_whole(team: Team, run: Any, folder: Path, strategy: str) -> None:
    """All that a training logged is on the server, once; its model is in S3, and can be used."""
    import mlflow

    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    model = workspace(folder).cell("models", Cell("digits", strategy, 0))
    assert run.data.tags["model.sha256"] == storage.read_json(model / "model.json")["sha256"]
    client = mlflow.MlflowClient()
    losses = client.get_metric_history(run.info.run_id, "loss/target")
    assert sorted(point.step for point in losses) == [*range(0, STEPS, EVERY)]
    with (model / "history.csv").open() as file:
        wanted = {int(row["step"]): row["val/top1"] for row in csv.DictReader(file)}
    tested = client.get_metric_history(run.info.run_id, "val/top1")
    assert {point.step: point.value for point in tested} == {
        step: pytest.approx(float(value)) for step, value in wanted.items() if value
    }
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"selection", "selected_classes.json"} <= names
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), "no password of S3 here"
    kept = team.objects.folder / "mlflow" / run.info.experiment_id
    assert (kept / run.info.run_id / "artifacts/selection/selection.json").is_file()
    logged = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model"))
    [weights] = logged.rglob("*.safetensors")
    assert storage.fingerprint(weights) == run.data.tags["model.sha256"]


def test_the_database_restarts_while_two_train(team: Team, both: dict[str, Path]) -> None:
    with ExitStack() as stack:
        trainings = {
            name: stack.enter_context(
                started(folder, *words(name), PYTHONPATH=str(folder / "site"), **here(team))
            )
            for name, folder in both.items()
        }
        for name, process in trainings.items():
            wait_for(process, lambda name=name: tracked(team, name))
        team.database.stop()
        before = {name: len(points(folder)) for name, folder in both.items()}
        search = f"{team.address}/api/2.0/mlflow/experiments/search"
        status = requests.post(search, json={"max_results": 1}, timeout=60).status_code
        for name, folder in both.items():
            (folder / "hold").unlink()
            wait_for(trainings[name], lambda n=name, f=folder: len(points(f)) > before[n] + 10)
        team.database.start()
        assert status >= 500, "the server could keep nothing"
        for process in trainings.values():
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
            assert "Traceback" not in said
    for folder in both.values():
        done = call("uotft", "sync", cwd=folder, **here(team))
        assert done.returncode == 0, done.stdout
        assert not [*(folder / "unsent").iterdir()]
        assert not (folder / "mlflow.db").exists(), "MLFLOW_TRACKING_URI is the only store"
        assert not (folder / "mlruns").exists()
    found = runs(team)
    assert {*found} == {"digits-none-0", "digits-uot-0"}
    for strategy, folder in both.items():
        must_be_whole(team, found[f"digits-{strategy}-0"], folder, strategy)


def tracked(team: Team, strategy: str) -> bool:
    run = runs(team).get(f"digits-{strategy}-0")
    return run is not None and "loss/target" in run.data.metrics


def points(folder: Path) -> list[Any]:
    """What the training of a folder has logged."""
    [made] = (folder / "unsent").glob("*/points.jsonl")
    return jsonl.read(made)[0]


def test_what_waited_is_delivered_once_the_store_is_back(team: Team, tmp_path: Path) -> None:
    """A run that ends while PostgreSQL is down, and one while S3 is."""
    environment = here(team) | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    storage.write_json(tmp_path / "selected/selection.json", {"classes": ["lion"]})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name, part in {"database-down": team.database, "s3-down": team.objects}.items():
            part.stop()
            with session.run(tmp_path, "outage", name) as run:
                run.begin({"seed": 7}, {})
                run.log([(step, {"loss": 1 / (step + 1)}) for step in range(50)])
                run.files(tmp_path / "selected", "selection")
            [(sent, why)] = delivery.sync(tmp_path)
            assert not sent
            assert team.address in why
            part.start()
            assert [*delivery.sync(tmp_path)] == [(True, f"{name}: sent")]
            assert not [*(tmp_path / "unsent").iterdir()]
            client = store.connect(tmp_path, "outage").MlflowClient()
            found = runs(team)[name].info
            assert found.status == "FINISHED"
            history = client.get_metric_history(found.run_id, "loss")
            assert sorted(point.step for point in history) == [*range(50)]
            paths = [file.path for file in client.list_artifacts(found.run_id, "selection")]
            assert paths == ["selection/selection.json"]


def test_everyone_compares_all_runs_of_the_server(
    team: Team, both: dict[str, Path], tmp_path: Path
) -> None:
    if {"digits-none-0", "digits-uot-0"} - runs(team).keys():
        pytest.skip("the trainings of the first test are not there")
    for strategy, folder in both.items():
        done = call(
            "uotft", "evaluate", "--dataset", "digits", "--strategy", strategy, cwd=folder,
            **here(team),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "sync" not in done.stdout
    for folder in (both["none"], tmp_path):  # a member of the team, and a reader without a project
        shown = answer("uotft", "compare", "--experiment", "digits", cwd=folder, **here(team))
        assert shown.returncode == 0, shown.stderr
        assert "\n2 runs\n" in shown.stdout
        assert "│ none " in shown.stdout
        assert "│ uot " in shown.stdout
    assert [*tmp_path.iterdir()] == []
