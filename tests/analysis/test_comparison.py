"""Finished trainings made by hand -> rows, tables, changes of answers and the page."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from support.finished_trials import answers, trial
from support.projects import tiny_params, workspace, write_params
from uotft.analysis import comparison, figures, markdown, page, prediction_changes, trials
from uotft.analysis.page import Lead, Picture, Section, Table, Text
from uotft.analysis.sections import sections
from uotft.analysis.statistics import Correlation, Interval, wilson
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet, Origin, Trial
from uotft.pipeline import compare
from uotft.pipeline.report_images import WorkspaceImages

HEADINGS = [
    "Did reuse help?",
    "Results",
    "How sure the differences are",
    "Win, tie, loss",
    "Learning curves",
    "Accuracy against the settings",
    "Selected classes",
    "The transport plan",
    "Overlap of the selections",
    "Test images repaired and broken",
    "Confused classes",
    "Cost",
    "Versions of code and data",
]


class Page(HTMLParser):
    """What a page refers to, its headings, and the kinds of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.inside == "h2":
            self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def rows(made: list, by: list[str] | None = None) -> list[trials.Line]:
    return trials.lines(made, trials.differing(made) if by is None else by)[0]["pets"]


def test_rows_are_told_apart_by_what_differs_within_a_strategy() -> None:
    made = [
        trial("none", settings={"train.lambda": "1"}),
        *(
            trial("uot", s, settings={"train.lambda": v, "strategy.kept": str(s)})
            for s in (0, 1)
            for v in ("0.3", "1", "10")
        ),
        trial("uot", 2, settings={"train.lambda": "1", "processes": "2"}),
    ]
    assert trials.differing(made) == ["train.lambda"], "neither seeds, nor processes, nor kept"
    found = rows(made)
    labels = ["none lambda=1", "uot lambda=0.3", "uot lambda=1", "uot lambda=10"]
    assert [row.label for row in found] == labels, "numbers stand in their own order"
    assert [*found[2].trials] == [0, 1, 2]


def test_a_setting_that_only_some_trainings_have_tells_them_apart() -> None:
    made = [trial("uot", 0), trial("uot", 0, settings={"subset.shots": "2"})]
    assert trials.differing(made) == ["subset.shots"]
    assert [row.label for row in rows(made)] == ["uot", "uot shots=2"]


def test_how_classes_are_selected_tells_no_rows_of_none_apart() -> None:
    made = [trial(s, settings={"select.top_k": k}) for s in ("none", "uot") for k in "23"]
    assert [row.label for row in rows(made)] == ["none", "uot top_k=2", "uot top_k=3"]


def test_a_k_that_is_ignored_tells_no_rows_apart() -> None:
    ignored = {"selection": {"classes": [{"name": "lion"}], "settings": {"top_k": None}}}
    made = [trial("label", settings={"select.top_k": k}, **ignored) for k in "23"]
    assert [row.label for row in rows(made)] == ["label"]


def test_of_two_trainings_of_a_cell_the_newest_counts() -> None:
    new = trial("uot", top1=70.0, origin=Origin("new", 9))
    old = trial("uot", top1=60.0, origin=Origin("old", 3))
    found, left = trials.lines([new, old, trial("none")], [])
    assert left == 1
    assert found["pets"][0].trials[0].origin.run == "new"


def test_a_baseline_shares_images_and_backbone_and_most_of_the_rest() -> None:
    def of(strategy: str, fraction: str, **settings: str) -> object:
        return trial(strategy, settings={"subset.fraction": fraction, **settings})

    made = [
        of("none", "0.2", a="1"),
        of("none", "0.2", a="2"),
        of("none", "0.8", a="1"),
        of("uot", "0.2", a="2"),
        of("uot", "0.8", a="2"),
        of("uot", "0.4", a="1"),
    ]
    found = trials.baselines(rows(made))
    assert found["uot a=2 fraction=0.2"]["none"] == "none a=2 fraction=0.2"
    assert found["uot a=2 fraction=0.8"]["none"] == "none a=1 fraction=0.8"
    assert "none" not in found["uot a=1 fraction=0.4"], "other labelled images"
    assert "none" not in found["none a=1 fraction=0.2"]


