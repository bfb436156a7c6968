"""What is said around a training: which cell of how many, how long, and what a user can do next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.projects import tiny_params, workspace, write_params
from uotft.core import dvc, progress
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
        "to be made once, before the training: prepare@glyphs, prepare@digits, pretrain (12 steps)"
        ", embed@glyphs, embed@digits, units, overlap@digits; then the training itself (12 steps)"
    )


def test_weights_that_are_given_are_no_steps(ws) -> None:  # noqa: ANN001
    ws.params.backbone.clear()
    ws.params.backbone["name"] = "resnet18"
    assert "pretrain, embed" in outlook.first(ws, "digits")
    ws.params.backbone["weights"] = "none"
    assert "pretrain (12 steps), embed" in outlook.first(ws, "digits")


def locked(root: Path, **stages: dict[str, str]) -> None:
    """A dvc.lock in which each cell, STRATEGY_SEED, was trained on inputs with these MD5s."""
    found = {}
    for name, deps in stages.items():
        out = f"models/{name}"
        (root / out).mkdir(parents=True, exist_ok=True)
        found[f"train@digits-{name.replace('_', '-')}"] = {
            "cmd": "", "outs": [{"path": out, "md5": "0.dir"}],
            "deps": [{"path": path, "md5": md5} for path, md5 in deps.items()],
        }  # fmt: skip
    found["pretrain"] = {"outs": [{"path": "pretrained", "md5": "1.dir"}]}
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": found}))


def test_a_stage_of_dvc_says_which_cell_it_is_and_what_is_to_come(ws) -> None:  # noqa: ANN001
    code = ws.root / "code.py"
    code.write_text("1")
    now = {"pretrained": "1.dir", "code.py": dvc.hash_of(code)}
    assert outlook.queue(ws, "train@digits-none-1").place() == (
        "cell 1 of 4 (digits/none/seed 1); trained already: none"
    )
    locked(ws.root, none_0=now, none_1=now, uot_0={"pretrained": "0.dir"})
    assert outlook.queue(ws, "train@digits-uot-0").place() == (
        "cell 3 of 4 (digits/uot/seed 0); trained already: none 2 of 2"
    ), "what is there of another network is not counted"
    assert outlook.queue(ws, "train@digits-uot-0").to_come(90) == (
        "; 1 of 4 cells are to come, about 2 min if each takes as long"
    )
    code.write_text("2")
    assert outlook.queue(ws, "train@digits-uot-0").place().startswith("cell 1 of 4")
    assert outlook.queue(ws, "train") is None
    assert outlook.queue(ws, "") is None


def test_an_accuracy_at_chance_is_said(ws) -> None:  # noqa: ANN001
    def facts(top1: float) -> dict:
        accuracy = {"val/top1": top1, "val/mean_per_class": top1}
        return {"validation": accuracy, "classes": [*"0123456789"]}

    made = ws.cell("models", Cell("digits", "uot", 0))
    line = outlook.chance(ws, "digits", facts(10), made)
    assert line.startswith(
        "validation accuracy 10.0 % of 50 images cannot be told from chance (10.0 %, 10 classes): "
        "look at"
    )
    assert not outlook.chance(ws, "digits", facts(50), made)
    assert outlook.validation(ws, "digits", facts(10)).endswith("(50 images)")


def test_a_finished_training_says_what_was_kept_and_what_comes_next(
    ws, monkeypatch: pytest.MonkeyPatch  # noqa: ANN001
) -> None:  # fmt: skip
    cell, scores = Cell("digits", "uot", 1), [0.0] * 12
    chosen = {"classes": [{"name": name} for name in "abcdefg"], "scores": scores}
    monkeypatch.chdir(ws.root)
    said = outlook.made(ws, cell, chosen).splitlines()
    assert said[:3] == [
        "kept 7 of 12 of glyphs: a, b, c, d, e, and 2 more", "model: models/digits/uot/1", "next:"
    ]  # fmt: skip
    commands = [line.split("  ")[1] for line in said[3:]]
    predict = "uotft predict --dataset digits --strategy uot --seed 1 photo.jpg"
    assert commands == [predict, "dvc repro", "uotft ui"]

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
