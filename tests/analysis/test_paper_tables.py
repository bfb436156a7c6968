"""The registry of experiments: definitions against params.yaml, the paper's numbers, the tables."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from support.stages import run_train
from uotft.analysis import experiment_settings, paper_tables
from uotft.analysis.experiments import Experiment, Variation
from uotft.analysis.statistics import Interval
from uotft.core import config, storage
from uotft.core.context import Context
from uotft.core.errors import Interrupted, UserError
from uotft.core.records import Cell, never
from uotft.pipeline import (
    cost,
    evaluate,
    experiment_cells,
    freshness,
    select,
    train as train_stage,
    units,
    workspace as workspace_stage,
)
from uotft.pipeline.experiment_cells import Plan
from uotft.runs import experiment_runner
from uotft.training import runtime

PAPER = Path(__file__).parents[3] / "shared" / "paper"
QUIET = {"log": lambda *_: None, "progress": lambda items, label: items}


@pytest.mark.parametrize("name", paper_tables.names())
def test_every_definition_is_sound(name: str) -> None:
    """Every word is one of params.yaml's, here and at the paper's size; labels tell rows apart."""
    experiment = paper_tables.load(name)
    ws = workspace_stage.Workspace(REPOSITORY, config.load(REPOSITORY))
    labels = [variation.label for variation in experiment.variations]
    assert len(set(labels)) == len(labels)
    assert experiment.baseline in labels
    assert experiment.seeds >= 5
    for variation in experiment.variations:
        assert variation.overrides, "the cells of params.yaml itself are DVC's"
        assert {*experiment.against(variation)} <= {*labels}
        assert bool(variation.line) == (variation.x is not None)
        assert variation.x is None or experiment.axis
    for whole in ((1000, 1_281_167), (12, 72)):
        settled, _ = experiment_settings.settled(experiment, ws.params, whole)
        for variation in settled.variations:
            changed = ws.with_changes(variation.overrides)
            config.selector_settings(changed.params, variation.strategy)
            assert (variation.strategy == "none") == (
                changed.params.train.objective in ("plain", "co_tuning", "l2_sp", "frozen")
            ), "what keeps no class reads no source image"
    for target, numbers in experiment.paper.items():
        assert target in experiment.targets
        assert numbers.keys() <= set(labels)
    assert all(recalls.keys() <= set(labels) for recalls in experiment.recalls.values())


def test_the_papers_averages() -> None:
    """The last column of tables 1 and 2, which the definitions leave out: no number is mistyped."""
    averages = {
        "table1a": [78.98, 79.34, 79.32, 79.84, 80.15],
        "table1b-labels": [81.82, 82.83, 82.76, 84.75],
        "table1b-clusters": [81.82, 82.56, 83.16, 83.17],
        "table2": [83.04, 83.17],
    }
    for name, expected in averages.items():
        experiment = paper_tables.load(name)
        found = [
            np.mean([experiment.paper[t][v.label] for t in experiment.targets])
            for v in experiment.variations
        ]
        assert found == pytest.approx(expected, abs=0.0051), name


def test_an_experiment_that_is_not_there() -> None:
    with pytest.raises(
        UserError, match="experiment: got 'table9'; known are beyond, controls, fig3a, "
    ):
        paper_tables.load("table9")


def test_the_papers_numbers_are_scaled_to_the_source() -> None:
    overrides = ("select.unit=class", "select.top_k=100", "selectors.uot.cost_scale=100")
    assert experiment_settings.scaled(overrides, 1000, 5) == overrides
    assert experiment_settings.scaled(overrides, 450, 5)[1:] == ("select.top_k=45", overrides[2])
    assert experiment_settings.scaled(overrides, 4, 5)[1] == "select.top_k=1"
    clusters = ("select.unit=cluster", "cluster.clusters=2000", "select.top_k=200")
    assert experiment_settings.scaled(clusters, 100, 5)[1:] == (
        "cluster.clusters=200",
        "select.top_k=20",
    )
    images = ("select.unit=image", "select.top_k=128117")
    assert experiment_settings.scaled(images, 100, 25_000)[1] == "select.top_k=2500"
    auto = ("select.unit=class", "select.top_k=auto")
    assert experiment_settings.scaled(auto, 10, 10) == auto


TOY = Experiment(
    title="Toy",
    claim="nothing",
    variations=(
        Variation("plain", "none", ("train.objective=plain",)),
        Variation("few", "uot", ("select.top_k=100",), "UOT", 1.0),
        Variation("many", "uot", ("select.top_k=200",), "UOT", 2.0, against="few"),
    ),
    baseline="plain",
    targets=("digits",),
    paper={"digits": {"plain": 50.0, "few": 52.5}},
    recalls={"model": {"few": 80.0}},
    axis="K",
)


def measured(top1: float, classes: int = 3) -> dict[str, float]:
    return {"top1": top1, "mean_per_class": top1 - 1, "classes": classes}


RESULTS = {
    "plain": {s: measured(50.0 + s, 0) for s in range(3)},
    "few": {s: measured(52.0 + s) for s in range(3)},
    "many": {1: measured(60.0), 2: measured(62.0)},
}


def test_rows_by_hand() -> None:
    plain, few, many = paper_tables.rows(TOY, "digits", RESULTS)
    assert (plain.differences, plain.paper_difference) == ({}, None)
    assert plain.values["top1"].mean == 51
    assert few.differences == {"plain": Interval(2.0, 0.0, 3)}
    assert (few.paper, few.paper_difference) == (52.5, 2.5)
    assert ([*many.differences], many.seeds, many.paper) == (["few"], 2, None)
    assert many.differences["few"].mean == pytest.approx(7.5), "on the seeds that both have"
    assert paper_tables.rows(TOY, "pets", RESULTS)[0].paper is None
    assert [row.label for row in paper_tables.rows(TOY, "digits", {"few": RESULTS["few"]})] == [
        "few"
    ]


def test_the_table_in_words() -> None:
    header, plain, few, _ = paper_tables.cells(
        TOY, paper_tables.rows(TOY, "digits", RESULTS), "mean per class"
    )
    assert header == (
        "variation", "seeds", "kept", "top-1 %", "mean per class %*", "Δ top-1", "from",
        "paper %", "paper Δ",
    )  # fmt: skip
    assert plain[:4] == ("plain", "3", "0", "51.00 ± 2.48")
    assert few[5:] == ("+2.00 ± 0.00", "plain", "52.50", "+2.50")
    found = {"few": {0: {"classes": 5, "recall": 75.0}}}
    assert paper_tables.cells(TOY, paper_tables.rows(TOY, "digits", found)) == [
        (
            "variation",
            "seeds",
            "kept",
            "recall %",
            "paper %",
            "paper Δ",
            "paper's recall of birds, model",
        ),
        ("few", "1", "5", "75.00", "52.50", "+2.50", "80.00"),
    ]


@pytest.mark.parametrize(
    ("measured", "recalls", "expected"),
    [
        (["top1"], {}, "top1"),
        (["top1"], {"model": {"few": 80.0}}, "top1"),
        (["recall"], {}, "recall"),
        (["recall"], {"model": {"few": 80.0}}, "recall"),
        (["top1", "recall"], {}, "top1"),
        (["top1", "recall"], {"model": {"few": 80.0}}, "recall"),
    ],
)
def test_recall_is_plotted_where_the_papers_picture_shows_it(
    measured: list[str], recalls: dict[str, dict[str, float]], expected: str
) -> None:
    experiment = replace(TOY, recalls=recalls)
    seeds = {seed: {"classes": 5, **dict.fromkeys(measured, 50.0)} for seed in range(2)}
    assert (
        paper_tables.plotted_metric(
            experiment, paper_tables.rows(experiment, "digits", {"few": seeds})
        )
        == expected
    )


@pytest.mark.parametrize("axis", ["", "K"])
def test_a_picture_needs_no_second_seed(tmp_path: Path, axis: str) -> None:
    some = {label: {1: seeds[1]} for label, seeds in RESULTS.items()}
    found = {"digits": RESULTS, "pets": some}
    tables = experiment_cells.write_results(tmp_path, replace(TOY, axis=axis), found, {}, "A note.")
    assert [target for target, *_ in tables] == ["digits", "pets"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    runs = storage.read_csv(tmp_path / "runs.csv")
    assert len(runs) == 8 + 3
    assert runs[0] == {
        "target": "digits", "row": "plain", "strategy": "none", "seed": "0", "kept": "0",
        "settings": "train.objective=plain", "top1": "50.0", "mean_per_class": "49.0",
        "val_top1": "", "images": "", "seconds": "", "recall": "",
    }  # fmt: skip
    table = storage.read_csv(tmp_path / "table.csv")
    assert (table[1]["difference"], table[1]["paper"]) == ("2.0", "52.5")
    assert "A note." in (tmp_path / "table.md").read_text()


@pytest.mark.skipif(not PAPER.is_dir(), reason=f"the paper's class means are not at {PAPER}")
@pytest.mark.parametrize(
    ("file", "model"),
    [("resnet18_supervised", "supervised"), ("resnet50_mocov2", "MoCo-v2")],
)
def test_table_4_is_the_papers(tmp_path: Path, file: str, model: str) -> None:
    with np.load(PAPER / f"class_means_{file}.npz") as means:
        for name in means:
            np.savez(tmp_path / f"{name}.npz", means=means[name])
    banks = str(tmp_path / "imagenet.npz"), str(tmp_path / "cub.npz")
    table = str(PAPER / "imagenet_classes.json")
    for name, rows in (("table4", 4), ("fig4a", 8)):
        experiment = paper_tables.load(name)
        found = experiment_cells.bank_results(experiment, *banks, ["bird"], table)
        assert len(found) == rows
        for label, recall in experiment.recalls[model].items():
            assert round(found[label][0]["recall"], 2) == recall


def test_recall_from_banks_wants_all_its_words(tmp_path: Path) -> None:
    for name in ("s", "t"):
        np.savez(tmp_path / f"{name}.npz", means=np.eye(4))
    banks = str(tmp_path / "s.npz"), str(tmp_path / "t.npz")
    for experiment, expect in (("table4", []), ("table1a", ["bird"])):
        with pytest.raises(
            UserError, match="need --expect, and an experiment that measures recall"
        ):
            experiment_cells.bank_results(paper_tables.load(experiment), *banks, expect, "")
    with pytest.raises(UserError, match="no such file"):
        experiment_cells.bank_results(paper_tables.load("table4"), banks[0], "", ["1"], "")


def plan(name: str, seeds: int = 1, **other: object) -> Plan:
    """An experiment on the digits."""
    return Plan(paper_tables.load(name), **{"on": ["digits"], "seeds": range(seeds), **other})


def cells_of(root: Path, wanted: Plan) -> list[experiment_cells.Column]:
    """The cells of a plan, as the command finds them."""
    ws = workspace(root)
    return experiment_cells.columns(ws, experiment_cells.settled(ws, wanted)[0])


def test_targets_that_are_not_here(tiny: Path) -> None:
    ws = workspace(tiny)
    with pytest.raises(UserError, match=r"its targets cub, caltech have no section .* --on \(dig"):
        experiment_cells.targets(ws, plan("fig3b", on=()))
    assert experiment_cells.targets(ws, plan("fig3b")) == ("digits",)
    assert experiment_cells.targets(ws, plan("beyond", on=())) == ("digits",)


@pytest.fixture
def columns(fresh: Path) -> Iterator[list[experiment_cells.Column]]:
    """The two cells of table 3 with one seed, trained in this process as the launcher does."""
    made = cells_of(fresh, plan("table3"))
    for column in made:
        train(column)
    return made


def train(column: experiment_cells.Column) -> None:
    cell = Cell(column.target, column.strategy, 0)
    units.own_units(column.ws)
    select.select(column.ws, cell)
    train_stage.train(column.ws, cell, Context(runtime.start(0, 1), **QUIET))
    freshness.write_finished(column.ws, cell, freshness.of_cell(column.ws, cell, 1), 2.0)


def again(root: Path, seeds: int = 1, **sections: dict) -> list[experiment_cells.Column]:
    """The cells as a new command with other settings in params.yaml would find them."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    for name, section in sections.items():
        params[name] |= section
    write_params(root, params)
    return cells_of(root, plan("table3", seeds))


