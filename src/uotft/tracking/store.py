"""The store of runs: where it is, how it is opened, which runs it has. Only this room has MLflow.

`journal` writes what a run has to say into files, `delivery` brings it to the store. That is where
a bare ``mlflow ui`` in the repository root looks: mlflow.db, with artifacts in mlruns/.
MLFLOW_TRACKING_URI, when set, names another. Making the database takes seconds and fails when two
processes try at once, so the first contact is made under a file lock. DVC runs queued experiments
in copies of the project; their runs are in the store of the project itself.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from uotft.core.errors import UserError
from uotft.core.storage import read_yaml

ID = "uotft.run"  # the tag with our own id of a run, which it has before MLflow knows of it
WEIGHTS = "model.sha256"  # the tag with the fingerprint of what a run made
TURN_S = 120  # a server that hangs holds up those behind it no longer
NOTE = "mlflow.note.content"  # the tag that the page shows as the run's description
EXPERIMENT = {"DVC_EXP_NAME": "dvc.exp.name", "DVC_EXP_BASELINE_REV": "dvc.exp.baseline"}


def home(root: Path) -> Path:
    """The project whose store tracks: ``root``, or what ``root`` is an experiment's copy of.

    In experiments DVC_ROOT names that; in other stages of DVC it is the root.
    """
    return Path(os.environ.get("DVC_ROOT", root)) if "DVC_EXP_NAME" in os.environ else root


def store_uri(root: Path, given: str | None = None) -> str:
    """Where runs are tracked: ``given`` or MLFLOW_TRACKING_URI, or mlflow.db in the project's root.

    The path of a database counts from the root, wherever the command was given.
    """
    words = os.environ.get("MLFLOW_TRACKING_URI", "") if given is None else given
    scheme, slashes, path = words.partition(":///")
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
    """The mlflow module, pointed at the store, which answers."""
    uri = store_uri(root)
    try:
        make_store(root)
        mlflow = _mlflow(uri)
        mlflow.search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  a server, a database and its driver fail in any way
        if isinstance(error, OSError) and error.filename is not None:  # says it itself
            raise
        raise UserError(f"MLflow's store {uri} does not answer: {brief(error)}") from error
    return mlflow


def is_there(root: Path) -> bool:
    """Whether the store is there already; of one that is no file it is taken so."""
    uri = store_uri(root)
    return not uri.startswith("sqlite:") or Path(uri.removeprefix("sqlite:///")).is_file()


def connect(root: Path, experiment: str, given: str | None = None) -> Any:
    """The mlflow module, pointed at the store, with ``experiment`` there and active."""
    uri = store_uri(root, given)
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

    return FileLock(home(root) / ".mlflow.lock", timeout=TURN_S)


def _mlflow(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # by default a request to a server that is down takes minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of what is done on purpose
    mlflow.set_tracking_uri(uri)
    return mlflow


def brief(error: BaseException) -> str:
    """The beginning of an error: MLflow puts those of all that it calls behind it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(" failed with exception")[0][:200]


def existing(mlflow: Any, run_id: str) -> Any:
    """The run of this id, or nothing if it was deleted or the store is another."""
    try:
        found = mlflow.get_run(run_id) if run_id else None
    except mlflow.exceptions.MlflowException:
        return None
    return found if found and found.info.lifecycle_stage == "active" else None


def find(mlflow: Any, run_id: str) -> Any:
    """The run with our own id, or None."""
    return newest(mlflow, f"tags.`{ID}` = '{run_id}'", everywhere=True)


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
