"""The contract of strategies: every strategy, found unaided, scores every class."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from uotft.core import config, registry
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Settings
from uotft.core.settings import Select
from uotft.selection import banks
from uotft.selection.choosing import Request, choose, expected
from uotft.selection.ranking import keep
from uotft.selection.strategies import (
    all as everything,
    greedy_ot,
    label,
    manual,
    nearest,
    random,
    score_quantile,
    uot,
    uot_and_random,
)

RNG = np.random.default_rng(3)
SOURCE = ClassBank(
    RNG.random((20, 6)), tuple(f"digit {i}" for i in range(20)), np.full(20, 9), "net"
)
TARGET = ClassBank(RNG.random((4, 6)), tuple("abcd"), np.full(4, 2), "net")


def kept(strategy: str, settings: Settings, top_k: int = 1) -> list[int]:
    """The rows of the source that a selection keeps, best first."""
    found = choose(SOURCE, TARGET, Request(strategy, settings, Select(top_k=top_k), None, 0))
    assert found.settings["top_k"] is None or len(found.kept) == found.settings["top_k"]
    return found.kept.tolist()


@pytest.mark.parametrize("name", registry.names("strategies"))
def test_every_strategy_keeps_the_contract(name: str, tmp_path: Path) -> None:
    module = registry.load("strategies", name, "strategy")
    (tmp_path / "classes.txt").write_text("digit 3\n")
    needed = {"manual": {"file": str(tmp_path / "classes.txt")}}
    settings = module.Settings(**needed.get(name, {}))
    first = module.score(SOURCE, TARGET, settings, 7)
    again = module.score(SOURCE, TARGET, settings, 7)
    assert first.values.shape == (20,)
    assert not np.isnan(first.values).any()
    assert np.array_equal(first.values, again.values)
    ours = ("none", "all", "nearest", "manual")
    assert "(" in (module.__doc__ or "") or name in ours, "cite the paper"


def test_random_follows_the_seed() -> None:
    module = registry.load("strategies", "random", "strategy")
    scores = [module.score(SOURCE, TARGET, module.Settings(), seed).values for seed in (0, 1)]
    assert not np.array_equal(*scores)


def test_greedy_ot_is_minus_the_mean_distance() -> None:
    expected = [-np.mean([np.linalg.norm(s - t) for t in TARGET.means]) for s in SOURCE.means]
    assert greedy_ot.score(SOURCE, TARGET, greedy_ot.Settings(), 0).values == pytest.approx(
        expected
    )


def test_nearest_looks_at_the_closest_target_class_only() -> None:
    near_one = ClassBank(np.array([[1.0, 0], [0.5, 0.5]]), ("one", "both"), np.ones(2, int))
    target = ClassBank(np.array([[1.0, 0], [0, 1], [0, 1]]), tuple("xyz"), np.ones(3, int))
    assert nearest.score(near_one, target, nearest.Settings(), 0).values.argmax() == 0
    assert greedy_ot.score(near_one, target, greedy_ot.Settings(), 0).values.argmax() == 1


def test_label_takes_names_and_patterns() -> None:
    scores = label.score(SOURCE, TARGET, label.Settings(classes=["digit 3", "digit 1?"]), 0).values
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [3, *range(10, 20)]


def test_label_takes_the_class_names_of_images() -> None:
    names = tuple(f"image {i:02}" for i in range(20))
    images = ClassBank(SOURCE.means, names, SOURCE.counts, unit="image", labels=SOURCE.names)
    scores = label.score(images, TARGET, label.Settings(classes=["digit 3"]), 0).values
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [3]


BRACKETS = ClassBank(np.eye(4), ("dog [black]", "dog b", "Kaese", "K\u00e4se"), np.ones(4, int))


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("dog [black]", [0]),
        ("dog [[]black]", [0]),  # brackets in a pattern
        ("dog [bc]", [1]),
        ("dog*", [0, 1]),
        ("Ka\u0308se", [3]),  # NFD, as macOS types it
    ],
)
def test_names_are_equal_before_they_are_patterns(
    wanted: str, kept: list[int], tmp_path: Path
) -> None:
    scores = label.score(BRACKETS, TARGET, label.Settings(classes=[wanted]), 0).values
    assert np.flatnonzero(scores > -np.inf).tolist() == kept
    assert expected(BRACKETS, [wanted], "").tolist() == kept
    if wanted in ("dog [black]", "Ka\u0308se"):
        (tmp_path / "kept.txt").write_text(f"{wanted}\n", encoding="utf-8")
        scores = manual.score(
            BRACKETS, TARGET, manual.Settings(file=str(tmp_path / "kept.txt")), 0
        ).values
        assert np.flatnonzero(scores > -np.inf).tolist() == kept


def test_label_does_not_take_ids_for_names() -> None:
    """An array labels of another tool: numbers of classes, beside the names."""
    ids = tuple(str(100 + row) for row in range(4))
    bank = ClassBank(BRACKETS.means, BRACKETS.names, BRACKETS.counts, labels=ids)
    scores = label.score(bank, TARGET, label.Settings(classes=["dog b"]), 0).values
    assert np.flatnonzero(scores > -np.inf).tolist() == [1]
    with pytest.raises(UserError, match=r"'102' matches none of the 4 .* dog \[black\], dog b"):
        label.score(bank, TARGET, label.Settings(classes=["102"]), 0)


def test_label_refuses_a_name_that_matches_nothing() -> None:
    with pytest.raises(UserError, match="'letter' matches none of the 20 source classes"):
        label.score(SOURCE, TARGET, label.Settings(classes=["letter"]), 0)


def test_all_keeps_all_whatever_k() -> None:
    assert sorted(kept("all", everything.Settings())) == list(range(20))
    assert sorted(kept("all", everything.Settings(), top_k=30)) == list(range(20))


def test_manual_keeps_the_list_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# two of them\ndigit 7\n\n  digit 2 \n")
    found = kept("manual", manual.Settings(file=str(path)))
    assert found == [7, 2], "the list is longer than K"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit 2\ndigit22\n", r"mine\.txt, line 2: 'digit22' is not one of the 20.*digit 2"),
        ("digit 2\ndigit 2\n", r"line 2: 'digit 2' is listed twice"),
        ("# nothing\n", "names no class"),
    ],
)
def test_manual_refuses(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        manual.score(SOURCE, TARGET, manual.Settings(file=str(path)), 0)


def test_manual_wants_a_file(tmp_path: Path) -> None:
    for file, message in (("", "missing"), (str(tmp_path / "no.txt"), "cannot be read")):
        with pytest.raises(UserError, match=message):
            manual.score(SOURCE, TARGET, manual.Settings(file=file), 0)


ROWS = [
    {"wnid": f"n{i:08}", "name": f"thing {i}, other {i}", "concept": "bird" if i < 3 else "tool"}
    for i in range(20)
]


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize(
    ("wanted", "rows"), [("bird", [0, 1, 2]), ("n00000007", [7]), ("other 1?", range(10, 20))]
)
def test_label_reads_ids_concepts_and_synonyms(
    tmp_path: Path, form: str, wanted: str, rows
) -> None:
    path = tmp_path / f"classes.{form}"
    if form == "json":
        path.write_text(json.dumps(ROWS))
    else:
        lines = [",".join(f'"{cell}"' for cell in row.values()) for row in ROWS]
        path.write_text("\n".join(["wnid,name,concept", *lines]))
    settings = label.Settings(classes=[wanted], table=str(path))
    assert sorted(kept("label", settings)) == list(rows)


def test_label_refuses_a_table_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    for text, message in (
        (json.dumps(ROWS[:5]), "5 rows for 20 source classes"),
        ('{"a": 1}', "not a list of rows"),
        ("[", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            label.score(SOURCE, TARGET, label.Settings(classes=["bird"], table=str(path)), 0)


def test_scores_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from uotft.selection.transport import costs

    whole = greedy_ot.score(SOURCE, TARGET, greedy_ot.Settings(), 0).values
    monkeypatch.setattr(costs, "BLOCK", 3)
    assert np.allclose(greedy_ot.score(SOURCE, TARGET, greedy_ot.Settings(), 0).values, whole)


def test_counts_weigh_classes() -> None:
    counts = np.full(20, 9)
    counts[4] = 900
    heavy = ClassBank(SOURCE.means, SOURCE.names, counts)
    unit, weighed = (
        uot.score(heavy, TARGET, uot.Settings(cost_scale=0.1, weights=w), 0).values
        for w in ("unit", "counts")
    )
    gain = weighed - unit
    assert gain.argmax() == 4
    counts[1] = 0
    with pytest.raises(UserError, match=r"'digit 1' \(row 1\) has no images"):
        uot.score(heavy, TARGET, uot.Settings(weights="counts"), 0)


def test_a_device_needs_the_block_solver() -> None:
    with pytest.raises(UserError, match="'cuda'.*choose solver: blocks"):
        uot.score(SOURCE, TARGET, uot.Settings(device="cuda"), 0)


def test_quantiles_are_the_parts_of_uots_ranking() -> None:
    ranked = keep(uot.score(SOURCE, TARGET, uot.Settings(), 0), SOURCE.names, 20).tolist()
    parts = []
    for number in range(3):
        settings = score_quantile.Settings(quantile=number, quantiles=3)
        parts.append(kept("score_quantile", settings))
    assert parts == [ranked[:7], ranked[7:14], ranked[14:]]


def test_uot_and_random_take_turns() -> None:
    ranked = keep(uot.score(SOURCE, TARGET, uot.Settings(), 0), SOURCE.names, 20).tolist()
    for seed in range(5):
        sampled = keep(random.score(SOURCE, TARGET, random.Settings(), seed), SOURCE.names, 20)
        scores = uot_and_random.score(SOURCE, TARGET, uot_and_random.Settings(), seed)
        assert scores.log_plan is None, "values are places, not the log of a mass"
        order = keep(scores, SOURCE.names, 20).tolist()
        assert sorted(order) == list(range(20))
        for turn, row in enumerate(order):
            left = [r for r in (ranked, sampled.tolist())[turn % 2] if r not in order[:turn]]
            assert row == left[0], (seed, turn)


def test_quantiles_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="quantiles count from 0 to 9"):
        score_quantile.Settings(quantile=10)
    message = r"selectors\.score_quantile\.quantiles: got 30, .* only 20 .* 1 to 20"
    with pytest.raises(UserError, match=message):
        score_quantile.score(SOURCE, TARGET, score_quantile.Settings(quantiles=30), 0)


def test_the_old_name_band_works_and_the_new_one_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry._tell.cache_clear()
    settings = [config.strategy_settings("band", {"bands": 5, "band": 2}) for _ in range(2)]
    assert settings[0] == settings[1] == score_quantile.Settings(quantiles=5, quantile=2)
    assert registry.load("strategies", "band", "strategy") is score_quantile
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "strategy: 'band' is now called 'score_quantile'; the old name still works in params.yaml"
    ]
    assert "band" not in registry.names("strategies")
    with pytest.raises(UserError, match="band: no such setting; known are .*quantile"):
        config.strategy_settings("score_quantile", {"quantile": 1, "band": 1})


def test_dvc_finds_the_file_of_every_old_name() -> None:
    """dvc.yaml depends on the file of the name in params.yaml, and on what that file holds."""
    for kind, renamed in registry.RENAMED.items():
        [folder] = import_module(registry.PACKAGES[kind]).__path__
        for old, new in renamed.items():
            texts = {Path(folder, f"{name}.py").read_bytes() for name in (old, new)}
            assert len(texts) == 1


def test_files_that_settings_name_are_looked_for_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`uotft train --source` works on a project from outside its folder."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/kept.txt").write_text("b\n")
    means, names = np.eye(3), ("a", "b", "c")
    np.savez(tmp_path / "bank.npz", means=means, names=np.array(names))
    bank = banks.read(tmp_path / "bank.npz")
    settings = registry.load("strategies", "manual", "strategy").Settings(file="kept.txt")
    uot = registry.load("strategies", "uot", "strategy").Settings()
    monkeypatch.chdir(tmp_path)
    request = Request("manual", settings, Select(top_k=1), uot, 0, tmp_path / "project")
    chosen = choose(bank, bank, request)
    assert [names[row] for row in chosen.kept] == ["b"]
    assert chosen.settings["file"] == "kept.txt", "as params.yaml has it"
    with pytest.raises(UserError, match=r"kept\.txt cannot be read"):
        choose(bank, bank, replace(request, folder=tmp_path))
