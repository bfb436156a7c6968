"""Finished trainings made by hand -> rows, tables, changes of answers and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from support.finished_trials import answers, trial
from support.projects import tiny_params, workspace, write_params
from uotft.analysis import comparison, figures, page, prediction_changes, trials
from uotft.analysis.page import Lead, Picture, Section, Table, Text
from uotft.analysis.sections import sections
from uotft.analysis.statistics import Interval
from uotft.core import storage
from uotft.core.records import ImageSet, Origin
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
    assert "No row can be compared" in comparison.verdict([none, uot])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (BETTER, "Reuse helped: uot is 5.12 ± 0.40 points above none (4 seeds, p < 0.001)."),
        (
            seeds("none", 80, 82, 81) + seeds("uot", 81, 80, 84),
            "Reuse is not shown to help: at best, uot is 0.67 ± 6.25 points above none "
            "(3 seeds, p = 0.691).",
        ),
        (
            seeds("none", 80, 82, 81) + seeds("uot", 75, 77.1, 76),
            "Reuse is not shown to help: at best, uot is 4.97 ± 0.14 points below none "
            "(3 seeds, p < 0.001). Shown to hurt: uot is 4.97",
        ),
        (
            seeds("none", 80) + seeds("uot", 81),
            "at best, uot is 1.00 points above none (one seed).",
        ),
    ],
)  # fmt: skip
def test_the_verdict(made: list, said: str) -> None:
    results = trials.results(rows(made))
    assert said in comparison.verdict(comparison.table(results))


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
    assert prediction_changes.sides({0: one}, {0: other(one)}) == []


def test_answers_come_back_from_their_file(tmp_path: Path) -> None:
    made = {3: answers(0, 0, 1, 1, 2, 2), 5: answers(2, 2, 1, 1, 0, 0)}
    storage.write_answers(tmp_path / "a.npz", made)
    found = storage.read_answers(tmp_path / "a.npz")
    for seed, before in made.items():
        assert np.array_equal(found[seed].predicted, before.predicted)
        assert np.array_equal(found[seed].rows, before.rows)
        assert (found[seed].names, found[seed].data) == (before.names, "data")


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
    for words in (
        "rows are told apart by strategy.settings.cost_scale",
        "Without pictures: there is no params.yaml here",
        "Without pictures: the images of pets are not here",
        "<td>uot cost_scale=0.01</td><td>1.00 ± 0.00</td><td>1.00 ± 0.00</td><td>6</td><td>2</td>",
        "lion (-1)",
        "git.commit",
    ):
        assert words in text
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
    for words in (
        "No row can be compared with plain fine-tuning",
        "Two rows with two seeds in common are needed.",
        "no validation curve",
        "differ in no numeric parameter",
        "No row keeps a source class, or the runs do not say which.",
        "No row has a plan",
        "Two rows that keep source classes are needed.",
        "No row has the answers of its own models and those of none",
        "<td>not known</td>",
        "No run in this MLflow store made these models.",
    ):
        assert words in text, words


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
    made = [Section("one", [Text("words"), Table([("a", "b")])]), Section("two", [Lead("more")])]
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
        trial(strategy, target=target, selection=selection, answers=said)
        for target in (bad, "a & b")
        for strategy, selection, said in (("none", {}, before), ("uot", chosen, after))
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
