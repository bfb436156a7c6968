"""Spaces, the text of a params file, and studies that a kill does not lose."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml
from sqlalchemy import event
from sqlalchemy.engine import Engine

from support.child_processes import at_call, fork, killed
from support.projects import tiny_params, write_params
from support.repository import REPOSITORY
from uotft.core import config
from uotft.core.errors import UserError
from uotft.runs import study as search
from uotft.runs.study import Study, Trial

SPACE = {
    "train.lambda": {"choices": [0.3, 1.0]},
    "select.top_k": {"choices": [5, "auto"]},
}
WIDE = {
    "train.recipe.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "select.top_k": {"low": 2, "high": 9},
}
DEFAULT = {"train.lambda": 1.0, "select.top_k": 5}
FAR = {"train.recipe.learning_rate": 0.5, "select.top_k": "auto"}


def space(raw: dict) -> search.Space:
    return config.space(raw, "space.yaml")


def value(setting: search.Setting, seed: int = 0) -> float:
    """A made-up top-1 that depends on the setting, and a little on the seed."""
    return 60 + 100 * sum(v for v in setting.values() if isinstance(v, float)) % 40 + seed / 10


def run(study: Study, most: int, seeds: tuple[int, ...] = (100, 101)) -> list[Trial]:
    while trial := study.next(most):
        for seed in seeds:
            trial = study.measured(trial.number, seed, value(trial.setting, seed))
        study.close(trial.number, "complete")
    return study.trials()


@pytest.mark.parametrize("name", ["paper", "wide"])
def test_the_shipped_spaces_start_from_params_yaml(name: str) -> None:
    found = search.read_space(name)
    text = (REPOSITORY / "params.yaml").read_text()
    assert search.standing(text, found)["train.lambda"] == 1.0
    if name == "paper":
        assert len(search.grid(found)) == 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.lambda: {choices: []}", r"train.lambda:\n  choices: got \[\]"),
        ("train.lambda: {choices: [1.0, 1.0]}", "choices must differ from each other"),
        ("train.lambda: {low: 1.0}", "give either choices, or low and high"),
        ("train.lambda: {low: 1.0, high: 0.1}", "low must be below high"),
        ("train.lambda: {low: 0.0, high: 0.1, log: true}", "log needs a low above 0"),
        ("train.lambda: {points: 3}", "points: no such setting; known are choices, high, log, low"),
        ("- 1", r"got \[1\]; write lines like"),
        ("a: {", "not valid YAML"),
    ],
)
def test_a_space_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        search.read_space(str(tmp_path / "space.yaml"))


def test_no_space_of_that_name() -> None:
    with pytest.raises(UserError, match="'papr'; name a YAML file, or paper or wide"):
        search.read_space("papr")


def test_a_grid_has_every_combination_and_needs_choices() -> None:
    points = search.grid(space(SPACE))
    assert points[1] == {"train.lambda": 0.3, "select.top_k": "auto"}
    assert len({tuple(p.values()) for p in points}) == 4
    with pytest.raises(UserError, match="learning_rate has low and high; give it choices"):
        search.grid(space(WIDE))


def test_without_source_images_nothing_about_them_is_searched() -> None:
    both = space(SPACE | WIDE)
    raw = tiny_params() | {"controls": {"slow": {"recipe": {"learning_rate": 0.001}}}}
    params = config.checked(raw, "params.yaml")
    assert search.deciding(both, params, "uot") == both
    for name in ("none", "equal_compute"):
        assert list(search.deciding(both, params, name)) == ["train.recipe.learning_rate"]
    batch = space({"train.source_batch": {"choices": [32, 64]}})
    assert search.deciding(batch, params, "equal_compute") == batch, "its own batch is as large"
    assert not search.deciding(batch, params, "none")
    for name in ("slow", "probe"):
        assert not search.deciding(both, params, name), "the control sets it, or makes no step"


@pytest.mark.parametrize("strategy", ["all", "label", "manual", "score_quantile", "band"])
def test_no_k_is_searched_for_a_strategy_that_ignores_it(strategy: str) -> None:
    """Its trials would be equal trainings, and one K the best of them."""
    share = {
        "select.mass_share": {"low": 0.5, "high": 0.9},
        "select.max_per_class": {"choices": [1]},
    }
    params = config.checked(tiny_params() | {"selectors": {"manual": {"file": "a"}}}, "params.yaml")
    found = search.deciding(space(SPACE | share), params, strategy)
    assert list(found) == ["train.lambda", "select.max_per_class"]
    assert search.deciding(space(SPACE | share), params, "nearest") == space(SPACE | share)


def test_words_are_what_yaml_reads_back() -> None:
    setting = {"a": 1e-05, "b": True, "c": "auto", "d": 7, "e": "1e-4"}
    said = dict(word.split("=") for word in search.overrides(setting))
    assert {name: yaml.safe_load(text) for name, text in said.items()} == setting


def test_a_params_file_changes_in_place(tmp_path: Path) -> None:
    """Only the values change: every comment and every other byte stays."""
    before = (REPOSITORY / "params.yaml").read_text()
    names = ("train.lambda", "train.recipe.weight_decay", "select.top_k", "objectives.l2_sp.alpha")
    assert search.rewritten(before, search.standing(before, names)) == before
    setting = {"train.lambda": 0.3, "train.recipe.weight_decay": 1e-05, "select.top_k": "auto"}
    after = search.rewritten(before, setting | {"objectives.l2_sp.alpha": 0.2})
    assert search.standing(after, setting) == setting
    changed = [(a, b) for a, b in zip(before.split("\n"), after.split("\n"), strict=True) if a != b]
    assert changed[2] == tuple(
        f"  lambda: {value}         # weight of the source loss, equation (6)"
        for value in (1.0, 0.3)
    )
    assert len(changed) == 4
    write_params(tmp_path, {})
    (tmp_path / "params.yaml").write_text(after)
    assert config.load(tmp_path).train.source_weight == 0.3


@pytest.mark.parametrize(
    "name", ["train.nothing", "train.recipe", "train.recipe.drops", "select.mass_share"]
)
def test_what_has_no_value_to_start_from_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} has no single value in params.yaml"):
        search.standing((REPOSITORY / "params.yaml").read_text(), [name])


def test_a_grid_is_tried_once_with_the_default_first(tmp_path: Path) -> None:
    """The default is a point of this grid, which is not tried twice."""
    study = Study(tmp_path / "study.db", space(SPACE), DEFAULT, tpe=False)
    trials = run(study, 99)
    assert trials[0].setting == DEFAULT
    assert len(trials) == 4
    assert sorted(map(str, search.grid(space(SPACE)))) == sorted(str(t.setting) for t in trials)
    again = Study(tmp_path / "study.db", space(SPACE), DEFAULT, tpe=False)
    assert again.next(99) is None
    assert again.trials() == trials


def test_a_default_outside_the_space_is_trial_0_all_the_same(tmp_path: Path) -> None:
    trials = run(Study(tmp_path / "study.db", space(WIDE), FAR, tpe=True), 4)
    assert trials[0].setting == FAR
    assert all(isinstance(t.setting["select.top_k"], int) for t in trials[1:])
    rates = [t.setting["train.recipe.learning_rate"] for t in trials[1:]]
    assert all(0.001 <= r <= 0.1 and float(f"{r:.3g}") == r for r in rates)
    assert len(set(rates)) == 3


def test_what_was_killed_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """15 trials: the sampler has begun to learn from the ones before."""
    whole = run(Study(tmp_path / "whole.db", space(WIDE), FAR, tpe=True), 15)

    def some(commits: int) -> None:
        """Each commit is a moment: of making the study, drawing a value, keeping a seed's."""
        die = at_call(commits, lambda: os.kill(os.getpid(), signal.SIGKILL))
        event.listen(Engine, "commit", die)
        run(Study(tmp_path / "study.db", space(WIDE), FAR, tpe=True), 15)

    for commits in (1, 3, 8, 9, 10, 11, 12, 13, 14, 30):
        assert killed(fork(lambda n=commits: some(n)))
    assert run(Study(tmp_path / "study.db", space(WIDE), FAR, tpe=True), 15) == whole
    assert run(Study(tmp_path / "study.db", space(WIDE), FAR, tpe=True), 16)[:15] == whole


