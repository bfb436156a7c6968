"""Runs, parameters, metrics, artifacts -> MLflow. The only room that imports it.

The store is where a bare ``mlflow ui`` in the repository root looks: mlflow.db, with artifacts in
mlruns/. MLFLOW_TRACKING_URI, when set, names another. Making the database takes seconds and fails
when two processes try at once, so the first contact is made under a file lock. DVC runs queued
experiments in copies of the project; their runs are in the store of the project itself.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

from uotft.errors import Interrupted, Pruned
from uotft.records import Answers
from uotft.store import read_json, read_yaml, write_answers, write_json

SERVING = Path(__file__).parents[1] / "serving.py"
MAX_BATCH = 1000  # metrics that one call of the tracking API takes
WEIGHTS = "model.sha256"  # the tag with the fingerprint of what a run made
NOTE = "mlflow.note.content"  # the tag that the page shows as the run's description
EXPERIMENT = {"DVC_EXP_NAME": "dvc.exp.name", "DVC_EXP_BASELINE_REV": "dvc.exp.baseline"}


def home(root: Path) -> Path:
    """The project whose store tracks: ``root``, or what ``root`` is an experiment's copy of.

    In experiments DVC_ROOT names that; in other stages of DVC it is the root.
    """
    return Path(os.environ.get("DVC_ROOT", root)) if "DVC_EXP_NAME" in os.environ else root


def store_uri(root: Path) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, or mlflow.db in the project's root.

    The path of a database counts from the root, wherever the command was given.
    """
    scheme, slashes, path = os.environ.get("MLFLOW_TRACKING_URI", "").partition(":///")
    if scheme in ("", "sqlite"):
        return f"sqlite:///{home(root) / (path or 'mlflow.db')}"
    return scheme + slashes + path


def make_store(root: Path) -> None:
    """Make the database if it is not there: a server would not wait for its turn."""
    uri = store_uri(root)
    with _turn(root):
        if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
            _mlflow(uri).search_experiments(max_results=1)


def open_store(root: Path) -> Any:
    """The mlflow module, pointed at the store."""
    make_store(root)
    return _mlflow(store_uri(root))


def is_there(root: Path) -> bool:
    """Whether the store is there already; of one that is no file it is taken so."""
    uri = store_uri(root)
    return not uri.startswith("sqlite:") or Path(uri.removeprefix("sqlite:///")).is_file()


def connect(root: Path, experiment: str) -> Any:
    """The mlflow module, pointed at the store, with ``experiment`` there and active."""
    uri = store_uri(root)
    mlflow = _mlflow(uri)
    with _turn(root):
        if mlflow.get_experiment_by_name(experiment) is None:
            artifacts = home(root) / "mlruns" / experiment
            local = artifacts.as_uri() if uri.startswith("sqlite:") else None
            mlflow.create_experiment(experiment, artifact_location=local)
        mlflow.set_experiment(experiment)
    return mlflow


def _turn(root: Path) -> AbstractContextManager[Any]:
    from filelock import FileLock

    return FileLock(home(root) / ".mlflow.lock")