@pytest.mark.parametrize("by", [[], ["train.objective"]])
def test_a_baseline_with_other_images_is_named_not_compared(by: list[str]) -> None:
    """Also where no parameter tells the rows of one strategy apart, or none is asked for."""
    made = [trial("none", seed, settings={"subset.fraction": "1.0"}) for seed in (0, 1)]
    made += [trial("uot", seed, settings={"subset.shots": "2"}) for seed in (0, 1)]
    [found] = trials.lines(made, by)[0].values()
    assert not any(trials.baselines(found).values())
    label = next(row.label for row in found if row.strategy == "uot")
    assert trials.unpaired(found) == [
        f"pets: {label} is not compared with none: other subset.fraction, subset.shots"
    ]


@pytest.mark.parametrize(("batch", "compared"), [("10", True), ("20", False)])
def test_equal_compute_saw_as_many_images(batch: str, compared: bool) -> None:
    equal = {"train.objective": "plain", "train.target_batch": batch}
    made = [trial("equal_compute", settings=equal), trial("uot")]  # 10 steps of 4 + 6
    made[0] = replace(made[0], selection={"classes": []})
    [found] = trials.lines(made, [])[0].values()
    assert ("equal_compute" in trials.baselines(found)["uot"]) == compared
    named = "pets: uot is not compared with equal_compute: it saw 100 images, equal_compute 200"
    assert trials.unpaired(found) == ([] if compared else [named])


@pytest.mark.parametrize(
    ("strategy", "settings", "images"),
    [
        ("none", {}, 10 * 4),
        ("uot", {}, 10 * (4 + 6)),
        ("uot", {"train.objective": "pseudo_label"}, 10 * (4 + 6 + 6)),
        ("uot", {"train.objective": "plain"}, 10 * 4),
        ("uot", {"train.recipe.accumulate": "2"}, 2 * 10 * (4 + 6)),
        ("uot", {"train.head_steps": "3"}, 7 * (4 + 6) + 3 * 4),
        ("uot", {"train.objective": "of another version"}, float("nan")),
    ],
)
def test_images_seen(strategy: str, settings: dict, images: float) -> None:
    seen = trials.images_seen(trial(strategy, settings=settings))
    assert seen == pytest.approx(images, nan_ok=True)


def seeds(strategy: str, *top1: float, **more: object) -> list:
    return [trial(strategy, seed, value, **more) for seed, value in enumerate(top1)]


BETTER = [
    *seeds("none", 80, 82, 81, 83),
    *seeds("uot", 85, 87.5, 86, 88),
    *seeds("label", 81, 82, 80, 83.5),
]


def test_the_table_corrects_its_tests_for_their_number() -> None:
    results = trials.results(rows(BETTER))
    uot, label = comparison.table(results)[1:]
    raw = [row.against["none"].p() for row in (uot, label)]
    assert uot.p["none"] == pytest.approx(2 * raw[0])
    assert label.p["none"] == pytest.approx(raw[1])
    cells = dict(zip(comparison.HEADER, uot.cells(), strict=False))
    assert cells["seeds"] == "4", "stands beside every mean"
    assert comparison.flat(uot)["p_none"] == round(uot.p["none"], 4)


def test_win_tie_and_loss() -> None:
    results = trials.results(rows(BETTER))
    found = comparison.pairs(results)
    assert found["uot", "none"].outcome == "win"
    assert found["none", "uot"].outcome == "loss"
    assert found["label", "none"].outcome == found["none", "label"].outcome == "tie"
    assert found["uot", "none"].p == found["none", "uot"].p
    table = comparison.standing(results, found)
    assert table[1:] == [("none", "0", "1", "1"), ("uot", "2", "0", "0"), ("label", "0", "1", "1")]


