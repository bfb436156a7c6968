"""Small workspaces that the tests share: twelve toy classes, a few steps, the real stages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
TINY = {
    "strategies": ["none", "uot"],
    "seeds": [0, 1],
    "datasets": {
        name: {"path": f"src/uotft/data/datasets/{name}.py", "size": 16, "seed": 0, **settings}
        for name, settings in {
            "glyphs": {"classes": 12, "per_class": 8, "held_out": 0.25},
            "digits": {"margin": 1, "val": 100, "test": 1000},
        }.items()
    },
    "backbone": {"name": "small_resnet", "widths": [4, 8], "blocks": 1},
    "select": {"unit": "class", "top_k": 5},
    "cluster": {"clusters": 9, "iterations": 10, "seed": 0},
}
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


def call(
    *words: str, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment that runs these tests, as a user would."""
    env = users_environment() | environment
    return subprocess.run(
        words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def users_environment() -> dict[str, str]:
    """What a user's shell holds; MLflow's client puts the store it was last shown into our own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "COLUMNS": "120"}
    for inherited in ("DVC_STAGE", "DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        env.pop(inherited, None)
    return env


def runs(root: Path, experiment: str = "digits") -> list:
    """All MLflow runs of an experiment."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    return mlflow.search_runs(experiment_names=[experiment], output_format="list")


def files() -> list[str]:
    """The repository's files as they are now, those not yet added too."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [name for name in listed if (REPOSITORY / name).is_file()]


def alone(project: Path, folder: Path) -> Path:
    """A copy of a project for tests that train variants, with a store of its own.

    MLflow keeps absolute paths: a copied store would write into the first one's mlruns/.
    """
    ignored = shutil.ignore_patterns("mlflow.db*", "mlruns", "variants")
    return Path(shutil.copytree(project, folder / "project", symlinks=True, ignore=ignored))


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


def commit(folder: Path) -> None:
    """Commit everything."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x", "--allow-empty"]):
        subprocess.run([*git, *words], cwd=folder, check=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny params.yaml and everything up to the embeddings, made in this process.

    Copy it before writing into it (`fresh`).
    """
    root = tmp_path_factory.mktemp("tiny")
    write_params(root, tiny_params())
    up_to_units(root)
    find_overlap(root)
    return root


def up_to_units(root: Path) -> None:
    """Prepare, pre-train, embed and make the units of a workspace with one target."""
    from uotft.pipeline import embed, prepare, pretrain, units
    from uotft.training import runtime

    ws = workspace(root)
    quiet = {"progress": lambda items, label: items}
    datasets = ws.params.source, *ws.params.targets
    for dataset in datasets:
        prepare.prepare(ws, dataset, **quiet)
    pretrain.pretrain(ws, runtime.start(0, 1), log=lambda *_: None, **quiet)
    for dataset in datasets:
        embed.embed(ws, dataset, runtime.start(0, 1), **quiet)
    units.units(ws)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone on which a user has run `dvc repro` once: git, DVC, MLflow, real processes.

    It has two strategies and two seeds.
    """
    folder = clone(tmp_path_factory.mktemp("project"))
    done = call("dvc", "repro", cwd=folder, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "repro.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def fresh(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny workspace that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "project"))


@pytest.fixture
def trainable(fresh: Path) -> Path:
    """A tiny workspace with a selection to train on (tests/resuming.py)."""
    import resuming
    from uotft.pipeline import select

    resuming.change(fresh)
    select.select(workspace(fresh), *resuming.CELL)
    return fresh


def workspace(root: Path):  # noqa: ANN201
    """The workspace of a folder."""
    from uotft.core import config
    from uotft.pipeline import workspace as workspace_stage

    return workspace_stage.Workspace(root, config.load(root))


def put_under_features(ws, dataset: str, images) -> None:  # noqa: ANN001
    """Other images in the place of those that were embedded, unknown to the features."""
    from uotft.core import storage

    storage.write_images(ws.data(dataset), images)
    take_for_embedded(ws, dataset)


def take_for_embedded(ws, dataset: str) -> None:  # noqa: ANN001
    """The features of a data set, as if they were of the files that are there now."""
    from uotft.core import storage

    index, bank = ws.features(dataset) / "index.npz", ws.embedding(dataset)
    new = {"data": storage.fingerprint(ws.data(dataset))}
    made = {"features_sha256": storage.fingerprint(ws.features(dataset) / "features.npy")}
    storage.write_arrays(index, **storage.read_arrays(index) | new | made)
    if bank != index:
        new["features"] = storage.fingerprint(index)
        storage.write_arrays(bank, **storage.read_arrays(bank) | new)


def plant(root: Path, rows, first: int) -> None:  # noqa: ANN001
    """Put the digits' test images number ``first`` and following into these rows of the source."""
    ws = workspace(root)
    source, target = ws.images("glyphs"), ws.images("digits")
    source.images[rows] = target.images[target.rows("test")[first : first + len(rows)]]
    put_under_features(ws, "glyphs", source)


def find_overlap(root: Path) -> dict:
    """Compare the digits' test part with the glyphs' training part."""
    from uotft.pipeline import overlap

    ws = workspace(root)
    quiet = {"progress": lambda items, label: items, "workspace": lambda: ws}
    return overlap.overlap("glyphs", "digits", ws.overlap("digits"), **quiet)


def run_train(root: Path, strategy: str = "uot", seed: int = 0) -> list[tuple[int, dict]]:
    """Select and train in this process; returns the logged points."""
    from uotft.pipeline import select, train
    from uotft.training import runtime

    ws, points = workspace(root), []
    find_overlap(root)
    select.select(ws, "digits", strategy, seed)
    train.train(
        ws,
        "digits",
        strategy,
        seed,
        runtime.start(seed, 1),
        log=lambda step, numbers: points.append((step, numbers)),
        progress=lambda items, label: items,
    )
    return points