def test_cells_are_done_until_what_decides_them_changes(
    fresh: Path, columns: list[experiment_cells.Column]
) -> None:
    plain, uot = columns
    assert experiment_runner.todo(columns) == []
    assert [cell.seed for _, cell in experiment_runner.todo(again(fresh, seeds=2))] == [1, 1], (
        "another seed"
    )
    assert experiment_runner.todo(again(fresh, forecast={"points": 3})) == []
    others = again(fresh, selectors={"uot": {"cost_scale": 0.2}})
    assert [cell.strategy for _, cell in experiment_runner.todo(others)] == ["uot"], (
        "not the one that selects nothing"
    )
    others = again(fresh, selectors={"uot": {}}, train={"lambda": 0.5})
    assert len(experiment_runner.todo(others)) == 2
    assert (
        experiment_runner.todo(
            again(fresh, selectors=tiny_params()["selectors"], train={"lambda": 1.0})
        )
        == []
    )
    processes = cells_of(fresh, plan("table3", num_processes=2))
    assert len(experiment_runner.todo(processes)) == 2
    (uot.folder("models", 0) / "model.json").unlink()
    assert [cell.strategy for _, cell in experiment_runner.todo(columns)] == ["uot"], (
        "killed before its end"
    )


def test_what_it_takes_is_said_before(fresh: Path, columns: list[experiment_cells.Column]) -> None:
    plain, uot = columns
    assert (plain.cost, uot.cost) == (12 * 8, 12 * 16)
    *cells, total = experiment_runner.forecast(columns, 1)
    assert cells[0].startswith("digits: Fine-Tune: 1 done, 0 to do, 96 images each: none subset.")
    assert (
        total
        == "0 cells to train, 0 images at most; time: about 0 min, at 72 images a second of 2 cells"
    )
    *_, total = experiment_runner.forecast(again(fresh, seeds=2, train={"source_batch": 4000}), 1)
    assert total.startswith("4 cells to train")
    assert total.endswith("unknown, since no cell is finished yet")


