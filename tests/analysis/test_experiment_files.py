"""Experiments that people write, what the command line changes, tables with several baselines."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from support.projects import tiny_params, workspace, write_params
from uotft.analysis import experiment_files, experiment_settings, paper_tables
from uotft.analysis.statistics import holm, paired
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline import experiment_cells
from uotft.pipeline.experiment_cells import Plan
from uotft.runs import cells, experiment_runner, job

FILE = {
    "title": "Does it help?",
    "baseline": "none",
    "set": ["subset.shots=3", "train.recipe.steps=10"],
    "seeds": "4-6",
    "rows": [
        {"label": "none", "strategy": "none", "set": ["train.objective=plain"]},
        {"label": "more", "strategy": "none",
         "set": ["train.objective=plain", "train.target_batch=both"]},
        {"label": "random", "strategy": "random", "set": ["select.top_k=4"], "against": "none"},
        {"label": "uot", "strategy": "uot", "set": ["select.top_k=5", "train.recipe.steps=20"],
         "against": ["none", "random"]},
    ],
}  # fmt: skip


def written(folder: Path, **changes: object) -> str:
    """The path of the file with other entries."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}))
    return str(path)


def row(**changes: object) -> list[dict[str, object]]:
    """The rows of the file, the last with other entries."""
    return [*FILE["rows"][:-1], {**FILE["rows"][-1], **changes}]


def test_a_file_is_an_experiment(tmp_path: Path) -> None:
    experiment = paper_tables.load(written(tmp_path))
    assert (experiment.name, experiment.title, experiment.scaled) == (
        "mine",
        "Does it help?",
        False,
    )
    assert [experiment.against(v) for v in experiment.variations] == [
        (), ("none",), ("none",), ("none", "random")
    ]  # fmt: skip
    assert experiment_settings.seeds(experiment.seeds) == (4, 5, 6)
    figure = row(line="UOT", x=5)
    experiment = paper_tables.load(written(tmp_path, rows=figure, axis="K", log=True))
    assert (experiment.axis, experiment.log, experiment.variations[-1].x) == ("K", True, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": row(stratgy="uot")}, "row 'uot':\n  stratgy: no such setting; known are against"),
        ({"rows": row(label="none")}, "rows: the label 'none' is given twice"),
        ({"rows": row(against=["nine"])}, "row 'uot': against: got 'nine'; the other rows are "),
        ({"rows": row(against="uot")}, "row 'uot': against: got 'uot'"),
        ({"rows": row(set=["select.top_k"])}, "row 'uot': set: got 'select.top_k'; write "),
        ({"rows": row(x=3)}, "row 'uot': line and x go together"),
        ({"rows": row(x=3, line="a")}, "row 'uot': x: name the axis with `axis:`"),
        ({"rows": [{"strategy": "uot"}]}, "row 1:\n  label: missing"),
        ({"rows": []}, "rows: got []"),
        ({"baseline": "plain"}, "baseline: got 'plain'; the rows are none, more, random, uot"),
        ({"colour": "red"}, "colour: no such setting; known are axis, baseline"),
        ({"set": ["a=1", "a=2"]}, "set: a=2: a is given twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_file_and_row(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        paper_tables.load(path)
    assert str(error.value).startswith(f"{path}:")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there.yaml: no such file"):
        paper_tables.load(str(tmp_path / "there.yaml"))
    (tmp_path / "broken.yaml").write_text("rows: [")
    with pytest.raises(UserError, match=r"broken.yaml: not valid YAML"):
        paper_tables.load(str(tmp_path / "broken.yaml"))
    (tmp_path / "twice.yaml").write_text("rows:\n- {set: [a=1], label: a, set: [a=2]}")
    with pytest.raises(UserError, match="not valid YAML.*'set' is written twice"):
        paper_tables.load(str(tmp_path / "twice.yaml"))
    Path(written(tmp_path)).rename(tmp_path / "half_source.yaml")
    with pytest.raises(UserError, match="half-source is a registered experiment"):
        paper_tables.load(str(tmp_path / "half_source.yaml"))
    assert experiment_files.is_file("a.yml")
    assert not experiment_files.is_file("table1a")


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("4-7", (4, 5, 6, 7)), ("0,2,5", (0, 2, 5)),
                        ("7,", None), ("0", None), ("7-4", None), ("1,1-2", None), ("x", None)]
)  # fmt: skip
def test_seeds_are_a_number_a_range_or_a_list(text: str, seeds: tuple[int, ...] | None) -> None:
    if seeds is None:
        with pytest.raises(UserError, match=f"--seeds: got '{text}'"):
            experiment_settings.seeds(text)
    else:
        assert experiment_settings.seeds(text) == seeds


