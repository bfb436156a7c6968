"""Controls: rows that train on no source images, with settings of their own."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from support.projects import tiny_params, workspace, write_params
from support.stages import run_train
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.core.settings import CONTROLS
from uotft.pipeline import compare, compatible, evaluate, forecast, freshness
from uotft.pipeline.workspace import Workspace
from uotft.runs import job

OWN = {"slow": {"objective": "plain", "target_head": "random", "recipe": {"learning_rate": 0.001}}}
ROWS = ["none", "slow", "equal_compute", "uot"]


def with_controls(root: Path, controls: dict, **more: object) -> Workspace:
    """The tiny project with these controls of its own."""
    write_params(root, tiny_params() | {"controls": controls, "strategies": ROWS} | more)
    return workspace(root)


def quiet(items: list, label: str) -> list:
    return items


def test_controls_are_rows_of_the_comparison(fresh: Path) -> None:
    ws = with_controls(fresh, OWN, seeds=[0])
    for name in ROWS:
        run_train(fresh, name)
        evaluate.evaluate(ws, "digits", name, progress=quiet)
    forecast.forecast(ws, "digits", progress=quiet)
    table = compare.compare(ws)[0]["digits"]
    assert [row.strategy for row in table] == ROWS
    assert [row.classes for row in table] == [0, 0, 0, 5]
    chosen = storage.read_json(ws.cell("selections", Cell("digits", "slow", 0)) / "selection.json")
    assert (chosen["strategy"], chosen["classes"]) == ("slow", [])
    weights = {
        name: storage.read_json(ws.cell("models", Cell("digits", name, 0)) / "model.json")["sha256"]
        for name in ROWS
    }
    assert len({*weights.values()}) == len(ROWS)
    with (fresh / "reports/runs.csv").open() as file:
        assert [line["strategy"] for line in csv.DictReader(file)] == ROWS


def test_the_controls_that_every_project_knows_train(fresh: Path) -> None:
    """And are of use: the two without a step are as good as the head that others start from."""
    before = storage.fingerprint(workspace(fresh).pretrained() / "model.safetensors")
    ended, steps = {}, {}
    for name in ("none", *CONTROLS):
        points = [p for p in run_train(fresh, name) if "val/top1" in p[1]]
        ended[name], steps[name] = points[-1][1]["val/top1"], points[-1][0]
        facts = storage.read_json(
            workspace(fresh).cell("models", Cell("digits", name, 0)) / "model.json"
        )
        assert (facts["strategy"], facts["reused"]) == (name, [])
    still = {"probe", "class_means"}
    assert steps == {name: 0 if name in still else 12 for name in ended}
    assert len({*ended}) == 1 + len(CONTROLS) == 6
    assert min(ended[name] for name in still) > 15, "ten classes"
    assert storage.fingerprint(workspace(fresh).pretrained() / "model.safetensors") == before


def test_work_after_the_last_step_does_not_forbid_the_usual_controls() -> None:
    """Nor do statistics that are to be computed anew: the controls switch both off."""
    raw = tiny_params()
    raw["train"] |= {"reestimate_norm": True, "head_steps": 5}
    ws = Workspace(Path(), config.checked(raw, "params.yaml"))
    compatible.check(ws, ["digits"], [*CONTROLS])
    assert ws.of("frozen_norm").params.train.head_steps == 5
    assert ws.of("lp_ft").params.train.reestimate_norm


def test_a_control_changes_its_own_rows_alone(tiny: Path) -> None:
    params = config.checked(tiny_params() | {"controls": OWN}, "params.yaml")
    ws = Workspace(tiny, params)
    for name in ("none", "uot"):
        assert ws.of(name) == ws
    train = ws.of("slow").params.train
    assert (train.target_head, train.recipe.learning_rate) == ("random", 0.001)
    assert train.recipe.steps == params.train.recipe.steps
    assert ws.of("slow").of("slow") == ws.of("slow")
    assert params.controls == CONTROLS | OWN, "those of the default are always there"
    assert config.selector_settings(params, "slow") == config.selector_settings(params, "none")


@pytest.mark.parametrize(
    ("objective", "batch"), [("joint", 16), ("pseudo_label", 24), ("plain", 8), ("co_tuning", 8)]
)
def test_equal_compute_sees_as_many_images_as_a_step_with_reuse(objective: str, batch: int) -> None:
    """8 images of the target, and 8 of each part of the source that the objective reads."""
    raw = tiny_params()
    raw["train"]["objective"] = objective
    recipe = {"steps": 0, "epochs": 20, "warmup": 2, "learning_rate": 0.1}
    for length, epochs in (({}, 0), (recipe, 20 * batch // 8)):
        raw["train"]["recipe"] |= length
        params = config.checked(raw, "params.yaml")
        own = config.of_strategy(params, "equal_compute")
        assert (own.train.objective, own.train.target_batch) == ("plain", batch)
        assert config.of_strategy(own, "equal_compute") == own
        assert own.train.recipe.epochs == epochs
        steps = [p.train.recipe.counted(800, p.train.target_batch) for p in (params, own)]
        assert (steps[0].steps, steps[0].warmup) == (steps[1].steps, steps[1].warmup)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"slow": {"target_hed": "random"}}, r"controls\.slow\.target_hed: no such setting; known"),
        ({"slow": {"recipe": {"lr": 1.0}}}, r"controls\.slow\.recipe\.lr: no such setting; known"),
        ({"slow": {"target_head": "big"}}, r"controls\.slow\.target_head: got 'big'"),
        ({"slow": {"target_batch": "all"}}, r"controls\.slow\.target_batch: got 'all'"),
        ({"slow": {"objective": "magic"}}, r"controls\.slow\.objective: got 'magic'; known are"),
        ({"random": {}}, r"controls\.random: a strategy has this name"),
        ({"a/b": {}}, "controls: the name 'a/b' may have only letters"),
        ({"slow": 3}, r"controls\.slow: got 3"),
    ],
)
def test_a_control_that_cannot_work_is_refused_at_once(controls: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.checked(tiny_params() | {"controls": controls}, "params.yaml")


def test_an_unknown_row_names_strategies_and_controls() -> None:
    with pytest.raises(UserError, match="'prob'; known are all, .*; and the controls .*, slow$"):
        config.checked(tiny_params() | {"controls": OWN, "strategies": ["prob"]}, "params.yaml")


def test_a_setting_that_a_control_replaces_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_params(tmp_path, tiny_params())
    ws = workspace(tmp_path)
    changed = ws.with_changes(["train.target_head=random", "train.target_batch=4"])
    assert job._of_row(changed, "probe").params.train.target_head == "probe"
    said = [record.getMessage() for record in caplog.records]
    why = "has no effect on probe: controls.probe.target_head sets it"
    assert said == [f"--set train.target_head {why}"]
    caplog.clear()
    assert job._of_row(changed, "equal_compute").params.train.target_batch == 4 + 8
    assert not caplog.records


def test_a_file_without_controls_has_the_usual_ones() -> None:
    raw = tiny_params()
    del raw["controls"]
    assert config.checked(raw, "params.yaml").controls == CONTROLS


def test_a_changed_control_makes_its_own_cells_stale(fresh: Path) -> None:
    """And no other: what a training was made of is known without the section controls."""
    before = with_controls(fresh, OWN)
    for name in ("none", "slow"):
        run_train(fresh, name)
        assert freshness.trained(before, Cell("digits", name, 0), 1)
    after = with_controls(fresh, {"slow": OWN["slow"] | {"target_head": "class_means"}})
    assert freshness.trained(after, Cell("digits", "none", 0), 1)
    assert not freshness.trained(after, Cell("digits", "slow", 0), 1)
    changed = freshness.differences(
        *(freshness.of_training(ws, Cell("digits", "slow", 0)) for ws in (before, after))
    )
    assert changed == ["train.target_head"]


def test_controls_need_no_means_of_the_source() -> None:
    """With clusters, the rows of a classifier are no units: for rows that keep some it is wrong."""
    raw = tiny_params() | {"source_means": "classifier"}
    raw["selectors"]["uot"]["metric"] = "l2"
    ws = Workspace(Path(), config.checked(raw, "params.yaml"))
    compatible.check(ws, ["digits"], ["none", "equal_compute"])
    with pytest.raises(UserError, match=r"selectors\.uot\.metric"):
        compatible.check(ws, ["digits"], ["none", "uot"])
