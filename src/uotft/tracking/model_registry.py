"""MLflow's model registry: registers the model of a run, and the same weights only once."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from uotft.core.errors import UserError
from uotft.tracking.store import NOTE, WEIGHTS, existing, made, newest, open_store

ALIAS = r"(?!latest$|v\d+$)[\w-]+"  # MLflow's own rule, checked before anything is registered
ACCURACIES = ("val/", "test/")  # prefixes of the metrics that are accuracies


def register(root: Path, name: str, alias: str, *, run: str = "", weights: str = "") -> str:
    """Register the model of a run, or of the newest run that made ``weights`` (SHA-256).

    ``run`` is an id or a name; of several runs with one name the newest counts. The version gets
    the run's tags and accuracies as tags, and its description. Returns a message for the user.
    """
    if alias and not re.fullmatch(ALIAS, alias, re.IGNORECASE):
        raise UserError(f"--alias: got {alias!r}; letters, digits, _ and - are known, but neither "
                        "latest nor v1, which mean something to MLflow")  # fmt: skip
    mlflow = open_store(root)
    found = _run(mlflow, run) if run else newest(mlflow, made(weights), everywhere=True)
    if found is None:
        raise UserError(f"no run here made the weights {weights[:12]}…: train them again")
    client, facts = mlflow.MlflowClient(), found.data
    accuracies = {k: v for k, v in facts.metrics.items() if k.startswith(ACCURACIES)}
    tags = {k: v for k, v in facts.tags.items() if not k.startswith("mlflow.")} | accuracies
    measured = ", ".join(f"{key} {value:.2f} %" for key, value in sorted(accuracies.items()))
    description = f"{measured}\n\n{facts.tags.get(NOTE, '')}".strip()
    try:
        number, new = _version(mlflow, name, found)
        for key, value in tags.items():  # a known version may have been evaluated since
            client.set_model_version_tag(name, number, key, value)
        client.update_model_version(name, number, description)
        if alias:
            client.set_registered_model_alias(name, alias, number)
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"--name {name}, run {found.info.run_id}: {error.message}") from error
    said = f"models:/{name}/{number}" + (f", models:/{name}@{alias}" if alias else "")
    which = f"run {found.info.run_name} ({found.info.run_id})"
    return f"{said}: {which}" if new else f"{said}: registered before, with the weights of {which}"


def _run(mlflow: Any, wanted: str) -> Any:
    """The run with this id, or the newest run with this name, that has a model."""
    has_model = f"tags.`{WEIGHTS}` != ''"
    found = existing(mlflow, wanted)
    if (
        found is None and "'" not in wanted and wanted.isprintable()
    ):  # a filter cannot hold other names
        found = newest(mlflow, f"attributes.run_name = '{wanted}' and {has_model}", everywhere=True)
    if found is None or WEIGHTS not in found.data.tags:
        runs = mlflow.search_runs(
            search_all_experiments=True, filter_string=has_model, output_format="list"
        )
        known = sorted({run.info.run_name for run in runs})
        raise UserError(
            f"RUN: got {wanted!r}, no run with a model in the store; known are "
            f"{', '.join(known) or 'none: `uotft train` makes them'}"
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