def follow(study: Study, top1: tuple[float, float, float]) -> list[bool]:
    """A trial with validations at steps 0, 100 and 200 of one seed; whether each is hopeless."""
    trial = study.next(99)
    said = []
    for step, value in zip((0, 100, 200), top1, strict=True):
        study.report(trial.number, 0, step, value)
        study.report(trial.number, 0, step, -1.0)  # logged again: the first counts
        said.append(study.hopeless(trial.number))
    study.close(
        study.measured(trial.number, 100, top1[-1]).number, "pruned" if any(said) else "complete"
    )
    return said


def test_a_trial_below_the_median_is_pruned_late_and_not_early(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", space(WIDE), FAR, tpe=True)
    assert not any(follow(study, (50, 40, 30))), "nothing to compare with"
    for k in range(3):
        assert not any(follow(study, (50, 60 + k, 80 + k)))
    said = follow(study, (90, 20, 70))
    assert said == [False, False, True], "the first half condemns nobody, and saves nobody"
    assert not any(follow(study, (50, 55, 82)))
    assert [t.state for t in study.trials()].count("pruned") == 1


def test_a_failed_trial_is_none_of_the_best(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", space(SPACE), DEFAULT, tpe=False)
    study.close(study.measured(study.next(9).number, 100, 70.0).number, "complete")
    study.close(study.measured(study.next(9).number, 100, 90.0).number, "failed")
    assert search.best(study.trials()).number == 0
    assert "nothing better than params.yaml in 2 trials" in search.verdict(study.trials())


def trial(number: int, *top1: float) -> Trial:
    return Trial(number, {"train.lambda": number / 10}, dict(enumerate(top1, 100)), "complete")


def test_the_table_pairs_seeds_and_the_verdict_says_when_nothing_is_shown() -> None:
    trials = [trial(0, 80.0, 70.0, 60.0), trial(1, 82.0, 72.5, 61.5), trial(2, 90.0, 70.0, 60.0)]
    header, first, second, third = search.table(trials)
    assert header == search.HEADER
    assert first[:4] == ("2", "train.lambda=0.2", "complete", "3")
    assert second[-1] == "+2.00 ± 1.24"
    assert third[-1] == ""
    assert "the interval includes 0: not shown to be better" in search.verdict(trials)
    assert "interval includes 0" not in search.verdict(trials[:2])
    assert search.best([trial(0, 80.0), trial(1, 80.0)]).number == 0


def test_importance_finds_the_setting_that_decides(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", space(WIDE), FAR, tpe=True)
    assert study.importance() == {}
    while found := study.next(20):
        top1 = 50 + 10 * found.setting["select.top_k"] if found.number else 0.0
        study.close(study.measured(found.number, 100, top1).number, "complete")
    shares = study.importance()
    assert shares["select.top_k"] > 0.8 > shares["train.recipe.learning_rate"]