def _mlflow(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of what is done on purpose
    mlflow.set_tracking_uri(uri)
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

    def data(self, name: str, path: str, md5: str, role: str) -> None:
        """A data set that the run reads, in the file ``path`` with the hash that DVC gave it."""
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.data.sources import LocalArtifactDatasetSource

        data = MetaDataset(LocalArtifactDatasetSource(path), name, md5)
        self.mlflow.log_input(data, context=role)

    def model(self, folder: Path) -> None:
        """The folder's weights as a pyfunc model: safetensors and a script, no pickle.

        It takes images or paths of files. A signature can have only one of them, so it has neither.
        """
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        answer = Schema([ColSpec("string", "label"), ColSpec("double", "probability")])
        # MLflow recommends type hints and an input example, past every warnings filter: the
        # signature says it already, and an example would be run, and so import torch here
        with redirect_stderr(io.StringIO()):
            self.mlflow.pyfunc.log_model(
                name="model",
                python_model=str(SERVING),
                artifacts={"model": str(folder)},
                code_paths=[str(Path(__file__).parents[1])],
                signature=ModelSignature(outputs=answer),
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
    data: dict[str, str] | None = None,
    run_id: str = "",
) -> Iterator[Run]:
    """A run: FINISHED at the end, KILLED when interrupted, FAILED on any other exception.

    A new one, or the one of ``run_id`` again if the store still has it. Inside the block of
    another one it is that one's child. ``data`` are the data sets that it reads, {role: name};
    those count that ``tags`` have a version of.
    """
    mlflow = connect(root, experiment)
    status, client = "FAILED", mlflow.MlflowClient()
    before = existing(mlflow, run_id)
    started = mlflow.start_run(
        run_id=run_id if before else None, run_name=name, nested=True, tags=tags
    )
    try:
        known = before.data if before else started.data
        mlflow.log_params({k: v for k, v in params.items() if k not in known.params})
        history = (client.get_metric_history(started.info.run_id, k) for k in known.metrics)
        seen = [(point.key, point.step) for points in history for point in points]
        run = Run(mlflow, started.info.run_id, seen)
        for role, dataset in (data or {}).items():
            path = f"data/{dataset}.npz"
            if f"dvc.{path}" in tags:
                run.data(dataset, path, tags[f"dvc.{path}"], role)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted, Pruned):
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def existing(mlflow: Any, run_id: str) -> Any:
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
    run = newest(mlflow, made(model))
    if run is None:
        return False
    (said,), client, run_id = answers.values(), mlflow.MlflowClient(), run.info.run_id
    if any(run.data.metrics.get(k) != v for k, v in numbers.items()):
        Run(mlflow, run_id).log([(0, numbers)])
    elif "test" in {artifact.path for artifact in client.list_artifacts(run_id)}:
        return True
    with TemporaryDirectory(prefix="uotft-") as name:
        folder = Path(name)
        write_answers(folder / "predictions.npz", answers)
        write_json(folder / "confusion.json", {"classes": said.names, "confusion": confusion})
        client.log_artifacts(run_id, name, "test")
    return True


def newest(mlflow: Any, wanted: str, *, everywhere: bool = False) -> Any:
    """The newest run that a filter of MLflow's finds, or None; in this experiment, or in all."""
    runs = mlflow.search_runs(
        filter_string=wanted,
        search_all_experiments=everywhere,
        output_format="list",
        max_results=1,
    )
    return runs[0] if runs else None


def made(weights: str) -> str:
    """The filter for the runs that made these weights (SHA-256)."""
    return f"tags.`{WEIGHTS}` = '{weights}'"


def versions(root: Path) -> dict[str, str]:
    """Tags that name code and data: git commit, hashes in dvc.lock, the DVC experiment, if any."""
    import subprocess

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    tags = {tag: os.environ[name] for name, tag in EXPERIMENT.items() if name in os.environ}
    tags["git.commit"] = git("rev-parse", "--verify", "--quiet", "HEAD") or "none"
    tags["git.dirty"] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    lock = root / "dvc.lock"
    if lock.is_file():
        stages = (read_yaml(lock) or {}).get("stages", {})
        for name, stage in stages.items():
            if name.partition("@")[0] in ("prepare", "pretrain", "embed", "overlap"):
                tags |= {f"dvc.{out['path']}": out["md5"] for out in stage.get("outs", [])}
    return tags


def _requirements(folder: Path) -> list[str]:
    from importlib.metadata import version

    needed = ["accelerate", "mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml"]
    needed += ["safetensors", "torch", "torchvision"]
    if "'timm'" in str(read_json(folder / "model.json")["backbone"]):  # inside state_dict too
        needed.append("timm")
    return [f"{name}=={version(name)}" for name in needed]
