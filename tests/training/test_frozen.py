"""The objective ``frozen``: the network as it starts, at no step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.finished_trials import trial
from support.projects import tiny_params, workspace, write_params
from support.tiny_training import CELL, left, train
from uotft.analysis import figures, paper_tables, sections, trials
from uotft.analysis.statistics import interval
from uotft.core import config, storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.pipeline import (
    compatible,
    experiment_cells,
    freshness,
    readers,
    select,
    train as train_stage,
)
from uotft.runs import experiment_runner
from uotft.runs.study import Study
from uotft.training import runtime


def frozen(root: Path, recipe: dict | None = None, **more: object):  # noqa: ANN201
    """A project whose cell makes no step, and its selection."""
    params = tiny_params()
    params["train"] |= {"objective": "frozen"} | more
    params["train"]["recipe"] |= recipe or {}
    write_params(root, params)
    ws = workspace(root)
    select.select(ws, Cell(*CELL))
    return ws


@pytest.mark.parametrize("recipe", [{}, {"steps": 0, "epochs": 3, "schedule": "cosine"}])
@pytest.mark.parametrize("strategy", ["uot", "none"])
def test_nothing_is_trained(fresh: Path, recipe: dict, strategy: str) -> None:
    ws = frozen(fresh, recipe, target_head="class_means")
    cell = replace(Cell(*CELL), strategy=strategy)
    select.select(ws, cell)
    points: list = []
    log = lambda step, numbers: points.append((step, numbers))  # noqa: E731
    train_stage.train(ws, cell, Context(runtime.start(0, 1), log=log))
    [(step, numbers)] = points
    assert (step, {*numbers}) == (0, {"val/top1", "val/mean_per_class"})
    ours, facts = model_io.read(ws.cell("models", cell))
    pretrained, _ = model_io.read(ws.pretrained())
    for name, tensor in pretrained.backbone.state_dict().items():
        assert torch.equal(ours.backbone.state_dict()[name], tensor), name
    assert (facts["steps"], facts["objective"], facts["reused"]) == (0, "frozen", [])
    assert not left(fresh).exists(), "nothing to resume"


def test_with_class_means_it_is_the_nearest_class_mean(fresh: Path) -> None:
    ws = frozen(fresh, target_head="class_means")
    train(fresh)
    ours, _ = model_io.read(ws.cell("models", Cell(*CELL)))
    features = readers.pool(ws, "digits")["features"].astype(np.float64)
    means = readers.target_bank(ws, "digits", 0).head_means()
    nearest = ((features[:, None] - means) ** 2).sum(2).argmin(1)
    with torch.no_grad():
        found = ours.head("target")(torch.as_tensor(features, dtype=torch.float32)).argmax(1)
    assert (found.numpy() == nearest).mean() > 0.99


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"head_steps": 5}, r"frozen keeps the network .* train\.head_steps: 5 .* set it to 0"),
        ({"reestimate_norm": True}, r"train\.reestimate_norm: true would .* set it to false"),
    ],
)
def test_work_after_the_last_step_is_refused_before_anything(
    fresh: Path, more: dict, message: str
) -> None:
    ws = frozen(fresh, **more)
    with pytest.raises(UserError, match=message):
        compatible.check(ws, ["digits"], ["none"])
    with pytest.raises(UserError, match=message):
        train(fresh)
    compatible.check(frozen(fresh), ["digits"], ["none"])


def test_estimates_promise_no_steps(fresh: Path) -> None:
    ws = frozen(fresh)
    trained = ws.with_changes(["train.objective=plain"])
    variation = paper_tables.load("table3").variations[0]
    still, moving = (
        experiment_cells.Column(each, "digits", variation, (0, 1), 1, (0, 1))
        for each in (ws, trained)
    )
    assert (still.cost, moving.cost) == (0, 12 * 8)
    *_, total = experiment_runner.forecast([still], 1)
    assert total == (
        "2 cells to train, 0 images at most; time: seconds, since no cell makes a step"
    )
    cell = Cell("digits", variation.strategy, 0)
    select.select(ws, cell)
    train_stage.train(ws, cell, Context(runtime.start(0, 1), log=lambda *_: None))
    freshness.write_finished(ws, cell, freshness.of_cell(ws, cell, 1), 2.0)
    assert still.finished(0)
    *_, total = experiment_runner.forecast([still, moving], 1)
    assert total.endswith("unknown, since no cell is finished yet"), "its seconds are no speed"


def test_a_report_takes_a_curve_of_one_point() -> None:
    """Its images are 0, so nothing costs a multiple of it."""
    settings = {"train.objective": "frozen"}
    still = [trial("none", seed, curve={0: 60.0}, settings=settings) for seed in (0, 1)]
    assert trials.images_seen(still[0]) == 0
    made = still + [trial("uot", seed) for seed in (0, 1)]
    rows = trials.lines(made, [])[0]["pets"]
    against = {"uot": "none"}
    [table, _] = sections._cost(rows, against).parts
    assert [row[2:4] for row in table.rows[1:]] == [("0", ""), ("100", "")]
    assert sections._curves("pets", rows, against).parts
    one = figures.curves_picture("pets", {"none": {0: interval([60.0, 61.0])}}, {})
    assert one[:4] == b"\x89PNG"


def test_a_search_with_pruning_takes_trials_without_steps(tmp_path: Path) -> None:
    axis = {"train.lambda": {"choices": [0.3, 1.0]}}
    study = Study(tmp_path / "s.db", config.space(axis, "s"), {"train.lambda": 1.0}, tpe=False)
    for _ in range(2):
        record = study.next(2)
        study.report(record.number, 0, 0, 60.0)
        assert not study.hopeless(record.number)
        study.measured(record.number, 100, 60.0)
        assert study.length() == 0
        study.close(record.number, "complete")
    assert study.importance() == {}


def test_its_history_is_one_line(fresh: Path) -> None:
    ws = frozen(fresh)
    train(fresh)
    [line] = storage.read_csv(ws.cell("models", Cell(*CELL)) / "history.csv")
    assert line["step"] == "0"