def plan(folder: Path, **other: object) -> Plan:
    return Plan(paper_tables.load(written(folder)), ["digits"], (4, 5, 6), **other)


def test_the_command_line_has_the_last_word(tiny: Path, tmp_path: Path) -> None:
    ws = workspace(tiny)  # batches of 8 + 8
    settled, notes = experiment_cells.settled(ws, plan(tmp_path))
    assert notes == []
    none, more, random, uot = settled.experiment.variations
    assert none.overrides == ("subset.shots=3", "train.recipe.steps=10", "train.objective=plain")
    assert "train.target_batch=16" in more.overrides, "as many images as with reuse"
    assert "train.recipe.steps=20" in uot.overrides, "its own replaces that of all rows"
    assert "select.top_k=4" in random.overrides, "a number of a file is not scaled"

    words = {"settings": ["train.recipe.steps=6", "train.target_batch=12", "subset.fraction=0.5"]}
    settled, notes = experiment_cells.settled(ws, plan(tmp_path, top_k=3, **words))
    none, more, random, uot = settled.experiment.variations
    assert "train.target_batch=20" in more.overrides, "the sum is of the batches that others have"
    assert {*none.overrides} == {
        "train.objective=plain", "train.recipe.steps=6", "train.target_batch=12",
        "subset.fraction=0.5",
    }  # fmt: skip
    assert notes == [
        "select.top_k=3 of the command line replaces select.top_k=4 of random",
        "select.top_k=3 of the command line replaces select.top_k=5 of uot",
        "train.recipe.steps=6 of the command line replaces train.recipe.steps=20 of uot",
    ]
    _, notes = experiment_cells.settled(
        ws, plan(tmp_path, settings=["train.target_batch=8", "train.objective=plain"])
    )
    same = [note for note in notes if "same trainings" in note]
    assert same == ["none and more are the same trainings now"], "no row reads source images"
    same = row(strategy="random", set=["select.top_k=5"])
    words = {"settings": ["train.recipe.steps=6"], "top_k": 3}
    folder = experiment_runner.folder(ws, plan(tmp_path, **words)).relative_to(ws.root)
    assert str(folder) == "reports/experiments/mine/select.top_k=3,train.recipe.steps=6", (
        "a trial replaces no table"
    )
    alike = Plan(paper_tables.load(written(tmp_path, rows=same)), ["digits"], (0,), top_k=3)
    assert experiment_cells.settled(ws, alike)[1][-1] == "random and uot are the same trainings now"


def test_equal_compute_counts_every_part_of_a_batch(tiny: Path, tmp_path: Path) -> None:
    """pseudo_label sees each source image twice; a row's own objective counts, too."""
    ws, wanted = workspace(tiny), "train.objective=pseudo_label"  # batches of 8 + 8 + 8
    for own in ({"set": [wanted]}, {"rows": row(set=[wanted])}):
        path = written(tmp_path, **own)
        settled, _ = experiment_cells.settled(ws, Plan(paper_tables.load(path), ["digits"]))
        _, more, _, uot = experiment_cells.columns(ws, settled)
        assert more.ws.params.train.target_batch == 24
        assert uot.cost / uot.ws.params.train.recipe.steps == 24
    path = written(tmp_path, rows=row(set=["train.target_batch=none"]))
    with pytest.raises(UserError, match=r"row 'uot': --set .*target_batch"):
        experiment_cells.settled(ws, Plan(paper_tables.load(path), ["digits"]))


