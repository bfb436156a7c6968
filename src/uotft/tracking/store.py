"""The MLflow store: its place, how it is opened, which runs it has.

By default it is mlflow.db in ``home``, a folder that projects can share, with artifacts in mlruns/,
where a plain ``mlflow ui`` looks; MLFLOW_TRACKING_URI names another. Creating the database takes
seconds and fails if two processes try at once, so processes take turns at it. A run of a project
that keeps its runs elsewhere than in its own folder has a tag with the project's name.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from uotft.core import dvc, environment, locks, paths, storage
from uotft.core.errors import UserError

ID = "uotft.run"  # the tag with our own id of a run, which exists before MLflow's
PROJECT = "project"  # the tag with the project, in a store that is not in the project's own folder
WARNING = "uotft.warning"  # the tag that says what is wrong with the end of a training, if anything
CLEAN = "clean/"  # before metrics without the test images that are also in the source
WEIGHTS = "model.sha256"  # the tag with the SHA-256 of the weights that a run made
NOTE = "mlflow.note.content"  # the tag that MLflow's page shows as the run's description
TURN_S = 120  # longest time that a process waits for its turn, should a server hang
EXPERIMENT = {"name": "dvc.exp.name", "baseline": "dvc.exp.baseline"}
INPUTS = ("prepare", "pretrain", "embed", "overlap")  # stages whose outputs become tags of a run


def store_uri(home: Path, given: str | None = None) -> str:
    """The store's address: ``given``, or MLFLOW_TRACKING_URI, or mlflow.db in ``home``.

    A relative path of a database is relative to ``home``, not to the current folder.
    """
    uri = environment.tracking_uri() if given is None else given
    scheme, slashes, path = uri.partition(":///")
    if scheme in ("", "sqlite"):
        file, mark, options = path.partition("?")
        return paths.sqlite(home / unquote(file or "mlflow.db")) + mark + options
    return scheme + slashes + path


def shown(home: Path, given: str | None = None) -> str:
    """The same for messages, which end up in logs: without the password that it may hold."""
    return _without_password(store_uri(home, given))


def _without_password(uri: str) -> str:
    """An address with … for its password, in which SQLAlchemy takes /, ? and spaces, too."""
    uri = re.sub(r"(?i)([?&]\w*passw(?:or)?d=)[^&]*", r"\1…", uri)
    return re.sub(r"(://[^/:]*):(?:[^?]*|.*)@", r"\1:…@", uri)


def make_store(home: Path) -> None:
    """Create the database if it is missing, before MLflow's server would: that takes no turns."""
    with _turn(home):
        _make(store_uri(home))


def _make(uri: str) -> None:
    """The same, in this process's turn.

    It gets its name when it is whole: MLflow cannot go on with tables that a killed process left.
    """
    database = paths.of_sqlite(uri)
    if database is None or database.is_file():
        return
    made = database.with_name(f".{database.name}.new")
    for left in (made, made.with_name(f"{made.name}-journal")):
        left.unlink(missing_ok=True)
    _mlflow(uri).MlflowClient(paths.sqlite(made)).search_experiments(max_results=1)
    made.replace(database)
    _share(uri)


def open_store(home: Path) -> Any:
    """The mlflow module, connected to the store; a ``UserError`` if the store does not answer."""
    uri = store_uri(home)
    try:
        make_store(home)
        mlflow = _mlflow(uri)
        mlflow.search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  servers, databases and drivers raise anything
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.filename):
            raise  # its message already names the file
        raise UserError(f"MLflow's store {shown(home)} does not answer: {brief(error)}") from error
    return mlflow


def is_there(home: Path) -> bool:
    """Whether the store exists; a server is assumed to."""
    database = paths.of_sqlite(store_uri(home))
    return database is None or database.is_file()


def connect(home: Path, experiment: str, given: str | None = None) -> Any:
    """The mlflow module, connected to the store; creates ``experiment`` and makes it active."""
    uri = store_uri(home, given)
    mlflow = _mlflow(uri)
    with _turn(home):
        _make(uri)
        if mlflow.get_experiment_by_name(experiment) is None:
            artifacts = home / "mlruns" / experiment
            local = artifacts.as_uri() if paths.of_sqlite(uri) else None
            mlflow.create_experiment(experiment, artifact_location=local)
        mlflow.set_experiment(experiment)
        _share(uri)
    return mlflow


def _share(uri: str) -> None:
    """Let a group write the database, where the umask does: SQLite makes it for its user alone."""
    if database := paths.of_sqlite(uri):
        storage.share(database)


def _turn(home: Path) -> AbstractContextManager[Any]:
    return locks.waiting(home / ".mlflow.lock", TURN_S)


def _mlflow(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # with MLflow's defaults, a request to a server that is down takes minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its warnings are about deliberate choices
    mlflow.set_tracking_uri(uri)
    return mlflow


def brief(error: BaseException) -> str:
    """The first part of an error's message, without a password; MLflow appends all causes."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    words = first.partition(" failed with exception")[0].split(" ")
    return " ".join(map(_without_password, words))[:200]


def existing(mlflow: Any, run_id: str) -> Any:
    """The run with MLflow's id ``run_id``; None if it was deleted or is in another store."""
    try:
        found = mlflow.get_run(run_id) if run_id else None
    except mlflow.exceptions.MlflowException:
        return None
    return found if found and found.info.lifecycle_stage == "active" else None


def find(mlflow: Any, run_id: str, project: str = "") -> Any:
    """The run of a project with our own id, or None; a copied project has ids of the original's."""
    return newest(mlflow, f"tags.`{ID}` = '{run_id}'", project, everywhere=True)


def newest(mlflow: Any, wanted: str, project: str = "", *, everywhere: bool = False) -> Any:
    """The newest run of a project that matches MLflow's filter, or None.

    In the active experiment or in all. ``project`` is "" where the project is the store's folder.
    """
    runs = mlflow.search_runs(
        filter_string=wanted, search_all_experiments=everywhere, output_format="list"
    )
    return next((run for run in runs if project_of(run) == project), None)


def project_of(run: Any) -> str:
    """The project of a run: its path from the store's folder, or "" if it is that folder."""
    return str(run.data.tags.get(PROJECT, ""))


def made(weights: str) -> str:
    """The filter for the runs that made these weights (SHA-256)."""
    return f"tags.`{WEIGHTS}` = '{weights}'"


def versions(root: Path) -> dict[str, str]:
    """Tags with the versions of code and data: git commit, hashes in dvc.lock, DVC experiment."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    experiment = environment.dvc_experiment()
    tags = {tag: experiment[key] for key, tag in EXPERIMENT.items() if key in experiment}
    tags["git.commit"] = git("rev-parse", "--verify", "--quiet", "HEAD") or "none"
    tags["git.dirty"] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    for name, stage in dvc.made_stages(root).items():
        if name.partition("@")[0] in INPUTS:
            tags |= {f"dvc.{out['path']}": out["md5"] for out in stage.get("outs", [])}
    return tags
