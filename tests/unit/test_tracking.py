"""A run that goes on after an interruption, in a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from uotft import tracking


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
