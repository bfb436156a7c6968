"""`uotft search` as a user runs it: killed, gone on with, pruned, and blind to the test part."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.commands import call, users_environment
from support.projects import alone, runs, workspace
from uotft.core import storage

WORDS = ("--dataset", "digits", "--strategy", "uot", "--seeds", "100,101")
GRID = "train.lambda: {choices: [1.0]}\nselect.top_k: {choices: [5, auto]}\n"
RANGES = "train.lambda: {low: 0.1, high: 1.0, log: true}\nselect.top_k: {low: 2, high: 9}\n"


@pytest.fixture(scope="module")
def project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own, since others count the runs and the variants of theirs."""
    return alone(project, tmp_path_factory.mktemp("alone"))


def search(project: Path, space: str, *words: str) -> subprocess.CompletedProcess[str]:
    (project / "space.yaml").write_text(space)
    done = call(
        "uotft", "search", *WORDS, "--space", "space.yaml", *words, cwd=project, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def models(project: Path) -> dict[Path, int]:
    """When each variant's model was written."""
    return {
        p: p.stat().st_mtime_ns for p in project.glob("variants/*/models/digits/uot/*/model.json")
    }


def children(project: Path, name: str) -> list:
    """The runs below the one parent of this name."""
    found = runs(project)
    [parent] = [run for run in found if run.info.run_name == name]
    assert parent.info.status == "FINISHED"
    return [r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_no_training_is_repeated(project: Path) -> None:
    before = call("dvc", "status", cwd=project).stdout
    (project / "space.yaml").write_text(GRID)
    command = [sys.executable, "-m", "uotft", "search", *WORDS, "--space", "space.yaml"]
    command += ["--jobs", "1"]  # a training of trial 1 must still be to come when it is killed
    with (project / "said").open("w") as said_to:
        process = subprocess.Popen(
            command, cwd=project, env=users_environment(), stderr=said_to,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    deadline = time.monotonic() + 180
    belongs = "variants/*/models/digits/uot/*/belongs.json"
    while len(list(project.glob(belongs))) < 3:
        assert process.poll() is None, (project / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)  # it must not end before it is killed
    second = call("uotft", "search", *WORDS, "--space", "space.yaml", cwd=project)
    assert second.returncode == 2
    assert "another `uotft search` is running this study" in second.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = [path for path in models(project) if path.with_name("belongs.json").exists()]
    stamps = {path: models(project)[path] for path in done}

    said = search(project, GRID).stdout
    assert "going on with trial 1, which was interrupted" in said
    after = models(project)
    assert len(after) == 4
    assert stamps == {path: after[path] for path in stamps}
    of_trainings = children(project, "search-digits-uot")
    assert sorted(r.data.params["seed"] for r in of_trainings) == ["100"] * 2 + ["101"] * 2
    assert {r.info.status for r in of_trainings} == {"FINISHED"}

    rows = storage.read_csv(project / "search/digits-uot/report/trials.csv")
    assert sorted(row["trial"] for row in rows) == ["0", "1"]
    [default] = [row for row in rows if row["trial"] == "0"]
    assert default["settings"] == "train.lambda=1.0 select.top_k=5"
    means = {  # from the models themselves
        r["settings"]: np.mean(
            [
                storage.read_json(path)["validation"]["val/top1"]
                for path in after
                if tuple(storage.read_json(path.parents[4] / "overrides.json")["set"])
                == workspace(project).with_changes(r["settings"].split()).overrides
            ]
        )
        for r in rows
    }
    assert all(r["validation top-1 %"].startswith(f"{means[r['settings']]:.2f}") for r in rows)

    best = yaml.safe_load((project / "params.best.yaml").read_text())
    chosen = dict(word.split("=") for word in rows[0]["settings"].split())
    assert str(best["train"]["lambda"]) == chosen["train.lambda"]
    assert str(best["select"]["top_k"]) == chosen["select.top_k"]
    row = said.splitlines()[-1].removeprefix("for uot alone, as a row of an experiment: ")
    assert yaml.safe_load(row) == {"set": rows[0]["settings"].split()}
    assert call("dvc", "status", cwd=project).stdout == before, "the pipeline's cells are DVC's"

    again = search(project, GRID)
    assert models(project) == after
    assert len(children(project, "search-digits-uot")) == 4
    assert again.stdout.splitlines()[-3:] == said.splitlines()[-3:]


@pytest.fixture(scope="module")
def scrambled(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with noise for test images and random test labels, known to DVC."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("scrambled") / "project"))
    for made in ("variants", "search"):
        shutil.rmtree(folder / made, ignore_errors=True)
    images = storage.read_images(folder / "data/digits.npz")
    rows, rng = images.rows("test"), np.random.default_rng(0)
    images.images[rows] = rng.integers(0, 256, images.images[rows].shape, np.uint8)
    images.labels[rows] = rng.permutation(images.labels[rows])
    storage.write_images(folder / "data/digits.npz", images)
    done = call("dvc", "commit", "-f", "prepare@digits", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_test_part_decides_nothing(project: Path, scrambled: Path) -> None:
    words = ("--sampler", "tpe", "--trials", "2", "--study", "blind")
    answers = [search(root, RANGES, *words).stdout.splitlines() for root in (project, scrambled)]
    tables = [(r / "search/blind/report/trials.csv").read_text() for r in (project, scrambled)]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 3
    data = [
        {
            storage.read_json(path)["data"]
            for path in root.glob("variants/*,train.lambda=1/models/digits/uot/100/model.json")
        }
        for root in (project, scrambled)
    ]
    assert data[0] != data[1], "they were trained on other files"
    assert not list(scrambled.glob("variants/*/metrics"))
    trials = [[line for line in said if line.startswith("trial ")] for said in answers]
    assert trials[0] == trials[1]
    assert len(trials[0]) == 2


@pytest.mark.slow
def test_pruned_and_failed_trials_are_left_behind(scrambled: Path) -> None:
    params = yaml.safe_load((scrambled / "params.yaml").read_text())
    params["subset"] = {"shots": 20}
    params["train"]["recipe"] |= {"steps": 80, "eval_every": 10}
    (scrambled / "params.yaml").write_text(yaml.safe_dump(params))
    rates = "train.recipe.learning_rate: {choices: [0.03, 0.05, 0.06, 1.0e-9, 1.0e+18]}\n"
    said = search(scrambled, rates, "--prune", "--study", "rates").stdout
    rows = {r["trial"]: r for r in storage.read_csv(scrambled / "search/rates/report/trials.csv")}
    assert {n: r["state"] for n, r in rows.items()} == {
        **dict.fromkeys("0123", "complete"), "4": "pruned", "5": "failed",
    }  # fmt: skip
    assert [rows[n]["seeds"] for n in "045"] == ["2", "0", "0"], "stopped in its first training"
    assert "trial 4, train.recipe.learning_rate=1.0e-09: pruned" in said
    statuses = [run.info.status for run in children(scrambled, "search-rates")]
    assert sorted(statuses) == ["FAILED"] + ["FINISHED"] * 8 + ["KILLED"]
    assert not list((scrambled / "unfinished/variants").rglob("step-*"))


def test_one_trial_of_the_settings_as_they_are(project: Path) -> None:
    said = search(project, RANGES, "--sampler", "tpe", "--trials", "1", "--study", "once").stdout
    [row] = storage.read_csv(project / "search/once/report/trials.csv")
    assert (row["trial"], row["state"], row["seeds"]) == ("0", "complete", "2")
    assert row["settings"] == "train.lambda=1.0 select.top_k=5"
    assert len([line for line in said.splitlines() if line.startswith("trial ")]) == 1
    assert yaml.safe_load((project / "params.best.yaml").read_text())["select"]["top_k"] == 5
