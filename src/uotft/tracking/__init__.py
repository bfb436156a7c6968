"""Runs, parameters, metrics, artifacts -> MLflow. The only room that imports it.

The store is where a bare ``mlflow ui`` in the repository root looks: mlflow.db, with artifacts in
mlruns/. MLFLOW_TRACKING_URI, when set, names another. Making the database takes seconds and fails
when two processes try at once, so the first contact is made under a file lock.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

from uotft.errors import Interrupted, Pruned
from uotft.records import Answers
from uotft.store import read_json, write_answers, write_json

SERVING = Path(__file__).with_name("serving.py")
MAX_BATCH = 1000  # metrics that one call of the tracking API takes


def store_uri(root: Path) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, or mlflow.db in the repository root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def is_there(root: Path) -> bool:
    """Whether the store is there already; of one that MLFLOW_TRACKING_URI names it is taken so."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (root / "mlflow.db").is_file()


def client(root: Path) -> Any:
    """The mlflow module, pointed at the store."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of what is done on purpose
    mlflow.set_tracking_uri(store_uri(root))
    return mlflow


def connect(root: Path, experiment: str) -> Any:
    """The mlflow module, pointed at the store, with ``experiment`` there and active."""
    from filelock import FileLock

    mlflow, uri = client(root), store_uri(root)
    with FileLock(root / ".mlflow.lock"):
        if mlflow.get_experiment_by_name(experiment) is None:
            local = (root / "mlruns" / experiment).as_uri() if uri.startswith("sqlite:") else None
            mlflow.create_experiment(experiment, artifact_location=local)
        mlflow.set_experiment(experiment)
    return mlflow


class Run:
    """One MLflow run; metrics are sent in batches, and each point once.

    ``known`` are the (name, step) of points that the run has from before it was interrupted.
    """

    def __init__(self, mlflow: Any, run_id: str, known: Iterable[tuple[str, int]] = ()) -> None:
        self.mlflow, self.id, self.known = mlflow, run_id, frozenset(known)

    def log(self, points: list[tuple[int, dict[str, float]]]) -> None:
        """Send (step, {name: value}) points."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        new = [
            (k, v, step) for step, p in points for k, v in p.items() if (k, step) not in self.known
        ]
        metrics = [Metric(k, v, now, step) for k, v, step in new]
        for start in range(0, len(metrics), MAX_BATCH):
            part = metrics[start : start + MAX_BATCH]
            self.mlflow.MlflowClient().log_batch(self.id, metrics=part)

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags."""
        self.mlflow.set_tags(tags)

    def table(self, rows: list[dict[str, Any]], columns: tuple[str, ...], name: str) -> None:
        """A table artifact, which the MLflow page shows as one; one that is there stays."""
        if name in [f.path for f in self.mlflow.MlflowClient().list_artifacts(self.id)]:
            return  # MLflow would append to it
        self.mlflow.log_table({c: [row[c] for row in rows] for c in columns}, name)

    def files(self, folder: Path, name: str | None = None) -> None:
        """Every file of a folder as an artifact."""
        self.mlflow.log_artifacts(str(folder), name)

    def model(self, folder: Path, image_size: list[int]) -> None:
        """The folder's weights as a pyfunc model: safetensors and a script, no pickle."""
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema, TensorSpec

        images = TensorSpec(np.dtype(np.uint8), (-1, *image_size))
        answer = Schema([ColSpec("string", "label"), ColSpec("double", "probability")])
        # MLflow recommends type hints and an input example, past every warnings filter: the
        # signature says it already, and an example would be run, and so import torch here
        with redirect_stderr(io.StringIO()):
            self.mlflow.pyfunc.log_model(
                name="model",
                python_model=str(SERVING),
                artifacts={"model": str(folder)},
                code_paths=[str(Path(__file__).parents[1])],
                signature=ModelSignature(inputs=Schema([images]), outputs=answer),
                pip_requirements=_requirements(folder),
            )


