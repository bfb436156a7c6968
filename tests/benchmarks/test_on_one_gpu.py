"""The experiment that a lent GPU runs, here on the CPU: without DVC and MLflow, which it lacks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from support.commands import call
from support.projects import tiny_params, write_params
from support.repository import REPOSITORY

ROWS = [
    {"label": "none", "strategy": "none", "set": ["train.objective=plain"]},
    {"label": "uot", "strategy": "uot", "against": ["none"]},
]


@pytest.mark.slow
def test_an_experiment_in_one_process(tmp_path: Path) -> None:
    for name in ("dvc", "mlflow"):
        (tmp_path / f"lacking/{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"lacking/{name}.py").write_text("raise ImportError('not on that machine')\n")
    params = tiny_params()
    for settings in params["datasets"].values():
        settings["path"] = str(REPOSITORY / settings["path"])
    write_params(tmp_path, params)
    definition = {"title": "t", "baseline": "none", "targets": ["digits"], "seeds": 2, "rows": ROWS}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(definition))

    script = REPOSITORY / "experiments" / "on_one_gpu.py"
    words = ["python", str(script), "mine.yaml", "--project", ".", "--out", "out"]
    paths = f"{tmp_path}/lacking"
    done = call(*words, "--minutes", "5", cwd=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "out/runs.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    found = [(line["row"], line["seed"], line["images"]) for line in lines]
    assert found == [
        ("none", "0", "96"),
        ("uot", "0", "192"),
        ("none", "1", "96"),
        ("uot", "1", "192"),
    ]
    assert len({line["top1"] for line in lines}) == 4

    done = call(*words, "--minutes", "0", cwd=tmp_path, PYTHONPATH=paths)
    assert "no time is left for another training" in done.stdout
    assert len((tmp_path / "out/runs.csv").read_text().splitlines()) == 2, "the header and a line"
