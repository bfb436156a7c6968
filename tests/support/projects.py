"""Small projects: twelve toy classes and a few steps, as a folder or a git clone."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import yaml

from support.repository import REPOSITORY, commit, files

TINY = {
    "strategies": ["none", "uot"],
    "seeds": [0, 1],
    "datasets": {
        name: {
            "kind": name,
            "path": f"src/uotft/data/datasets/{name}.py",
            "size": 16,
            "seed": 0,
            **settings,
        }
        for name, settings in {
            "glyphs": {"classes": 12, "per_class": 8, "held_out": 0.25},
            "digits": {"margin": 1, "val": 100, "test": 1000},
        }.items()
    },
    "backbone": {"name": "small_resnet", "widths": [4, 8], "blocks": 1},
    "select": {"unit": "class", "top_k": 5},
    "cluster": {"clusters": 9, "iterations": 10, "seed": 0},
}
HUGE = 2.0  # a learning rate at which the tiny training ends below its start
TINY_RECIPE = {"steps": 12, "log_every": 4, "eval_every": 6}


def tiny_params() -> dict:
    """The repository's own params.yaml, made small."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params |= deepcopy(TINY)
    params["pretrain"]["recipe"] |= TINY_RECIPE
    params["train"]["recipe"] |= TINY_RECIPE
    params["train"] |= {"target_batch": 8, "source_batch": 8, "head_scale": 0.2}
    return params


def write_params(root: Path, params: dict) -> None:
    """Write ``params`` as the params.yaml of ``root``."""
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def runs(root: Path, experiment: str = "digits") -> list:
    """All MLflow runs of an experiment."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    return mlflow.search_runs(experiment_names=[experiment], output_format="list")


def alone(project: Path, folder: Path) -> Path:
    """A copy of a project for tests that train variants, with a store of its own.

    MLflow keeps absolute paths: a copied store would write into the first one's mlruns/.
    """
    ignored = shutil.ignore_patterns("mlflow.db*", "mlruns", "variants")
    return Path(shutil.copytree(project, folder / "project", symlinks=True, ignore=ignored))


def copied(project: Path, folder: Path) -> Path:
    """A copy of a finished project whose MLflow store is its own: the store keeps absolute paths.

    These are where the artifacts lie.
    """
    shutil.copytree(project, folder, symlinks=True, dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
        ):
            statement = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            store.execute(statement, (str(project), str(folder)))
    for about in (folder / "mlruns").rglob("MLmodel"):
        about.write_text(about.read_text().replace(str(project), str(folder)))
    return folder


def clone(folder: Path) -> Path:
    """The repository's files as they are now, committed in a git repository of their own."""
    for name in files():
        if name != "dvc.lock":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
    write_params(folder, tiny_params())
    commit(folder)
    return folder


def workspace(root: Path):  # noqa: ANN201
    """The workspace of a folder."""
    from uotft.core import config
    from uotft.pipeline import workspace as workspace_stage

    return workspace_stage.Workspace(root, config.load(root))
