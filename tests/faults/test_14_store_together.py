"""Fault 14: many processes start at once on a store that does not exist yet, and log at once.

Expected: no migration fails, no database is locked, and each has its run with all its points.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.child_processes import fork, killed
from uotft.tracking import session, store


def test_many_processes_make_one_store(
    tmp_path: Path, trials: Callable[[int, int], int], measured: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow  # noqa: F401  once, before there are many

    processes, points = trials(4, 8), trials(20, 200)

    def train(number: int) -> None:
        """A call for each point, as nothing here does: the store's worst case."""
        with session.run(tmp_path, "digits", f"run-{number}") as run:
            run.begin({"seed": number}, {})
        client = store.connect(tmp_path, "digits").MlflowClient()
        found = store.find(mlflow, run.id)
        for step in range(points):
            client.log_metric(found.info.run_id, "loss", number, step=step)

    started = [fork(lambda number=number: train(number)) for number in range(processes)]
    assert not any([killed(pid) for pid in started])
    client = store.connect(tmp_path, "digits").MlflowClient()
    runs = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert sorted(run.info.run_name for run in runs) == [f"run-{n}" for n in range(processes)]
    for run in runs:
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(steps) == [*range(points)]
        assert run.info.status == "FINISHED"
    measured(f"{processes} processes, {points} calls each: no error, {processes} whole runs")