def test_rows_without_common_seeds_are_not_compared() -> None:
    results = trials.results(rows([trial("none", 0), trial("uot", 1)]))
    assert comparison.pairs(results) == {}
    none, uot = comparison.table(results)
    assert uot.against == {}
    assert "can be compared" in comparison.verdict([none, uot])


def test_what_is_kept_and_not_trained_on_is_not_reused() -> None:
    """A better accuracy is then no merit of the source."""
    plain = {"train.objective": "plain", "strategy.kept": "2"}
    equal = {**plain, "strategy.kept": "0"}
    made = seeds("none", 80, 82, 81, 83) + seeds("uot", 85, 87.5, 86, 88, settings=plain)
    made += seeds("equal_compute", 80, 82, 81, 83.5, selection={}, settings=equal)
    found = rows(made, [])
    assert "equal_compute" not in trials.baselines(found)["uot"]
    table = comparison.table(trials.results(found))
    assert [row.classes for row in table] == [0, 0, 0]
    assert comparison.verdict(table).startswith("No row that trains on source classes can be")
    other = [replace(t, strategy="label") for t in made if t.strategy == "uot"]
    assert not trials.same_selections(rows(made + other, [])), "they train on no such images"


@pytest.mark.parametrize(
    ("made", "phrase"),
    [
        (BETTER, "Reuse helped: uot is 5.12 ± 0.40 points above none (4 seeds, p < 0.001)."),
        (
            seeds("none", 80, 82, 81) + seeds("uot", 81, 80, 84),
            "These runs do not show that reuse helps: at best, uot is 0.67 ± 6.25 "
            "points above none (3 seeds, p = 0.691).",
        ),
        (
            seeds("none", 80, 82, 81) + seeds("uot", 75, 77.1, 76),
            "These runs do not show that reuse helps: at best, uot is 4.97 ± 0.14 "
            "points below none (3 seeds, p < 0.001). Reuse hurt: uot is 4.97",
        ),
        (
            seeds("none", 80) + seeds("uot", 81),
            "at best, uot is 1.00 points above none (one seed).",
        ),
    ],
)  # fmt: skip
def test_the_verdict(made: list, phrase: str) -> None:
    results = trials.results(rows(made))
    assert phrase in comparison.verdict(comparison.table(results))


def test_the_bootstrap_stands_beside_the_interval_where_seeds_allow_it() -> None:
    rng = np.random.default_rng(0)
    many = seeds("none", *rng.normal(80, 1, 12)) + seeds("uot", *rng.normal(82, 1, 12))
    for made, there in ((many, True), (BETTER, False)):
        results = trials.results(rows(made))
        lines = comparison.certainty(
            results, comparison.table(results), {"uot": "none", "label": "none"}
        )
        assert lines[1][-1].startswith("[+") == there
        assert (lines[1][-1] == "too few seeds") != there


def test_what_reuse_repaired_and_broke() -> None:
    none = {0: answers(1, 1, 1, 1, 2, 2), 1: answers(1, 0, 1, 1, 2, 0)}
    uot = {0: answers(0, 0, 1, 1, 2, 0), 1: answers(0, 0, 1, 1, 2, 0), 2: answers(0, 0, 0, 0, 0, 0)}
    both = prediction_changes.sides(none, uot)
    assert len(both) == 2
    repaired, broken = prediction_changes.turned(both)
    assert (repaired.mean, broken.mean, repaired.n) == (1.5, 0.5, 2)
    first, second = prediction_changes.changed(both, 5, repaired=True)
    assert (first.row, first.true, first.before, first.after) == (10, "cat", "dog", "cat")
    assert (first.times, second.row, second.times) == (2, 11, 1)
    [image] = prediction_changes.changed(both, 5, repaired=False)
    assert (image.row, image.before, image.after, image.times) == (15, "cow", "cat", 1)
    better, worse = prediction_changes.confused(both, 5)
    assert (better.true, better.taken_for, better.before, better.after) == ("cat", "dog", 1.5, 0)
    assert (worse.true, worse.taken_for, worse.change.mean) == ("cow", "cat", 0.5)


