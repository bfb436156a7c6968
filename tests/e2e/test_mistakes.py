"""A user's mistake: one clear message, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from conftest import call, tiny_params, write_params


def mistake(root: Path, *words: str) -> str:
    before = sorted(root.rglob("*"))
    done = call("uotft", *words, cwd=root)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(root.rglob("*")) == before
    return done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--dataset", "dogz"), "'dogz' has no section under datasets"),
        (
            ("train", "--dataset", "digits", "--strategy", "uto"),
            "'uto'; known are all, band,",
        ),
        (("select", "--dataset", "digits"), "embeddings/glyphs.npz is missing; `dvc repro` makes"),
        (("embed", "--dataset", "digits"), "model.json is missing; `dvc repro` makes"),
        (("evaluate", "--dataset", "digits"), "digits.npz is missing; `dvc repro` makes"),
        (("compare",), "metrics/digits/none.json is missing; `dvc repro` makes"),
        (("train",), "--dataset"),
        (("train", "--dataset", "digits", "--seed", "-1"), "--seed"),
        (("train", "--dataset", "digits", "--num-processes", "0"), "--num-processes"),
        (
            ("train", "--dataset", "digits", "--num-processes", "3", "--num-machines", "2"),
            "--num-processes: got 3, the number over all machines, which 2 machines cannot share",
        ),
        (("pretrain", "--num-machines", "2", "--num-processes", "2"), "--main-process-ip"),
        (("train", "--dataset", "digits", "--source", "old"), "old: no such folder of images"),
        (("init", "--source", "old", "--target", "new"), "params.yaml is there already"),
        (
            ("data", "overlap", "--source", "dogz", "--target", "digits"),
            "'dogz' is neither a folder nor a prepared data set: data set 'dogz' has no section",
        ),
        (("data", "overlap", "--source", "glyphs", "--target", "digits"), "glyphs.npz is missing"),
        (("data", "overlap", "--source", ".", "--target", "digits"), "no image in this folder"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_words(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    write_params(tmp_path, tiny_params())
    assert message in mistake(tmp_path, *words)


def test_no_project_here(tmp_path: Path) -> None:
    assert "params.yaml is missing; run uotft inside a project" in mistake(tmp_path, "compare")


def test_a_parameter_of_the_wrong_type(tmp_path: Path) -> None:
    params = tiny_params()
    params["train"]["recipe"]["steps"] = "False"
    write_params(tmp_path, params)
    said = mistake(tmp_path, "train", "--dataset", "digits")
    assert "params.yaml" in said
    assert "train.recipe.steps: got 'False'" in said


def test_k_above_the_number_of_source_classes(fresh: Path) -> None:
    params = yaml.safe_load((fresh / "params.yaml").read_text())
    params["select"]["top_k"] = 1000
    write_params(fresh, params)
    said = mistake(fresh, "select", "--dataset", "digits")
    assert "select.top_k: got 1000, but the source has only 12 classes" in said
