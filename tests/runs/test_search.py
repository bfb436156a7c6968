"""What cannot be searched is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.projects import workspace
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline import freshness, select
from uotft.pipeline.workspace import Workspace
from uotft.runs import search, study
from uotft.runs.processes import Crew, Fleet

PLAN = search.Plan("digits", "uot", "space.yaml", False, [100, 101])
CHOICES = "train.lambda: {choices: [0.3, 1.0]}\n"


@pytest.mark.parametrize(
    ("space", "changes", "said"),
    [
        (CHOICES, {"seeds": [100, 1, 0]}, r"\[0, 1\] are seeds of params.yaml"),
        (CHOICES, {"seeds": [100]}, r"--seeds: got \[100\]; give two or more different"),
        (CHOICES, {"seeds": [100, 100]}, r"--seeds: got \[100, 100\]; give two or more different"),
        (CHOICES, {"study": ".."}, r"--study: got '\.\.'"),
        (CHOICES, {"strategy": "none"}, "none of its settings has an effect with the"),
        (CHOICES, {"space": "nowhere.yaml"}, "'nowhere.yaml'; name a YAML file, or paper or"),
        (CHOICES.replace("0.3", "-1"), {}, r"space.yaml: .*\n  train.lambda: got -1: .*greater"),
        (CHOICES.replace("lambda", "mu"), {}, "train.mu has no single value in params.yaml"),
        ("seeds: {choices: [1, 2]}\n", {}, "seeds has no single value"),
        ("pretrain.seed: {choices: [1, 2]}\n", {}, "pretrain.seed: --set changes only source_f"),
        ("train.lambda: {low: 0.1, high: 1.0}\n", {}, "give it choices, or use --sampler tpe"),
        ("train.lambda: {choices: [0.1, 1.0]}\n", {"prune": True, "jobs": 2}, "--jobs 2: with"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    space: str,
    changes: dict,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(UserError, match=said):
        search.search(
            workspace(tiny), replace(PLAN, **changes), tmp_path / "best.yaml", Fleet(), print
        )
    assert not (tmp_path / "best.yaml").exists()
    assert not (tiny / "search").exists(), "nothing half-written"


def test_another_launcher_is_refused(tiny: Path, tmp_path: Path) -> None:
    fleet = Fleet(2, launched=True)
    with pytest.raises(UserError, match="search starts its own processes"):
        search.search(
            workspace(tiny), replace(PLAN, space="paper"), tmp_path / "b.yaml", fleet, print
        )


def test_a_value_of_other_settings_is_not_taken(trainable: Path) -> None:
    """Whoever trained, and wherever: the trial would have the value of another one."""
    there, used = workspace(trainable).with_changes(["train.lambda=0.5"]), list[Workspace]()

    def elsewhere(ws: Workspace, cell: Cell, *more: Any) -> str:
        select.select(ws, cell)
        facts = {"validation": {"val/top1": 50.0}}
        storage.write_json(ws.cell("models", cell) / "model.json", facts)
        freshness.write_finished(ws, cell, freshness.of_cell(used[-1], cell, 1), 1.0)
        return ""

    def measure() -> float:
        crew = Crew(Fleet(), trainable, elsewhere=elsewhere)
        return search._measure(there, PLAN, 0, crew, lambda points: None)

    used.append(replace(there, params=there.with_changes(["train.recipe.steps=2"]).params))
    changed = r"inputs changed while digits-uot-0 was trained: train\.recipe\.steps; give the comm"
    with pytest.raises(UserError, match=changed):
        measure()
    used.append(there)
    assert measure() == 50.0


class Inline:
    """A pool of crews that trains in the test's own thread."""

    def run(self, work: Callable, items: list) -> Iterator[object]:
        for item in items:
            try:
                yield work(None, item)
            except UserError as error:
                yield error


@pytest.mark.parametrize(
    ("text", "failing", "said"),
    [
        ("select.top_k: {choices: [5, 500]}", {"select.top_k": 500}, "got 500, but the source"),
        (
            "train.batch_norm: {choices: [mixed, frozen]}\n"
            "train.reestimate_norm: {choices: [false, true]}",
            {"train.batch_norm": "frozen", "train.reestimate_norm": True},
            "batch_norm: frozen keeps",
        ),
    ],
)
def test_a_trial_that_cannot_be_had_fails_alone(
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    failing: dict,
    said: str,
) -> None:
    """Else the same command would meet it again, and the study would never end."""

    def measure(there: Workspace, plan: search.Plan, seed: int, *more: object) -> float:
        select.select(there, Cell(plan.target, plan.strategy, seed))
        return 50.0

    monkeypatch.setattr(search, "_measure", measure)
    (tmp_path / "space.yaml").write_text(text)
    space = study.read_space(str(tmp_path / "space.yaml"))
    default = study.standing((fresh / "params.yaml").read_text(), space)
    record = study.Study(tmp_path / "study.db", space, default, tpe=False)
    ws = workspace(fresh)
    ahead = search._train_ahead(ws, PLAN, record.to_come(99), Inline())
    while trial := record.next(99):
        search._run(ws, PLAN, record, trial, Inline(), ahead)
    states = {str(trial.setting): trial.state for trial in record.trials()}
    assert states.pop(str(failing)) == "failed"
    assert states
    assert set(states.values()) == {"complete"}
    assert said in caplog.text


def test_what_a_study_is_of(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of processes decides batch norm; a source by class grows with the study."""
    ws = workspace(fresh)
    one, two = (search._fingerprint(ws, PLAN, {}, Fleet(n)) for n in (1, 2))
    assert two == one | {"processes": 2}
    monkeypatch.setattr(Workspace, "by_class", True)
    ws.data("glyphs").unlink()
    assert "data/glyphs.npz" not in search._fingerprint(ws, PLAN, {}, Fleet())["files"]


def test_a_name_twice_is_no_space(tmp_path: Path) -> None:
    twice = "train.lambda: {choices: [0.1]}\ntrain.lambda: {choices: [0.3]}\n"
    (tmp_path / "space.yaml").write_text(twice)
    with pytest.raises(UserError, match="'train.lambda' is written twice"):
        study.read_space(str(tmp_path / "space.yaml"))