@pytest.mark.parametrize(
    "other",
    [lambda a: replace(a, data="other"), lambda a: replace(a, rows=a.rows + 1)],
)
def test_answers_to_other_images_are_not_compared(other: Callable) -> None:
    one = answers(0, 0, 1, 1, 2, 2)
    both = {"none": {0: one, 1: other(one)}, "uot": {0: one, 1: one}}
    kept = prediction_changes.of_one_version(both)
    assert {row: [*seeds] for row, seeds in kept.items()} == {"none": [0], "uot": [0, 1]}
    assert prediction_changes.of_one_version({"none": {}}) == {"none": {}}


def test_seeds_tested_on_other_numbers_of_images(tmp_path: Path) -> None:
    """Every seed is fair by itself, but image i of one version is not image i of the other."""
    fewer = replace(answers(0, 0, 1, 1, 2, labels=(0, 0, 1, 1, 2)), data="older")
    said = {0: answers(0, 0, 1, 1, 2, 0), 1: fewer, 2: answers(0, 1, 1, 1, 2, 2)}
    made = [trial(s, seed, 80 + seed, answers=said[seed]) for s in ("none", "uot") for seed in said]
    found, text = written(made, tmp_path)
    assert "Test images repaired and broken" in found.headings
    assert "<td>uot</td><td>0.00 ± 0.00</td><td>0.00 ± 0.00</td><td>6</td><td>2</td>" in text


def test_other_images_under_one_name_are_remarked() -> None:
    """As of two people with one tracking server; the newest of a cell may be the other's."""
    mine, theirs = (replace(answers(0, 0, 1, 1, 2, 2), data=each * 32) for each in ("ab", "cd"))
    made = [trial("none", answers=mine), trial("uot", answers=mine)]
    _, notes = compare.compare_runs([*made, trial("none", 1)], [], None, None)
    assert not any("versions" in note for note in notes), "one version, and one that has none"
    newer = trial("uot", answers=theirs, origin=Origin("new", 9, 2.0, {}))
    _, notes = compare.compare_runs([*made, newer], [], None, None)
    assert notes[-2:] == [
        "1 left out: a newer training has the same row and seed",
        "pets: tested on 2 versions of its images, which no row tells apart: "
        "abababab (none, uot); cdcdcdcd (uot)",
    ]


def test_answers_come_back_from_their_file(tmp_path: Path) -> None:
    made = {3: answers(0, 0, 1, 1, 2, 2), 5: answers(2, 2, 1, 1, 0, 0)}
    storage.write_answers(tmp_path / "a.npz", made)
    found = storage.read_answers(tmp_path / "a.npz")
    for seed, before in made.items():
        assert np.array_equal(found[seed].predicted, before.predicted)
        assert np.array_equal(found[seed].rows, before.rows)
        assert (found[seed].names, found[seed].data) == (before.names, "data")


def test_no_page_of_others_is_replaced(tmp_path: Path) -> None:
    made, site = [trial("none"), trial("uot")], tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("my page")
    with pytest.raises(UserError, match=r"index\.html there is of no comparison of uotft"):
        compare.compare_runs(made, [], site, None)
    assert [path.name for path in site.iterdir()] == ["index.html"]
    (site / "index.html").unlink()
    for _ in range(2):  # one of ours is
        compare.compare_runs(made, [], site, None)


def written(made: list, tmp_path: Path) -> tuple[Page, str]:
    compare.compare_runs(made, [], tmp_path / "out", None)
    text = (tmp_path / "out" / "index.html").read_text()
    return Page(text), text