def test_no_more_cells_are_trained_at_a_time_than_there_are(
    fresh: Path, columns: list[experiment_cells.Column], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cells on two of ten places: 96 + 192 images at 0.01 a second, halved."""
    monkeypatch.setattr(experiment_cells.Column, "costs", lambda column: [(96, 9600.0)])
    *_, total = experiment_runner.forecast(again(fresh, seeds=2), 10)
    assert "2 cells to train, 288 images at most; time: about 240 min" in total


def test_where_nothing_is_trained_no_training_is_promised(tiny: Path) -> None:
    lines = [*experiment_runner.forecast(cells_of(tiny, plan("table3", 2)), 1, train=False)]
    assert lines[0].startswith("digits: Fine-Tune: 2 to select: none subset.")
    assert lines[-1] == "4 cells to select, none to train"


def test_the_test_part_is_read_again_for_new_models_alone(
    columns: list[experiment_cells.Column],
) -> None:
    plain, uot = columns
    assert experiment_cells.unmeasured(plain) == ([0], {})
    found = evaluate.evaluate(plain.ws, "digits", "none", progress=QUIET["progress"])
    assert experiment_cells.unmeasured(plain) == ([], found)
    (plain.folder("models", 1).parent / "7").mkdir()  # of a training that was stopped
    assert experiment_cells.unmeasured(plain) == ([], found)
    facts = plain.folder("models", 0) / freshness.FINGERPRINT
    os.utime(facts, (time.time() + 9, time.time() + 9))  # trained again since
    assert experiment_cells.unmeasured(plain) == ([0], {})
    # metrics of other seeds are kept as they are
    known = {"5": found["0"] | {"top1": 12.5}}
    options = {"progress": QUIET["progress"], "known": known, "seeds": [0]}
    assert evaluate.evaluate(plain.ws, "digits", "none", **options) == {"0": found["0"], **known}


def test_results_are_those_of_done_cells(
    fresh: Path, columns: list[experiment_cells.Column]
) -> None:
    plain, uot = columns
    evaluate.evaluate(plain.ws, "digits", "none", progress=QUIET["progress"])
    found = experiment_cells.results(columns, plan("table3"))
    assert list(found["digits"]) == ["Fine-Tune"], "the other is trained, but not measured"
    assert found["digits"]["Fine-Tune"][0]["classes"] == 0
    found = experiment_cells.results(columns, plan("table3", expect=["digit *"]))
    assert found["digits"]["UOT"][0].keys() == {"classes", "recall"}
    assert "recall" not in found["digits"]["Fine-Tune"][0]
    assert experiment_cells.results(again(fresh, train={"lambda": 0.5}), plan("table3")) == {}, (
        "of other settings"
    )


def test_a_cell_is_a_line_as_soon_as_it_is_trained_and_tested(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is stopped, then fails; each time the same command goes on."""
    wanted, lines, tested = plan("table3"), [], []
    file = fresh / "reports/experiments/table3/runs.csv"

    def measure(ws, target, strategy, progress, known, seeds, stop) -> None:  # noqa: ANN001
        tested.append((strategy, *seeds))
        options = {"progress": progress, "known": known, "seeds": seeds, "stop": stop}
        evaluate.evaluate(ws, target, strategy, **options)

    def work(jobs, fleet, at_once, done, ended) -> list[str]:  # noqa: ANN001
        columns = cells_of(fresh, wanted)
        assert [cost.of(*each) for each in jobs] == ([96, 192] if len(jobs) == 2 else [192])
        assert done == ([(96, 2.0)] if len(jobs) == 1 else [])
        if len(jobs) == 2:
            train(columns[0])
            ended(jobs[0], None, never)
            lines.extend(storage.read_csv(file))
            raise Interrupted("interrupted")
        ended(jobs[0], UserError("the loss is\nnan"), never)
        return ["failed"]

    monkeypatch.setattr(experiment_runner.job, "evaluate", measure)
    monkeypatch.setattr(experiment_runner.job, "upstream", lambda *_: None)
    monkeypatch.setattr(experiment_runner.cells, "train_some", work)
    with pytest.raises(Interrupted):
        experiment_runner.run(workspace(fresh), wanted)
    [line] = lines
    assert (line["row"], line["seed"], line["images"], line["seconds"]) == (
        "Fine-Tune", "0", "96", "2.0"
    )  # fmt: skip
    assert float(line["top1"]) > 0
    assert float(line["val_top1"]) > 0
    report = experiment_runner.run(workspace(fresh), wanted)
    assert tested == [("none", 0)]
    assert report.failed == ["failed"]
    [(_, table, notes)] = report.tables
    assert len(table) == 2
    assert notes == ["UOT: 0 of 1 seed; seed 0 failed: the loss is nan"]
    assert storage.read_csv(file) == [line]

    # ---- on validation images no test part is read, in files of their own
    wanted = replace(wanted, experiment=paper_tables.on_validation(wanted.experiment))
    report = experiment_runner.run(workspace(fresh), wanted)
    assert report.folder == file.parent / "validation"
    [line] = storage.read_csv(report.folder / "runs.csv")
    assert line["top1"] == ""
    assert tested == [("none", 0)]


def test_by_label_only_with_labels(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    def label(**words: object) -> list[experiment_cells.Column]:
        return [c for c in cells_of(fresh, plan("fig3a", **words)) if c.strategy == "label"]

    [column] = label()
    assert column.ws.params.selectors["label"] == {"classes": ["digit *"]}, "of params.yaml"
    assert not caplog.records
    params = tiny_params()
    del params["selectors"]["label"]
    write_params(fresh, params)
    assert label() == []
    [record] = caplog.records
    assert record.getMessage() == (
        "experiment fig3a: row 'Label' is left out: nothing names its classes; give --expect, or "
        "set selectors.label.classes in the row or in params.yaml"
    )
    [column] = label(expect=["digit *"])
    assert column.ws.params.selectors["label"] == {"classes": ["digit *"], "table": ""}
    assert math.isclose(paper_tables.load("fig3a").variations[-1].x, 300)


def test_small_sources_train_the_same_cell_once(tiny: Path) -> None:
    """With twelve classes, K of 50 and 100 are both one class."""
    columns = cells_of(tiny, plan("fig3a", 2))
    assert len({column.variation.label for column in columns}) == 14
    assert len(experiment_runner.todo(columns)) == 2 * (1 + 1 + 2 * 4)


def test_joint_objectives_of_beyond_train(fresh: Path) -> None:
    """With the words of the definition, on twelve classes."""
    for column in cells_of(fresh, plan("beyond")):
        if column.ws.params.train.objective.startswith("joint_") or column.ws.upstream.endswith(
            "image"
        ):
            train(column)
            facts = storage.read_json(column.folder("models", 0) / "model.json")
            assert facts["objective"] == column.ws.params.train.objective
    assert run_train(fresh), "params.yaml's own cells go on beside them"
