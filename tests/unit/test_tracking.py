"""A run that goes on after an interruption, in a real store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from uotft import tracking
from uotft.errors import Interrupted, Pruned


def test_a_run_goes_on_with_each_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = {"params": {"steps": 3}, "tags": {"stage": "train"}}
    rows = [{"rank": 1, "name": "a"}]

    def go(points: list, run_id: str = "", **more: object) -> str:
        with tracking.run(tmp_path, "digits", "a-run", **(words | more), run_id=run_id) as run:
            run.table(rows, ("rank", "name"), "classes.json")
            run.log(points)
            if len(points) == 1:
                raise KeyboardInterrupt
            return run.id

    with pytest.raises(KeyboardInterrupt):
        go([(0, {"loss": 2.0})])
    mlflow = tracking.connect(tmp_path, "digits")
    client = mlflow.MlflowClient()
    [first] = mlflow.search_runs(output_format="list")
    assert first.info.status == "KILLED"

    # a setting that decides no weights may have changed, and a GPU may round otherwise
    same = go([(0, {"loss": 2.5}), (1, {"loss": 1.0})], first.info.run_id, params={"steps": 4})
    assert same == first.info.run_id
    run = client.get_run(same)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(same, "loss")
    assert sorted((p.step, p.value) for p in history) == [(0, 2.0), (1, 1.0)]
    table = mlflow.load_table("classes.json", run_ids=[same])
    assert len(table) == 1, "MLflow would append"

    other = go([(0, {}), (1, {})], "0" * 32)
    assert other != same, "a run that the store does not have is not gone on with"


def test_a_run_inside_another_is_its_child_and_a_stop_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    nothing = {"params": {}, "tags": {}}

    def search() -> None:
        with tracking.run(tmp_path, "digits", "parent", **nothing) as parent:
            with (
                suppress(Pruned),
                tracking.run(tmp_path, "digits", "pruned", **nothing),
            ):
                raise Pruned
            parent.tag({"best": parent.id})
            with tracking.run(tmp_path, "digits", "stopped", **nothing):
                raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        search()
    found = tracking.connect(tmp_path, "digits").search_runs(output_format="list")
    assert {run.info.status for run in found} == {"KILLED"}
    [parent] = [run.info.run_id for run in found if "best" in run.data.tags]
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in found}
    assert parents == {"parent": None, "pruned": parent, "stopped": parent}