def test_the_page_has_every_section_and_needs_no_network(tmp_path: Path) -> None:
    plan = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    sides = {"none": answers(1, 1, 1, 1, 2, 2), "uot": answers(0, 1, 1, 1, 2, 0)}
    made = [
        trial(s, seed, 80 + 2 * seed, answers=sides[s], plan_KT=plan if s == "uot" else None,
              settings={"strategy.settings.cost_scale": scale})
        for s in sides for seed in (0, 1) for scale in (["0.01", "0.1"] if s == "uot" else ["0.01"])
    ]  # fmt: skip
    found, text = written([*made, trial("label", 0), trial("label", 1)], tmp_path)
    assert found.headings == [*HEADINGS, "These runs"]
    assert not {"script", "link", "iframe"} & found.tags
    assert all(a.startswith(("#part-", "data:image/png;base64,")) for a in found.addresses)
    assert sum(a.startswith("data:") for a in found.addresses) == 7
    for phrase in (
        "rows are told apart by strategy.settings.cost_scale",
        "No pictures: there is no params.yaml here",
        "No pictures: the images of pets are not here",
        "<td>uot cost_scale=0.01</td><td>1.00 ± 0.00</td><td>1.00 ± 0.00</td><td>6</td><td>2</td>",
        "lion (-1)",
        "git.commit",
    ):
        assert phrase in text
    table = (tmp_path / "out/table.md").read_text()
    assert "| uot cost_scale=0.1 | 2 | 2 |" in table
    lines = storage.read_csv(tmp_path / "out/table.csv")
    assert [line["strategy.settings.cost_scale"] for line in lines] == ["", "", "0.01", "0.1"]
    assert {line["run"] for line in storage.read_csv(tmp_path / "out/runs.csv")} >= {
        "uot0",
        "none1",
    }


def test_what_runs_lack_is_said_where_it_would_stand(tmp_path: Path) -> None:
    bare = {"curve": {}, "selection": {}, "origin": Origin(), "settings": {"train.objective": ""}}
    found, text = written([trial("uot", 0, **bare)], tmp_path)
    assert found.headings == HEADINGS
    for phrase in (
        "No row that trains on source classes can be compared with plain fine-tuning",
        "This needs two rows with at least two seeds in common.",
        "no validation curve",
        "differ in no numeric parameter",
        "No row keeps a source class, or the runs do not say which.",
        "No row has a plan",
        "This needs two rows that keep source classes.",
        "No row has predictions for itself and for none",
        "<td>not known</td>",
        "No run in this MLflow store made these models.",
    ):
        assert phrase in text, phrase


def test_the_headings_of_several_targets_name_them(tmp_path: Path) -> None:
    found, text = written([trial("none"), trial("none", target="cars")], tmp_path)
    assert found.headings == [f"{t}: {h}" for t in ("cars", "pets") for h in HEADINGS]
    assert "<h1>uotft comparison: cars, pets</h1>" in text


def test_thumbnails_are_of_the_images_that_were_tested(tmp_path: Path) -> None:
    """Data that changed since then give a reason instead of a picture."""
    write_params(tmp_path, tiny_params())
    ws, rng = workspace(tmp_path), np.random.default_rng(0)
    images = rng.integers(0, 255, (16, 8, 8)).astype(np.uint8)
    storage.write_images(
        ws.data("pets"),
        ImageSet(images, np.zeros(16, np.int64), np.array(["test"] * 16), ("cat", "dog", "cow")),
    )
    before, after = answers(1, 1, 1, 1, 2, 2), answers(0, 1, 1, 1, 2, 2)
    tested = storage.fingerprint(ws.data("pets"))

    def shown(data: str) -> list:
        made = [
            trial("none", answers=replace(before, data=data)),
            trial("uot", answers=replace(after, data=data)),
        ]
        found = sections("pets", rows(made), [], WorkspaceImages(ws))
        [parts] = [s.parts for s in found if s.heading == "Test images repaired and broken"]
        return parts

    assert sum(isinstance(part, Picture) for part in shown(tested)) == 1
    [why] = [p.text for p in shown("0" * 64) if isinstance(p, Text) and "pictures" in p.text]
    assert why.endswith("pets.npz is not the one that was tested.")


