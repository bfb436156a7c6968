"""MLflow's model registry: registers the model of a run, but the same weights only once."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from uotft.core.errors import UserError
from uotft.tracking.store import NOTE, WEIGHTS, existing, made, newest, open_store, project_of

ALIAS = r"(?!latest$|v\d+$)[\w-]+"  # MLflow's rule, checked here before anything is registered
ACCURACIES = ("val/", "test/")  # prefixes of the accuracies among the metrics


def register(
    home: Path, name: str, alias: str, *, run: str = "", weights: str = "", project: str = ""
) -> str:
    """Register the model of a run, or of the project's newest run that made ``weights`` (SHA-256).

    ``run`` is an id or a name; of several runs of the project with that name, the newest is used.
    The new version gets the run's tags, accuracies (as tags) and description. Returns a message for
    the user.
    """
    if alias and not re.fullmatch(ALIAS, alias, re.IGNORECASE):
        raise UserError(f"--alias: got {alias!r}; use letters, digits, _ and -, but not latest or "
                        "v1, which MLflow reserves")  # fmt: skip
    mlflow = open_store(home)
    if run:
        found = _run(mlflow, run, project)
    else:
        found = newest(mlflow, made(weights), project, everywhere=True)
    if found is None:
        raise UserError(f"no run in the store made the weights {weights[:12]}…: train them again")
    client, facts = mlflow.MlflowClient(), found.data
    accuracies = {k: v for k, v in facts.metrics.items() if k.startswith(ACCURACIES)}
    tags = {k: v for k, v in facts.tags.items() if not k.startswith("mlflow.")} | accuracies
    measured = ", ".join(f"{key} {value:.2f} %" for key, value in sorted(accuracies.items()))
    description = f"{measured}\n\n{facts.tags.get(NOTE, '')}".strip()
    try:
        number, new = _version(mlflow, name, found)
        for key, value in tags.items():  # again, since a known version may have new test metrics
            client.set_model_version_tag(name, number, key, value)
        client.update_model_version(name, number, description)
        if alias:
            client.set_registered_model_alias(name, alias, number)
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"--name {name}, run {found.info.run_id}: {error.message}") from error
    uris = f"models:/{name}/{number}" + (f", models:/{name}@{alias}" if alias else "")
    which = f"run {found.info.run_name} ({found.info.run_id})"
    return f"{uris}: {which}" if new else f"{uris}: registered before, with the weights of {which}"


def _run(mlflow: Any, wanted: str, project: str) -> Any:
    """The run with the id ``wanted``, or the project's newest of that name; it needs a model."""
    has_model = f"tags.`{WEIGHTS}` != ''"
    found = existing(mlflow, wanted)
    if (
        found is None and "'" not in wanted and wanted.isprintable()
    ):  # a filter cannot hold other names
        named = f"attributes.run_name = '{wanted}' and {has_model}"
        found = newest(mlflow, named, project, everywhere=True)
    if found is None or WEIGHTS not in found.data.tags:
        runs = mlflow.search_runs(
            search_all_experiments=True, filter_string=has_model, output_format="list"
        )
        known = sorted({run.info.run_name for run in runs if project_of(run) == project})
        raise UserError(
            f"RUN: got {wanted!r}, but the store has no such run with a model; known are "
            f"{', '.join(known) or 'none: `uotft train` makes some'}"
        )
    return found


def _version(mlflow: Any, name: str, run: Any) -> tuple[str, bool]:
    """The number of the version with the run's weights, and whether it is new."""
    weights = run.data.tags[WEIGHTS]
    for version in mlflow.search_model_versions(filter_string=f"name = '{name}'"):
        if version.tags.get(WEIGHTS) == weights:
            return str(version.version), False
    with redirect_stderr(io.StringIO()):  # its messages repeat the command's
        uri = f"runs:/{run.info.run_id}/model"
        return str(mlflow.register_model(uri, name, tags={WEIGHTS: weights}).version), True
