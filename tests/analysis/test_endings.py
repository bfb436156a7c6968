"""Trainings that end badly: which rule finds them, and where the report names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.finished_trials import trial
from uotft.analysis import comparison, endings, trials
from uotft.core import storage
from uotft.pipeline import compare

ANIMALS = [61.68, 59.48, 14.32, 62.41, 58.26]  # frozen norms, five seeds; the third collapsed


@pytest.mark.parametrize(
    ("start", "end", "images", "fell"),
    [
        (61.7, 14.3, 400, True),
        (61.7, 52.5, 400, True),  # 2.5 standard errors are 8.7 points
        (61.7, 53.5, 400, False),
        (61.7, 56.0, 400, False),
        (61.7, 56.0, 4000, True),
        (61.7, 56.0, 0, False),
        (10.0, 85.0, 400, False),
        (100.0, 99.0, 10, False),
    ],
)
def test_a_fall_is_more_than_chance(start: float, end: float, images: int, fell: bool) -> None:
    assert endings.fell(start, end, images) == fell


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (
            {0: 61.7, 50: 70.0, 100: 40.0},
            "ended at 40.00 %, below its start of 61.70 % (400 images",
        ),
        ({0: 61.7, 100: 70.0}, ""),
        ({0: 10.0, 100: 10.5}, "10.50 % of 400 images cannot be told from chance (10.0 %)"),
        ({100: 40.0}, ""),  # eval_every: 0
        ({0: 61.7}, ""),  # the objective frozen
        ({}, ""),
    ],
)
def test_the_warning_of_a_training(curve: dict, said: str) -> None:
    found = endings.warning(curve, 400, 10)
    assert said in found
    assert bool(found) == bool(said)


@pytest.mark.parametrize(
    ("values", "seeds"),
    [
        (ANIMALS, [2]),
        ([86.2, 88.7, 86.1, 90.5, 89.0, 82.9], []),  # the shipped project, uot
        ([46.3, 46.6, 46.2, 45.4, 46.3], []),  # a small spread alone makes nothing odd
        ([60.0, 14.0], []),  # which of the two is odd, nothing says
        ([60.0, 14.0, 61.0], [1]),
        ([60.0, 75.0, 45.0, 52.0], []),  # a row that spreads
        ([60.0, 61.0, 99.0], []),
        ([], []),
    ],
)
def test_a_seed_far_below_the_others_collapsed(values: list, seeds: list) -> None:
    assert endings.collapsed(dict(enumerate(values))) == seeds


def test_a_collapse_is_not_averaged_in_silence(tmp_path: Path) -> None:
    """The mean of the five is 51.23; who reads the row learns of the third, and of 60.46."""
    made = [trial("none", seed, top1) for seed, top1 in enumerate(ANIMALS)]
    made += [trial("uot", seed, 60.0 + seed) for seed in range(5)]
    why = endings.warning({0: 61.7, 10: 40.0}, 400, 10)
    made[-1] = trial("uot", 4, 64.0, warning=why)
    tables, _ = compare.compare_runs(made, [], tmp_path / "out", None)
    none, uot = tables["pets"]
    assert (none.odd, uot.odd) == ((2,), ())
    assert none.top1.mean == pytest.approx(51.23)
    lines = (
        "pets: † none: seed 2 collapsed to a test top-1 of 14.32 %, where the row's median is "
        "59.48 %. Without it the mean is 60.46 ± 3.06 (4 seeds).",
        f"pets: uot, seed 4: {why}.",
        f"If validation falls: {endings.ADVICE}.",
    )
    assert comparison.endings_of("pets", [none, uot]) == [*lines]
    for name in ("table.md", "index.html"):
        text = (tmp_path / "out" / name).read_text().replace("&#39;", "'")
        assert all(line in text for line in lines)
        assert "51.23 ± 25.70 †" in text
    assert "seconds" not in (tmp_path / "out/table.md").read_text()
    assert not comparison.endings_of("pets", [uot.__class__(**{**vars(uot), "notes": ()})])


def test_many_bad_ends_do_not_bury_the_table() -> None:
    made = [trial("none", seed, 10.0, warning="bad") for seed in range(20)]
    rows = comparison.table(trials.results(trials.lines(made, [])[0]["pets"]))
    found = comparison.endings_of("pets", rows)
    assert len(found) == comparison.MOST + 2
    assert found[-2] == "pets: 8 more trainings ended badly."


def equal(seeds: int = 4, **more: float) -> list:
    """Rows of none, equal_compute and uot that differ by the same points on every seed but one."""
    made = []
    for name, gain in {"none": 0.0, "equal_compute": 2.0, "uot": 4.0, **more}.items():
        own = {"strategy.kept": "0"} if name == "equal_compute" else {}
        batch = {"train.target_batch": "10", "train.objective": "plain"} if own else {}
        made += [
            trial(name, seed, 80 + gain + seed + 0.1 * (seed == len(name) % seeds),
                  settings=own | batch, **({"selection": {}} if own else {}))
            for seed in range(seeds)
        ]  # fmt: skip
    return made


def test_rows_with_reuse_are_compared_with_equal_compute(tmp_path: Path) -> None:
    tables, _ = compare.compare_runs(equal(random=3.0), [], tmp_path / "out", None)
    found = {row.strategy: row for row in tables["pets"]}
    assert [*found] == ["none", "random", "equal_compute", "uot"]
    assert "equal_compute" not in {*found["none"].against, *found["equal_compute"].against}
    uot = found["uot"]
    assert uot.against["equal_compute"].mean == pytest.approx(2, abs=0.1)
    # Holm's correction counts the rows that are compared with it: uot and random
    raw = [found[name].against["equal_compute"].p() for name in ("uot", "random")]
    assert uot.p["equal_compute"] == pytest.approx(2 * min(raw), rel=1e-6)
    header, *lines = comparison.cells([*found.values()])
    assert header[-5:] == ("Δ random", "p", "Δ equal_compute", "p", comparison.SEEN)
    assert {len(line) for line in (header, *lines)} == {12}
    seen = {row.strategy: row.images for row in tables["pets"]}
    assert seen == {"none": 40, "random": 100, "equal_compute": 100, "uot": 100}
    verdict = comparison.verdict([*found.values()])
    assert "Reuse helped: uot is 4.0" in verdict
    assert "Where plain fine-tuning sees as many images, uot is 2.0" in verdict
    assert "helped: equal_compute" not in verdict
    assert "So did random" in verdict
    assert "equal_compute" not in verdict.partition("So did ")[2].partition(".")[0]
    flat = storage.read_csv(tmp_path / "out/table.csv")
    assert [line["images_seen"] for line in flat] == ["40", "100", "100", "100"]
    assert "seconds" not in flat[0]


def test_without_equal_compute_the_table_is_no_wider() -> None:
    made = [trial(name, seed, 80.0 + seed) for name in ("none", "uot") for seed in (0, 1)]
    rows = comparison.table(trials.results(trials.lines(made, [])[0]["pets"]))
    header, *_ = comparison.cells(rows, seen=False)
    assert header == (*comparison.HEADER, "Δ none", "p", "Δ random", "p")
    assert comparison.costs(rows)[1:] == [("none", "40", "2.0"), ("uot", "100", "2.0")]