def test_a_row_without_the_setting_is_a_line_across() -> None:
    line = {20.0: Interval(80, 1, 3), 50.0: Interval(82, 1, 3)}
    lower, upper = (
        figures.setting_picture(
            "", "K", {"uot": line, "none": {float("nan"): Interval(mean, 1, 3)}}
        )
        for mean in (80.5, 81.5)
    )
    assert lower != upper


def test_the_contents_lead_to_every_section() -> None:
    made = [Section("one", [Text("phrase"), Table([("a", "b")])]), Section("two", [Lead("more")])]
    text = page.render("a title", made)
    found = Page(text)
    assert found.addresses == ["#part-0", "#part-1"]
    assert text.startswith("<!doctype html>")
    assert '<h2 id="part-0">one</h2>' in text
    assert '<h2 id="part-1">two</h2>' in text
    assert '<p class="lead">more</p>' in text


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a & b", "a &amp; b"),
        ('"><img src=x onerror=alert(1)>', "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;"),
    ],
)
def test_a_name_is_text_and_never_markup(name: str, escaped: str) -> None:
    """In headings, links, tables, alt texts and paragraphs alike."""
    parts = [Lead(name), Text(name), Table([("class", name), (name, "2")]), Picture(b"")]
    text = page.render(name, [Section(name, parts)])
    assert name not in text
    assert not {"script"} & Page(text).tags
    for markup in (
        f"<title>{escaped}</title>",
        f"<h1>{escaped}</h1>",
        f'<a href="#part-0">{escaped}</a>',
        f'<h2 id="part-0">{escaped}</h2>',
        f'<p class="lead">{escaped}</p>',
        f"<p>{escaped}</p>",
        f"<tr><th>class</th><th>{escaped}</th></tr>",
        f"<tr><td>{escaped}</td><td>2</td></tr>",
        f'<img alt="{escaped}" src="data:image/png;base64,">',
    ):
        assert markup in text, markup


def test_hostile_classes_and_targets_come_out_escaped(tmp_path: Path) -> None:
    """From the names in a selection and in answers to the page, without any other way in."""
    bad = "<script>alert(1)</script>"
    kept = [{"rank": 1, "name": bad, "row": 0, "score": 1.0}]
    chosen = {"classes": kept, "fingerprints": {"source": "x"}}
    names = (bad, "a & b", "cow")
    before, after = (
        replace(answers(*predicted), names=names)
        for predicted in ((1, 1, 1, 1, 2, 2), (0, 0, 1, 1, 2, 0))
    )
    made = [
        trial(strategy, target=target, selection=selection, answers=answers)
        for target in (bad, "a & b")
        for strategy, selection, answers in (("none", {}, before), ("uot", chosen, after))
    ]
    found, text = written(made, tmp_path)
    assert bad not in text
    assert not {"script", "link", "iframe"} & found.tags
    for markup in (
        "<td>&lt;script&gt;alert(1)&lt;/script&gt; (1)</td>",  # a selected class
        "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td><td>a &amp; b</td>",  # confused classes
        '<img alt="a &amp; b: Did reuse help?"',
        "the images of a &amp; b are not here",
    ):
        assert markup in text, markup


DOLLARS = ("$5_note ($2 off)", r"US$\frac", "a_{1}$x$^", "$5_$10", "$$", r"\$old_1$")


