"""What is said around a training: what comes first, how long, and what a user can do next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.projects import tiny_params, workspace, write_params
from uotft.core import progress
from uotft.core.progress import duration, estimated
from uotft.core.records import Cell
from uotft.runs import outlook


@pytest.fixture
def ws(tmp_path: Path):  # noqa: ANN201
    """Settings of a project with 2 strategies and 2 seeds, which has a summary of its images."""
    write_params(tmp_path, tiny_params())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.json").write_text(json.dumps({"images": {"val": 50}}))
    return workspace(tmp_path)


def test_the_stages_that_come_first_are_named_once(ws) -> None:  # noqa: ANN001
    line = outlook.first(ws, "digits")
    assert line.startswith(
        "to run once before the training: prepare@glyphs, prepare@digits, pretrain (12 steps)"
        ", embed@glyphs, embed@digits, units, overlap@digits; then the training itself (12 steps)"
    )


def test_a_cell_that_trains_nothing_promises_no_steps(ws) -> None:  # noqa: ANN001
    still = ws.with_changes(["train.objective=frozen"])
    assert "then the training itself (no step)" in outlook.first(still, "digits")


def test_weights_that_are_given_are_no_steps(ws) -> None:  # noqa: ANN001
    ws.params.backbone.clear()
    ws.params.backbone["name"] = "resnet18"
    assert "pretrain, embed" in outlook.first(ws, "digits")
    ws.params.backbone["weights"] = "none"
    assert "pretrain (12 steps), embed" in outlook.first(ws, "digits")


@pytest.mark.parametrize(("here", "before"), [(".", ""), ("..", "cd {} && ")])
def test_an_accuracy_at_chance_is_said(
    ws,  # noqa: ANN001
    here: str,
    before: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a command that works where the user is."""
    monkeypatch.chdir(ws.root / here)

    def facts(top1: float) -> dict:
        accuracy = {"val/top1": top1, "val/mean_per_class": top1}
        return {"validation": accuracy, "classes": [*"0123456789"]}

    made = ws.cell("models", Cell("digits", "uot", 0))
    line = outlook.chance(ws, "digits", facts(10), made)
    assert line.startswith(
        "validation accuracy 10.0 % of 50 images cannot be told from chance (10.0 %, 10 classes): "
        "look at"
    )
    assert f"(`{before.format(ws.root.name)}uotft data show digits --output digits.png`)" in line
    assert not outlook.chance(ws, "digits", facts(50), made)
    assert outlook.validation(ws, "digits", facts(10)).endswith("(50 images)")


def test_few_images_are_few_for_norm_statistics_of_published_weights(ws) -> None:  # noqa: ANN001
    digits = {"classes": 10, "images": {"train": 600, "val": 50}}
    (ws.root / "data" / "digits.json").write_text(json.dumps(digits))
    ws.params.backbone.clear()
    ws.params.backbone["name"] = "resnet18"
    few = ws.with_changes(["subset.shots=6", "train.batch_norm=mixed"])
    weights = ws.pretrained() / "model.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({"backbone.bn1.running_mean": np.zeros(2)}, weights)
    said = outlook.norms(few, "digits")
    assert said.startswith("6 labelled images a class are few for new norm statistics; try those ")
    assert outlook.norms(ws.with_changes(["subset.fraction=0.1"]), "digits").startswith("6 label")

    assert not outlook.norms(ws.with_changes(["subset.fraction=1.0"]), "digits"), "60 a class"
    for change in ("train.batch_norm=frozen", "train.objective=frozen"):
        assert not outlook.norms(few.with_changes(["subset.shots=6", change]), "digits"), change
    save_file({"backbone.norm.weight": np.zeros(2)}, weights)
    assert not outlook.norms(few, "digits"), "a network without batch norm"
    save_file({"backbone.bn1.running_mean": np.zeros(2)}, weights)
    few.params.backbone["weights"] = "none"
    assert not outlook.norms(few, "digits"), "a network that learned its source here"


def test_a_finished_training_says_what_was_kept_and_what_comes_next(
    ws, monkeypatch: pytest.MonkeyPatch  # noqa: ANN001
) -> None:  # fmt: skip
    cell, scores = Cell("digits", "uot", 1), [0.0] * 12
    chosen = {"classes": [{"name": name} for name in "abcdefg"], "scores": scores}
    monkeypatch.chdir(ws.root)
    said = outlook.made(ws, cell, chosen).splitlines()
    assert said[:3] == [
        "kept 7 of 12 of glyphs: a, b, c, d, e and 2 more", "model: models/digits/uot/1", "next:"
    ]  # fmt: skip
    commands = [line.split("  ")[1] for line in said[3:]]
    predict = "uotft predict --dataset digits --strategy uot --seed 1 photo.jpg"
    assert commands == [predict, "dvc repro", "uotft ui"]

    plain = ws.with_changes(["train.objective=plain"])
    [kept] = [line for line in outlook.made(plain, cell, chosen).splitlines() if "kept" in line]
    assert kept.endswith("and 2 more; train.objective: plain trains on none of them")

    monkeypatch.chdir(ws.root.parent)
    said = outlook.made(ws.with_changes(["train.lambda=0.3"]), cell, chosen).splitlines()
    assert said[1] == f"model: {ws.root.name}/variants/train.lambda=0.3/models/digits/uot/1"
    assert said[2] == f"next, after cd {ws.root.name}:"
    assert "--model variants/train.lambda=0.3/models/digits/uot/1" in said[3]
    evaluate = "uotft evaluate --dataset digits --strategy uot --set train.lambda=0.3"
    assert said[4].split("  ")[1] == evaluate


def test_what_takes_long_says_how_long_after_the_first_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "uotft.core.progress")
    clock = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    for n in estimated(range(1000), "training", 1000):
        clock[0] += 60 if n < 3 else 1  # the first steps are slow: a validation, threads that start
    [record] = caplog.records
    assert record.getMessage() == (
        "training: about 17 min to go on this machine (8 of 1,000 are done)"
    )
    caplog.clear()
    assert [*estimated(range(10), "training", 10)] == [*range(10)]
    assert not caplog.records, "short"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.1, "1 s"), (40, "40 s"), (700, "12 min"), (12000, "3 h 20 min")]
)
def test_durations_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
