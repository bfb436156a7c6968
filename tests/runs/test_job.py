"""One training or test under its MLflow run: settings and files that change meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.projects import workspace
from support.tiny_training import CELL as NAMES
from uotft.analysis import paper_tables
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, silently
from uotft.pipeline import freshness, readers, select
from uotft.pipeline.experiment_cells import Plan
from uotft.runs import experiment_runner, job
from uotft.runs.processes import Crew, Fleet

CELL = Cell(*NAMES)


class OtherSettings(Crew):
    """Workers that read params.yaml after it was edited."""

    @contextmanager
    def work(self, arguments: list[str], *more: Any) -> Iterator[Callable[[Any], None]]:
        ws = workspace(self.root).with_changes(arguments[4:])
        used = freshness.of_finished(ws, CELL, 1)
        used["train"]["recipe"]["steps"] += 1
        folder = ws.cell("models", CELL)
        storage.write_json(folder / "model.json", {"sha256": "a", "made_of": used})
        yield lambda watch: None


def edit(root: Path) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["seeds"], params["train"]["recipe"]["steps"] = [7], 99
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def test_a_command_whose_params_yaml_was_edited_trains_no_more(trainable: Path) -> None:
    """Workers read it anew: the run would name settings that were not used."""
    ws = workspace(trainable)
    edit(trainable)
    with pytest.raises(UserError, match=r"changed since this command began: train\.recipe\.s"):
        job.train(ws, CELL, Crew(Fleet(), trainable), current=True)


def test_a_model_of_other_settings_is_not_taken(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    ws = workspace(trainable).with_changes(["train.lambda=0.5"])
    with pytest.raises(UserError, match=rf"inputs changed while {CELL} was trained: train\.recipe"):
        job.train(ws, CELL, OtherSettings(Fleet(), trainable), current=True)
    assert not freshness.finished(ws, CELL, 1)


@pytest.mark.parametrize(("objective", "reused"), [("joint", 5), ("plain", 0), ("co_tuning", 0)])
def test_a_run_states_the_classes_that_are_trained_on(
    trainable: Path, objective: str, reused: int
) -> None:
    ws = workspace(trainable).with_changes([f"train.objective={objective}"])
    select.select(ws, CELL)
    about = job._about(ws, CELL, 1, readers.read_selection(ws, CELL))
    assert about.params["strategy.kept"] == reused
    assert about.params["strategy.classes"].startswith(f"{reused} classes")
    note = about.tags["mlflow.note.content"]
    assert note.startswith("**uot** keeps 5 of 12 of *glyphs*")
    assert ("trains on none of them" in note) == (not reused)


@pytest.mark.parametrize(("strategy", "top_k"), [("uot", 5), ("label", "-")])
def test_a_run_states_the_k_of_its_selection(fresh: Path, strategy: str, top_k: int | str) -> None:
    ws, cell = workspace(fresh), Cell("digits", strategy, 0)
    select.select(ws, cell)
    about = job._about(ws, cell, 1, readers.read_selection(ws, cell))
    assert about.params["select.top_k"] == top_k


def test_an_experiment_is_refused_under_another_launcher(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would run all of it, and their workers would meet."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    plan = Plan(paper_tables.load("table4"), ["digits"])
    with pytest.raises(UserError, match="experiment run starts its own processes"):
        experiment_runner.run(workspace(trainable), plan)


def test_metrics_of_a_model_that_is_gone_are_not_kept(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, known = workspace(trainable), dict[str, Any]()
    data = storage.fingerprint(ws.data(CELL.target))
    for seed, facts in enumerate([("a", data), ("b", data), ("c", "other images")]):
        facts = dict(zip(("sha256", "data"), facts, strict=True))
        storage.write_json(ws.cell("models", Cell(*NAMES[:2], seed)) / "model.json", facts)
    tested = {str(seed): {"model": model, "top1": 50.0, "mean_per_class": 40.0}
              for seed, model in enumerate("axc")}  # fmt: skip
    storage.write_json(ws.metrics(*NAMES[:2]), tested)

    def evaluate(*words: Any) -> list[str]:
        known.update(words[4])
        return [f"{Cell(*NAMES[:2], words[5][0])}: tested"]

    monkeypatch.setattr(job, "evaluate", evaluate)
    first, second = (Cell(*NAMES[:2], seed) for seed in (0, 1))
    assert job.test(ws, first, silently) == f"{first}: test top-1 50.00 %, mean per class 40.00 %"
    assert job.test(ws, second, silently) == f"{second}: tested"
    assert known == {"0": tested["0"]}, "1 was trained again since, 2 on other images"


def test_a_target_without_test_images_is_not_tested(trainable: Path) -> None:
    """A user with few images keeps all of them, `test: 0`; the training has ended well."""
    ws = workspace(trainable)
    summary = ws.data(CELL.target).with_suffix(".json")
    facts = storage.read_json(summary)
    del facts["images"]["test"]
    storage.write_json(summary, facts)
    assert job.test(ws, CELL, silently) == f"{CELL}: not tested, since digits has no test image"


@pytest.mark.parametrize(("stage", "tested"), [("", [1]), ("evaluate@digits", [0, 1])])
def test_seeds_without_a_model_are_left_out_by_hand_and_named(
    trainable: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    tested: list[int],
) -> None:
    """In DVC's stage each is tested, and then a missing model is an error."""
    ws = workspace(trainable)
    monkeypatch.setenv("DVC_STAGE", stage)
    with pytest.raises(UserError, match=r"uot/0/model\.json is missing"):
        job.evaluate(ws, *NAMES[:2], silently)
    storage.write_json(ws.cell("models", Cell(*NAMES[:2], 1)) / "model.json", {})

    def read_test_part(*_: object, seeds: list[int], **more: object) -> dict[str, Any]:
        assert seeds == tested
        return {}

    monkeypatch.setattr("uotft.pipeline.evaluate.evaluate", read_test_part)
    monkeypatch.setattr(storage, "read_answers", lambda path: {})
    caplog.clear()
    assert job.evaluate(ws, *NAMES[:2], silently) == []
    assert ("digits-uot: not tested, since not trained yet: seed 0;" in caplog.text) != bool(stage)