def all_pictures(name: str) -> list[bytes]:
    """Every kind of picture with ``name`` wherever a picture has a name."""
    value, image = Interval(80, 1, 3), np.zeros((4, 4), np.uint8)
    plan, names = np.ones((2, 2)), (name, "other")
    panel = figures.Panel(name, "top-1", [figures.Point(name, value, line=name, x=1.0)])
    return [
        figures.comparison_picture(name, {name: value}, {name: value}),
        figures.curves_picture(name, {name: {0: value, 5: value}}, {name: {0: value, 5: value}}),
        figures.forecast_picture(
            name, [name], {"a": {name: {2: value}}, "b": {name: {2: value}}},
            {"a": {name: (2, 80)}, "b": {name: (2, 80)}},
        ),
        figures.classes_picture(name, {name: [(name, image), (f"\n{name}", image)]}, 4),
        figures.plan_picture(plan, names, names),
        figures.wide_plan_picture(name, plan, names, names),
        figures.square_picture(name, plan, [["a", "b"]] * 2, [*names]),
        figures.setting_picture(name, name, {name: {1.0: value}, "b": {1.0: value, 90.0: value}}),
        figures.similarity_picture(np.ones(2), np.arange(2), names),
        figures.search_picture({0: (80.0, True)}, {name: 0.4}),
        figures.experiment_picture([panel]),
        figures.experiment_picture([panel], name),
    ]  # fmt: skip


@pytest.mark.parametrize("name", DOLLARS)
def test_names_with_dollar_signs_are_no_formulas(name: str) -> None:
    assert all(png.startswith(b"\x89PNG") for png in all_pictures(name))
    plain, label = figures._plain(name), figures._figure(1, 1).text(0, 0, "")
    assert label._preprocess_math(plain) == (name, False), "what is drawn is the name itself"


def test_letters_are_drawn_in_a_font_that_has_them(caplog: pytest.LogCaptureFixture) -> None:
    letter = "\u1d81"  # in STIX, which matplotlib brings, and not in its own default
    [font, *_] = figures._fonts(frozenset(letter))
    from matplotlib.font_manager import FontProperties, findfont

    assert ord(letter) in figures._charmap(findfont(FontProperties(font)))
    figures.similarity_picture(np.ones(2), np.arange(2), (letter, "b"))
    assert not caplog.records


@pytest.mark.slow
def test_letters_that_no_font_has_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Chinese names gave boxes and twenty warnings."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager

    ours = get_data_path()  # what comes with matplotlib; mathtext asks for STIX, too
    own = [font for font in fontManager.ttflist if font.fname.startswith(ours)]
    monkeypatch.setattr(fontManager, "ttflist", own)
    for cached in (figures._fonts, figures._warn):
        cached.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("\u7fd8\u5934\u526a", "\u6b62\u8840\u94b3", "\u7fd8\u5934\u526a"):
            all_pictures(name)
    figures._fonts.cache_clear()
    [record] = caplog.records
    assert "boxes for names in CJK letters" in record.message
    assert "\n" not in record.message


def test_names_do_not_break_a_table_in_markdown() -> None:
    made = markdown.table([("strategy", "p"), ("a|b `c` $x$ <img>\nd", "< 0.001")])
    assert made.splitlines()[2] == r"| a\|b \`c\` \$x\$ \<img> d | < 0.001 |"


def imaged(strategy: str, seed: int, top1: float, images: int, **more: object) -> Trial:
    numbers = {"top1": top1, "mean_per_class": top1, "images": images}
    return trial(strategy, seed, top1, test=numbers, **more)


def test_few_test_images_and_equal_seeds_are_remarked(tmp_path: Path) -> None:
    """Thirty images gave 76.67 and an interval of nothing, without a word."""
    made = [imaged("none", s, 100 * 23 / 30, 30) for s in (0, 1, 2)]
    _, text = written([*made, *(imaged("uot", s, 80.0, 30) for s in (0, 1))], tmp_path)
    table = (tmp_path / "out/table.md").read_text()
    for phrase in (
        "\u00b1 0.00 does not mean certainty",
        "There are 30 test images, so one is worth 3.33 points",
        "none 76.67 [59.07, 88.21]",
    ):
        assert phrase in text
        assert phrase in table
    assert "| none | 3 |" in table
    many = trials.results(rows([imaged("a", s, 80 + s, 1000) for s in (0, 1)]))
    assert not comparison.cautions(many, comparison.table(many))