def test_equal_compute_has_the_images_of_the_rows_alone(tiny: Path, tmp_path: Path) -> None:
    """Not those of params.yaml, which no row with reuse may have."""
    ws, fewer = workspace(tiny), "train.source_batch=4"  # params.yaml: 8 + 8
    own = [{**FILE["rows"][-1], "set": [fewer], "against": "none"}]
    rows = [*FILE["rows"][:2], *own]
    for wanted in ({"set": (fewer,)}, {}):
        made = written(tmp_path, rows=FILE["rows"] if wanted else rows)
        plan = Plan(paper_tables.load(made), ["digits"], settings=wanted.get("set", ()))
        settled, notes = experiment_cells.settled(ws, plan)
        more = experiment_cells.columns(ws, settled)[1]
        assert more.ws.params.train.target_batch == 12
        assert notes == []
    both = Plan(paper_tables.load(written(tmp_path, rows=[*FILE["rows"][:3], *own])), ["digits"])
    _, notes = experiment_cells.settled(ws, both)
    assert notes == ["equal compute sees 16 images a step; with reuse fewer: uot 12"]
    rows = [FILE["rows"][0], {"label": "equal", "strategy": "equal_compute"}, *own]
    with pytest.raises(UserError, match="'equal' sees 16 images a step, rows with reuse 12: write"):
        experiment_cells.settled(
            ws, Plan(paper_tables.load(written(tmp_path, rows=rows)), ["digits"])
        )


def test_a_row_may_be_a_control(tiny: Path, tmp_path: Path) -> None:
    """It keeps no class, so K is not for it."""
    ws = workspace(tiny)
    rows = [*FILE["rows"], {"label": "equal", "strategy": "equal_compute", "set": []}]
    rows.append({"label": "probe", "strategy": "probe", "set": ["train.objective=joint"]})
    wanted = Plan(paper_tables.load(written(tmp_path, rows=rows)), ["digits"], (0,), top_k=3)
    columns = experiment_cells.columns(ws, experiment_cells.settled(ws, wanted)[0])
    *_, uot, equal, probe = columns
    assert (uot.cost, equal.cost, probe.cost) == (20 * 16, 10 * 16, 0)
    assert equal.ws.overrides == ("subset.shots=3", "train.recipe.steps=10")


