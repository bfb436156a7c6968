"""`uotft train` as the user starts it: processes, signals, failures, and one run each time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from support.commands import answer, call
from support.patched_modules import patched
from support.projects import HUGE, alone, clone, runs
from uotft.analysis import endings
from uotft.core import storage


def named(project: Path, name: str) -> list:
    return [r for r in runs(project) if r.info.run_name == name]


@pytest.mark.slow
def test_train_brings_up_to_date_what_is_missing(project: Path) -> None:
    for folder in ("embeddings", "selections/digits/none"):
        subprocess.run(["rm", "-r", str(project / folder)], check=True)
    done = call(
        "uotft", "train", "--dataset", "digits", "--strategy", "none", "--seed", "4", cwd=project
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bringing up to date: dvc repro units embed@digits" in done.stderr
    assert "selecting with none, seed 4" in done.stderr
    assert "validation top-1" in done.stdout
    assert (project / "embeddings/glyphs.npz").is_file()


@pytest.mark.slow
def test_train_finds_the_overlap_of_a_data_set_that_is_no_target(project: Path) -> None:
    """dvc.yaml has an overlap stage for each target; another data set's is made on the way."""
    params = project / "params.yaml"
    before = params.read_text()
    params.write_text(yaml.safe_dump(yaml.safe_load(before) | {"targets": ["glyphs"]}))
    made = project / "overlap/digits.json"
    content = made.read_bytes()
    made.unlink()
    try:
        words = ("uotft", "train", "--dataset", "digits", "--strategy", "none", "--seed", "6")
        done = call(*words, cwd=project)
    finally:
        params.write_text(before)
    assert done.returncode == 0, done.stderr[-3000:]
    assert made.read_bytes() == content


@pytest.mark.slow
def test_train_is_enough_on_a_fresh_checkout(tmp_path: Path) -> None:
    project = clone(tmp_path)
    done = call("uotft", "train", "--dataset", "digits", cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    first, kept, model, *_ = done.stdout[done.stdout.index("trained digits-uot-0") :].splitlines()
    assert first.startswith("trained digits-uot-0: validation top-1")
    assert kept.startswith("kept 5 of 12 of glyphs: ")
    assert model == "model: models/digits/uot/0"
    assert "uotft: to run once before the training: prepare@glyphs, prepare@digits, pretrain" in (
        done.stderr
    )
    assert [run.info.run_name for run in runs(project)] == ["digits-uot-0"]

    # what is there stays, with the same lines; other settings or --again train
    weights = project / "models/digits/uot/0/model.safetensors"
    before, words = weights.stat().st_mtime_ns, ("uotft", "train", "--dataset", "digits")
    again = call(*words, cwd=project)
    assert "\ndigits-uot-0 is trained already, on these images with these" in again.stdout
    assert f"\n{kept}\n{model}\nnext:\n" in again.stdout
    assert weights.stat().st_mtime_ns == before
    assert len(runs(project)) == 1
    assert "\ntrained digits-uot-0" in call(*words, "--again", cwd=project).stdout
    assert len(runs(project)) == 2
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["train"]["lambda"] = 0.5
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "\ntrained digits-uot-0" in call(*words, cwd=project).stdout
    assert len(runs(project)) == 3


def test_a_params_yaml_of_an_older_version_says_what_to_add(tmp_path: Path) -> None:
    project = clone(tmp_path)
    params = storage.read_yaml(project / "params.yaml")
    params.pop("source_means", None)
    params.pop("controls", None)
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = answer("uotft", "train", "--dataset", "digits", cwd=project)
    assert done.returncode == 2
    assert 'add `controls: {}`, `source_means: "images"`' in done.stderr
    assert not (project / "data").exists(), "DVC has run nothing"


def test_a_training_that_ends_below_its_start_says_so(project: Path, tmp_path: Path) -> None:
    """A huge learning rate: in the last line and in the run's tags."""
    copy = alone(project, tmp_path)
    words = "uotft", "train", "--dataset", "digits", "--strategy", "none", "--current"
    # the tiny network starts too low for the usual 2.5
    rule = patched(tmp_path / "patch", {"uotft.analysis.endings": {"ERRORS": 1.0}})
    done = call(*words, "--set", f"train.recipe.learning_rate={HUGE}", cwd=copy, **rule)
    assert done.returncode == 0, done.stderr[-3000:]
    line = done.stdout.splitlines()[-1]
    assert line.startswith("digits-none-0: validation top-1 ended at ")
    assert " %, below its start of " in line
    assert line.endswith(f" (100 images): {endings.ADVICE}")
    [run] = runs(copy)
    assert run.data.tags["uotft.warning"] in line


def test_a_worker_that_dies_leaves_a_failed_run(project: Path) -> None:
    """Weights of another shape: the worker fails, in one clear message and with its exit code."""
    params = project / "params.yaml"
    before = params.read_text()
    wrong = yaml.safe_load(before)
    wrong["train"]["source_batch"] = 3
    params.write_text(yaml.safe_dump(wrong, sort_keys=False))
    try:
        words = ("uotft", "train", "--dataset", "digits", "--seed", "5", "--num-processes", "2")
        done = call(*words, cwd=project)
    finally:
        params.write_text(before)
    assert done.returncode != 0
    assert "source batch of 3 cannot be shared by 2 processes" in done.stderr
    [run] = named(project, "digits-uot-5")
    assert run.info.status == "FAILED"
    assert "source batch of 3 cannot be shared by 2 processes" in run.data.tags["failure"]
    assert not (project / "models/digits/uot/5").exists()