def test_the_same_difference_on_every_seed_is_no_evidence(tmp_path: Path) -> None:
    """One image of twenty on each of two seeds was "Reuse helped" with p < 0.001."""
    made = [imaged("none", s, 50.0 + 10 * s, 20) for s in (0, 1)]
    made += [imaged("uot", s, 50.0 + 10 * s + 5, 20) for s in (0, 1)]
    _, text = written(made, tmp_path)
    results = trials.results(rows(made))
    table = comparison.table(results)
    assert table[1].cells()[-4:-2] == ("+5.00 ± 0.00", "")
    assert comparison.standing(results, comparison.pairs(results))[2] == ("uot", "0", "1", "0")
    for phrase in (
        "at best, uot is 5.00 points above none on each of 2 seeds, which no t-test can judge.",
        "There is no p where every seed has the same difference: uot − none.",
    ):
        assert phrase in text
    assert "every seed has the same difference" in (tmp_path / "out/table.md").read_text()


@given(st.integers(1, 400), st.data())
def test_the_binomial_interval_is_wilsons(images: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, images))
    low, high = wilson(100 * right / images, images)
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert low == pytest.approx(100 * expected.low, abs=1e-9)
    assert high == pytest.approx(100 * expected.high, abs=1e-9)


def test_one_seed_prints_no_nan(tmp_path: Path) -> None:
    plan = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    sides = {"none": answers(1, 1, 1, 1, 2, 2), "uot": answers(0, 1, 1, 1, 2, 0)}
    made = [
        imaged(s, 0, 80.0, 6, answers=sides[s], plan_KT=plan if s == "uot" else None) for s in sides
    ]
    _, text = written(made, tmp_path)
    table = (tmp_path / "out/table.md").read_text()
    assert "| uot | 1 | 2 | 80.00 \u00b1 \u2013 |" in table
    assert "since there is only one seed: none, uot." in table
    for phrase in (text, table, (tmp_path / "out/table.csv").read_text()):
        # the picture is base64, in which any letters may stand
        assert not re.search(r"(?<![A-Za-z+/=])[+-]?nan(?![A-Za-z+/=])", phrase)
    assert str(Correlation(0.5, float("nan"), float("nan"), 4)) == "+0.50 [too few seeds]"


def kept(*names: str) -> dict:
    classes = [{"rank": i, "name": n, "row": i, "score": -i} for i, n in enumerate(names, 1)]
    return {"classes": classes, "fingerprints": {"source": "x"}}


def test_strategies_that_kept_the_same_are_said_to_be_one_selection(tmp_path: Path) -> None:
    made = [
        trial("none"),
        trial("uot", 0, 80.0, selection=kept("a", "b")),
        trial("nearest", 0, 87.0, selection=kept("b", "a")),
        trial("label", 0, 80.0, selection=kept("a", "b")),
        trial("random", 0, 81.0, selection=kept("a", "c")),
    ]
    _, text = written(made, tmp_path)
    table = (tmp_path / "out/table.md").read_text()
    swapped = "nearest and uot are one selection: they kept the same units, in another order"
    for phrase in (
        swapped,
        "(top-1 by 7.00 points at most on one seed)",
        "label and uot are one selection: they kept the same units, in the same order",
    ):
        assert phrase in text
        assert phrase in table
    assert "random and" not in text
    assert "and random are" not in text


def test_notes_on_the_data_are_shown_if_there_are_any(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    ws = workspace(tmp_path)
    assert compare.about(ws, "pets") == ()
    storage.write_json(ws.data("pets").with_suffix(".json"), {"notes": ["3 files <left> out"]})
    storage.write_json(ws.data(ws.params.source).with_suffix(".json"), {"classes": 3})
    compare.compare_runs([trial("none")], [], tmp_path / "out", ws)
    text = (tmp_path / "out/index.html").read_text()
    assert "About the data" in Page(text).headings
    assert "<li>pets: 3 files &lt;left&gt; out</li>" in text
    table = (tmp_path / "out/table.md").read_text()
    assert "### About the data\n\n- pets: 3 files \\<left> out\n" in table