def test_a_control_without_settings_names_none(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder, variants/train.objective=joint, is told by a setting that nobody gave."""
    ws = workspace(tiny)
    rows = [{"label": "none", "strategy": "none"}, {"label": "probe then", "strategy": "lp_ft"}]
    path = written(tmp_path, set=[], baseline="none", rows=rows)
    wanted = Plan(paper_tables.load(path), ["digits"], (0,))
    none, lp_ft = experiment_cells.columns(ws, experiment_cells.settled(ws, wanted)[0])
    assert {none.ws.variant, lp_ft.ws.variant} == {"variants/train.objective=joint"}
    _, line, _ = experiment_runner.forecast([none, lp_ft], 1)
    assert line.endswith(" images each: lp_ft")
    assert cells.name_of((lp_ft.ws, Cell("digits", "lp_ft", 0))) == "digits-lp_ft-0"
    assert job._of_row(lp_ft.ws, "lp_ft").params.train.objective == "plain"
    assert not caplog.records
    job._of_row(ws.with_changes(["train.objective=l2_sp"]), "lp_ft")
    assert "--set train.objective has no effect on lp_ft" in caplog.text


def test_equal_compute_is_as_many_steps_of_as_many_images(tiny: Path, tmp_path: Path) -> None:
    """With epochs in place of steps there are so many more, since a step takes more images."""
    ws = workspace(tiny)  # batches of 8 + 8
    epochs = ["train.recipe.steps=0", "train.recipe.epochs=6", "train.recipe.warmup=1"]
    path = written(tmp_path, set=epochs, rows=FILE["rows"][:2])
    settled, _ = experiment_cells.settled(ws, Plan(paper_tables.load(path), ["digits"]))
    none, more = experiment_cells.columns(ws, settled)
    assert more.ws.params.train.recipe.epochs == 12
    assert more.ws.params.train.recipe.warmup == 2
    steps = [
        c.ws.params.train.recipe.counted(80, c.ws.params.train.target_batch).steps
        for c in (none, more)
    ]
    assert steps == [60, 60]
    words = ["train.recipe.steps=0", "train.recipe.epochs=3"]
    own = Plan(paper_tables.load(path), ["digits"], settings=words)
    settled, notes = experiment_cells.settled(ws, own)
    assert "train.recipe.epochs=6" in settled.experiment.variations[1].overrides
    assert notes == []


def test_a_setting_that_does_not_exist_is_named_with_its_row(tiny: Path, tmp_path: Path) -> None:
    ws = workspace(tiny)
    wrong = Plan(paper_tables.load(written(tmp_path, rows=row(set=["train.stpes=3"]))), ["digits"])
    with pytest.raises(
        UserError, match=r"(?s)experiment mine: row 'uot': .*stpes: no such setting"
    ):
        experiment_cells.columns(ws, experiment_cells.settled(ws, wrong)[0])
    wrong = Plan(paper_tables.load(written(tmp_path, rows=row(strategy="uott"))), ["digits"])
    with pytest.raises(
        UserError, match="experiment mine: row 'uot': strategy: got 'uott'; known are all, .*probe"
    ):
        experiment_cells.columns(ws, experiment_cells.settled(ws, wrong)[0])
    wrong = Plan(paper_tables.load(written(tmp_path, set=["train.stpes=3"])), ["digits"])
    with pytest.raises(UserError, match=r"(?s)experiment mine: settings of all rows: .*stpes"):
        experiment_cells.settled(ws, wrong)


def todo(tiny: Path, wanted: Plan) -> list[Cell]:
    ws = workspace(tiny)
    columns = experiment_cells.columns(ws, experiment_cells.settled(ws, wanted)[0])
    return [(ws.variant, str(cell)) for ws, cell in experiment_runner.todo(columns)]


@pytest.mark.parametrize("expect", [[], ["digit 1"]])
def test_a_row_by_label_may_name_its_classes(tiny: Path, tmp_path: Path, expect: list[str]) -> None:
    """Then --expect, of which the recall is measured, does not replace them."""
    own = row(strategy="label", set=['selectors.label.classes=["c00*"]'])
    path = written(tmp_path, rows=own)
    wanted = Plan(paper_tables.load(path), ["digits"], (0,), rows=["uot"], expect=expect)
    [(variant, cell)] = todo(tiny, wanted)
    assert cell == "digits-label-0"
    assert "c00" in variant


def test_an_experiment_of_no_rows_is_refused(fresh: Path, tmp_path: Path) -> None:
    params = tiny_params()
    del params["selectors"]["label"]
    write_params(fresh, params)
    path = written(tmp_path, baseline="a", rows=[{"label": "a", "strategy": "label"}])
    with pytest.raises(UserError, match="experiment mine: every row is left out"):
        todo(fresh, Plan(paper_tables.load(path), ["digits"], (0,)))


def test_rows_and_parts_of_the_cells(tiny: Path, tmp_path: Path) -> None:
    every = todo(tiny, plan(tmp_path))
    assert len(every) == 12
    assert {cell for _, cell in todo(tiny, plan(tmp_path, rows=["u*", "random"]))} == {
        f"digits-{name}-{seed}" for name in ("uot", "random") for seed in (4, 5, 6)
    }
    with pytest.raises(UserError, match="--rows: got 'ut'; the rows are none, more, random, uot"):
        todo(tiny, plan(tmp_path, rows=["ut"]))
    parts = [todo(tiny, plan(tmp_path, part=(i, 5))) for i in range(1, 6)]
    assert sorted(sum(parts, [])) == sorted(every)
    assert {len(part) for part in parts} == {2, 3}
    few = todo(tiny, plan(tmp_path, part=(2, 5), rows=["uot"]))
    assert {*few} <= {*parts[1]}, "a cell is of the same part whatever else is asked for"
    wide = Plan(paper_tables.load(written(tmp_path)), ["digits"], range(8), part=(2, 5))
    assert {*parts[1]} <= {*todo(tiny, wide)}


def numbers(top1: float, **other: float) -> dict[str, float]:
    return {"top1": top1, "mean_per_class": top1, "val_top1": top1 + 1, "classes": 4,
            "val_mean_per_class": top1, "images": 1600, "seconds": 2.5, **other}  # fmt: skip


FOUND = {
    "none": {s: numbers(50.0 + s) for s in range(4)},
    "more": {s: numbers(50.5 + s, images=0) for s in range(4)},
    "random": {0: numbers(52.0), 1: numbers(54.0), 2: numbers(54.5)},
    "uot": {0: numbers(53.0), 1: numbers(55.0), 2: numbers(57.0), 3: numbers(56.0)},
}


def test_every_comparison_has_its_p_corrected_for_all(tmp_path: Path) -> None:
    experiment = paper_tables.load(written(tmp_path))
    table = paper_tables.rows(experiment, "digits", FOUND)
    header, *lines = paper_tables.cells(experiment, table)
    assert header == (
        "variation", "seeds", "kept", "images", "seconds", "top-1 %", "mean per class %",
        "Δ none (p)", "Δ random (p)",
    )  # fmt: skip
    top1 = {label: {s: m["top1"] for s, m in seeds.items()} for label, seeds in FOUND.items()}
    pairs = [("more", "none"), ("random", "none"), ("uot", "none"), ("uot", "random")]
    expected = holm([paired(top1[a], top1[b]).p() for a, b in pairs])
    found = [table[["none", "more", "random", "uot"].index(a)].p[b] for a, b in pairs]
    assert found == pytest.approx(expected, nan_ok=True)
    uot = lines[-1]
    assert uot[3:5] == ("1,600", "2.5")
    assert lines[1][3] == "0", "no step was trained"
    assert uot[7] == f"{paired(top1['uot'], top1['none']).signed()} ({expected[2]:.3f})"
    assert uot[8] == f"{paired(top1['uot'], top1['random']).signed()} ({expected[3]:.3f})"
    assert lines[0][7:] == ("", "")
    assert lines[1][7] == "+0.50 ± 0.00", "the same difference on every seed is no test"
    [line] = paper_tables.corrected(table)
    assert "Holm's method for the 3 comparisons of this table" in line
    numbers = paper_tables.flat(experiment, "digits", table[-1])
    assert numbers["p from random"] == round(expected[3], 6)
    assert "paper" not in numbers
    [alone] = paper_tables.rows(experiment, "digits", {"uot": {0: FOUND["uot"][0]}})
    assert paper_tables.corrected([alone]) == []


def test_a_seed_far_below_the_others_is_named(tmp_path: Path) -> None:
    experiment = paper_tables.load(written(tmp_path))
    odd = {"none": {**FOUND["none"], 9: numbers(14.32)}}
    [(_, _, notes)] = experiment_cells.write_results(tmp_path, experiment, {"x": odd}, {}, "")
    assert notes == ["none: far below its other seeds: seed 9 with 14.32 %"]


def test_validation_compares_other_numbers_and_says_so(tmp_path: Path) -> None:
    experiment = paper_tables.on_validation(paper_tables.load(written(tmp_path)))
    assert experiment.title == "Does it help?, on validation images"
    untested = {
        label: {s: {k: v for k, v in m.items() if not k.startswith(("top1", "mean"))}
                for s, m in seeds.items()}
        for label, seeds in FOUND.items()
    }  # fmt: skip
    experiment_cells.write_results(tmp_path / "out", experiment, {"digits": untested}, {}, "")
    rows = storage.read_csv(tmp_path / "out/table.csv")
    assert float(rows[0]["val_top1"]) == 52.5
    assert "top1" not in rows[0]
    lines = storage.read_csv(tmp_path / "out/runs.csv")
    assert (lines[0]["top1"], lines[0]["val_top1"], lines[0]["images"]) == ("", "51.0", "1600")
    text = (tmp_path / "out/table.md").read_text()
    assert text.startswith("# Does it help?, on validation images\n")
    assert "The paper" not in text
    assert "3 comparisons" in text


def test_seeds_that_are_missing_are_named(tiny: Path, tmp_path: Path) -> None:
    ws = workspace(tiny)
    settled, _ = experiment_cells.settled(ws, plan(tmp_path, rows=["uot", "random", "none"]))
    columns = experiment_cells.columns(ws, settled)
    found = {"digits": {"none": {4: {}, 5: {}, 6: {}}, "uot": {5: {}}}}
    failed = {("digits", "uot", 4): "step 3: the loss\nis nan"}
    assert experiment_cells.missing(columns, found, failed) == {
        "digits": [
            "random: 0 of 3 seeds; no result of seeds 4, 5, 6",
            "uot: 1 of 3 seeds; seed 4 failed: step 3: the loss is nan; no result of seed 6",
        ]
    }, "the row more is neither trained here nor there"


def test_a_table_of_another_definition_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two files of one name in two folders."""
    table = tmp_path / "mine" / "table.md"
    table.parent.mkdir()
    for title in ("", "one"):
        table.write_text(f"# {title}\n") if title else None
        experiment_runner._say_other(table, "one")
    assert not caplog.text
    experiment_runner._say_other(table, "two")
    assert "mine: the table 'one' is of another definition of this name" in caplog.text