@contextmanager
def run(
    root: Path,
    experiment: str,
    name: str,
    *,
    params: dict[str, Any],
    tags: dict[str, str],
    run_id: str = "",
) -> Iterator[Run]:
    """A run: FINISHED at the end, KILLED when interrupted, FAILED on any other exception.

    A new one, or the one of ``run_id`` again if the store still has it. Inside the block of
    another one it is that one's child.
    """
    mlflow = connect(root, experiment)
    status, client = "FAILED", mlflow.MlflowClient()
    before = _existing(mlflow, run_id)
    started = mlflow.start_run(
        run_id=run_id if before else None, run_name=name, nested=True, tags=tags
    )
    try:
        known = before.data if before else started.data
        mlflow.log_params({k: v for k, v in params.items() if k not in known.params})
        history = (client.get_metric_history(started.info.run_id, k) for k in known.metrics)
        seen = [(point.key, point.step) for points in history for point in points]
        yield Run(mlflow, started.info.run_id, seen)
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted, Pruned):
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def _existing(mlflow: Any, run_id: str) -> Any:
    """The run of this id, or nothing if it was deleted or the store is another."""
    try:
        found = mlflow.get_run(run_id) if run_id else None
    except mlflow.exceptions.MlflowException:
        return None
    return found if found and found.info.lifecycle_stage == "active" else None


def log_test(
    root: Path,
    experiment: str,
    model: str,
    numbers: dict[str, float],
    answers: dict[int, Answers],
    confusion: list[list[int]],
) -> bool:
    """Add test metrics to the newest run that made the weights ``model`` (SHA-256); False if none.

    ``answers`` of its one seed and the confusion matrix go to its artifacts, in test/. A stage that
    DVC took from its cache was not executed here, so there may be no such run.
    """
    mlflow = connect(root, experiment)
    runs = mlflow.search_runs(
        filter_string=f"tags.`model.sha256` = '{model}'", output_format="list", max_results=1
    )
    if not runs:
        return False
    run, [said] = runs[0].info.run_id, answers.values()
    client = mlflow.MlflowClient()
    if any(runs[0].data.metrics.get(k) != v for k, v in numbers.items()):
        Run(mlflow, run).log([(0, numbers)])
    elif "test" in {artifact.path for artifact in client.list_artifacts(run)}:
        return True
    with TemporaryDirectory(prefix="uotft-") as name:
        folder = Path(name)
        write_answers(folder / "predictions.npz", answers)
        write_json(folder / "confusion.json", {"classes": said.names, "confusion": confusion})
        client.log_artifacts(run, name, "test")
    return True


def versions(root: Path) -> dict[str, str]:
    """Tags that name the code and the data: the git commit and the hashes in dvc.lock."""
    import subprocess

    import yaml

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    tags = {"git.commit": git("rev-parse", "--verify", "--quiet", "HEAD") or "none"}
    tags["git.dirty"] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    lock = root / "dvc.lock"
    if lock.is_file():
        stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {})
        for name, stage in stages.items():
            if name.partition("@")[0] in ("prepare", "pretrain", "embed", "overlap"):
                tags |= {f"dvc.{out['path']}": out["md5"] for out in stage.get("outs", [])}
    return tags


def _requirements(folder: Path) -> list[str]:
    from importlib.metadata import version

    needed = ["accelerate", "mlflow", "numpy", "pydantic", "safetensors", "torch", "torchvision"]
    if "'timm'" in str(read_json(folder / "model.json")["backbone"]):  # inside state_dict too
        needed.append("timm")
    return [f"{name}=={version(name)}" for name in needed]


def server(root: Path, port: int) -> list[str]:
    """The command that serves the store on this machine only: one worker, no job runner."""
    import sys

    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    where = ["--backend-store-uri", store_uri(root), "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "ui", *where, "--workers", "1"]
