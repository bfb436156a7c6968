"""Finished trainings -> the rows of a comparison: what they differ in, and their baselines.

A row is one target, one strategy and one value of each parameter that tells rows apart. The
trainings of a row differ in nothing but the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from uotft.analysis.statistics import Interval, interval
from uotft.core import registry
from uotft.core.records import BASELINES, EQUAL, Trial
from uotft.training import objectives

# Never used to tell rows apart: what has a column of its own, the seed, and what follows from them.
OWN = ("dataset", "strategy", "seed", "processes", "strategy.kept")
# A baseline with other values of these had other training images or another start: no fair pair.
SHARED = ("subset.", "backbone.", "project")

EQUAL_SHARE = 0.02  # of its images that equal compute may see more or fewer: epochs are whole

Curve = dict[int, dict[int, float]]  # {step: {seed: validation top-1}}


@dataclass(frozen=True)
class Line:
    """One row: its trainings by seed; ``settings`` are the parameters that tell rows apart."""

    target: str
    strategy: str
    label: str
    settings: dict[str, str]
    trials: dict[int, Trial]

    @property
    def first(self) -> Trial:
        """The training of the lowest seed, which pictures show."""
        return self.trials[min(self.trials)]


def differing(trials: list[Trial]) -> list[str]:
    """Names of the parameters in which trainings of one target and strategy differ."""
    values: dict[tuple[str, str, str], set[str]] = {}
    names = {name for trial in trials for name in trial.settings if name not in OWN}
    for trial in trials:
        for name in names:
            cell = trial.target, trial.strategy, name
            values.setdefault(cell, set()).add(_value(trial, name))
    return sorted({name for (*_, name), found in values.items() if len(found) > 1})


def lines(trials: list[Trial], by: list[str]) -> tuple[dict[str, list[Line]], int]:
    """({target: rows told apart by the parameters ``by``}, number of trainings left out).

    Of several trainings of one seed in a row, only the newest counts. Rows are ordered by the first
    appearance of their strategy, then by the values of ``by``.
    """
    cells: dict[tuple[str, str, tuple[str, ...]], dict[int, Trial]] = {}
    for trial in sorted(trials, key=lambda t: t.origin.started):
        values = tuple(_value(trial, name) for name in by)
        cells.setdefault((trial.target, trial.strategy, values), {})[trial.seed] = trial
    strategies = [*dict.fromkeys(t.strategy for t in trials)]
    found: dict[str, list[Line]] = {
        target: [] for target in dict.fromkeys(t.target for t in trials)
    }
    order = sorted(cells, key=lambda c: (strategies.index(c[1]), *map(_natural, c[2])))
    for target, strategy, values in order:
        settings = {name: v for name, v in zip(by, values, strict=True) if v}
        differences = [f"{short(name, by)}={value}" for name, value in settings.items()]
        label = " ".join([strategy, *differences])
        seeds = dict(sorted(cells[target, strategy, values].items()))
        found[target].append(Line(target, strategy, label, settings, seeds))
    return found, len(trials) - sum(len(cell) for cell in cells.values())


def image_notes(trials: list[Trial]) -> list[str]:
    """A line for each target whose trainings were tested on different versions of its images.

    People who share a tracking server may call other images by one name, and images change.
    """
    tested: dict[str, dict[str, set[str]]] = {}  # {target: {SHA-256 of the images: strategies}}
    for trial in trials:
        if trial.answers:
            versions = tested.setdefault(trial.target, {})
            versions.setdefault(trial.answers.data, set()).add(trial.strategy)
    return [
        f"{target}: tested on {len(versions)} versions of its images, which no row tells apart: "
        + "; ".join(f"{data[:8]} ({', '.join(sorted(s))})" for data, s in versions.items())
        for target, versions in tested.items()
        if len(versions) > 1
    ]


def rank(strategy: str) -> int:
    """The rank of a strategy in the order of rows: baselines before the others."""
    return BASELINES.index(strategy) if strategy in BASELINES else len(BASELINES)


def short(name: str, names: list[str]) -> str:
    """The last part of a parameter's name, if no other of ``names`` ends with it."""
    last = name.rpartition(".")[2]
    return last if sum(n.rpartition(".")[2] == last for n in names) == 1 else name


def baselines(rows: list[Line]) -> dict[str, dict[str, str]]:
    """{row: {baseline: the row it is compared with}} by label, of one target.

    A baseline must have the same labelled images and backbone. Of several rows of ``none`` (or
    another baseline), the one that shares most other parameters is taken. With ``equal_compute``
    only rows with reuse are compared that saw as many images.
    """
    found: dict[str, dict[str, str]] = {row.label: {} for row in rows}
    for row, name, candidates in _candidates(rows):
        if fit := [other for other in candidates if not _apart(row, other)]:
            found[row.label][name] = max(
                fit, key=lambda r: len(r.settings.items() & row.settings.items())
            ).label
    return found


def unpaired(rows: list[Line]) -> list[str]:
    """A line for each row that no row of a baseline can be compared with, and why."""
    lines = []
    for row, name, candidates in _candidates(rows):
        reasons = [_apart(row, other) for other in candidates]
        if candidates and all(reasons):
            lines.append(f"{row.target}: {row.label} is not compared with {name}: {reasons[0]}")
    return lines


def _candidates(rows: list[Line]) -> Iterator[tuple[Line, str, list[Line]]]:
    """(row, baseline, the rows of the baseline) for each pair that may be compared."""
    for row in rows:
        for name in BASELINES:
            if name != row.strategy and (name != EQUAL or _reused(row.first)):
                yield row, name, [other for other in rows if other.strategy == name]


def _apart(row: Line, other: Line) -> str:
    """Why a row must not be compared with a baseline's, or ""."""
    own, others = (
        {(name, value) for t in line.trials.values() for name, value in t.settings.items()
         if name.startswith(SHARED)}
        for line in (row, other)
    )  # fmt: skip
    if differing := sorted({name for name, _ in own ^ others}):
        return f"other {', '.join(differing)}"
    if other.strategy == EQUAL:
        seen, there = images_seen(row.first), images_seen(other.first)
        if abs(seen - there) > EQUAL_SHARE * there:  # not if unknown, NaN
            return f"it saw {seen:,.0f} images, {other.label} {there:,.0f}"
    return ""


def results(rows: list[Line]) -> dict[str, dict[str, dict[str, Any]]]:
    """{row: {seed: test metrics, cost and warning}} for the table."""
    return {
        row.label: {
            str(seed): {
                "source_classes": _reused(trial),
                "images_seen": images_seen(trial),
                "seconds": trial.origin.seconds,
                "warning": trial.warning,
                **trial.test,
            }
            for seed, trial in row.trials.items()
        }
        for row in rows
    }


def curve(row: Line) -> Curve:
    """{step: {seed: validation top-1}} of a row, by ascending step."""
    found: Curve = {}
    for seed, trial in row.trials.items():
        for step, value in trial.curve.items():
            found.setdefault(step, {})[seed] = value
    return dict(sorted(found.items()))


def by_step(found: Curve) -> dict[int, Interval]:
    """The mean over seeds at each step."""
    return {step: interval(list(values.values())) for step, values in found.items()}


def images_seen(trial: Trial) -> float:
    """Images fed to the network in training, repeats included; NaN if unknown.

    Steps x batches per step x images per batch, summed over the parts that the objective reads,
    plus the images of the steps that train the head alone.
    """
    settings, parts = trial.settings, _parts(trial)
    if not trial.curve or not parts:
        return float("nan")
    if not _reused(trial) and "source" in parts:
        parts = {"target"}  # as in training: no source class, no source batch
    sizes = {
        part: "train.target_batch" if part == "target" else "train.source_batch" for part in parts
    }
    if not settings.keys() >= {*sizes.values()}:  # a run of another version of uotft
        return float("nan")
    batch = sum(int(settings[size]) for size in sizes.values())
    head = int(settings.get("train.head_steps", 0))
    # the last step of the curve counts the steps of the head too
    batches = (max(trial.curve) - head) * int(settings.get("train.recipe.accumulate", 1))
    return float(batches * batch + head * int(settings["train.target_batch"]))


def same_selections(rows: list[Line]) -> list[str]:
    """A sentence for each pair of rows that kept the same units on every seed that both have.

    Streams sample images by seed alone (training/streams.py) and kept classes are numbered by rank
    (selection/parts.py), so only the order of the source head's rows can differ.
    """
    lines = []
    for a, b in combinations([r for r in rows if r.first.kept and _reused(r.first)], 2):
        seeds = sorted(a.trials.keys() & b.trials.keys())
        kept = [[[c["name"] for c in row.trials[s].kept] for s in seeds] for row in (a, b)]
        if not seeds or [*map(sorted, kept[0])] != [*map(sorted, kept[1])] or _trained(a, b):
            continue
        apart = max(abs(a.trials[s].test["top1"] - b.trials[s].test["top1"]) for s in seeds)
        why = (
            "in the same order: their trainings are the same, and differ by rounding alone"
            if kept[0] == kept[1]
            else "in another order: they train on the same images in the same order, but a class "
            "has another row of the source head, with another random start. They differ by chance "
            "alone"
        )
        lines.append(
            f"{a.label} and {b.label} are one selection: they kept the same units, {why} "
            f"(top-1 by {apart:.2f} points at most on one seed)."
        )
    return lines


def _trained(a: Line, b: Line) -> bool:
    """Whether rows differ in a setting of the training, not of the selection."""
    own, other = (
        {k: v for k, v in row.settings.items() if not k.startswith(("select.", "strategy."))}
        for row in (a, b)
    )
    return own != other


def _value(trial: Trial, name: str) -> str:
    """A parameter of a training. Selection settings are "" where no class is kept or K ignored."""
    is_control = trial.settings.get("strategy.kept") == "0" and not trial.kept
    if (trial.strategy == "none" or is_control) and name.startswith(
        ("select.", "strategy.settings.")
    ):
        return ""
    if name == "select.top_k" and trial.selection.get("settings", {}).get("top_k", "") is None:
        return ""
    return trial.settings.get(name, "")


def _parts(trial: Trial) -> set[str]:
    """The parts of the batch that a training's objective reads; empty if unknown."""
    name = trial.settings.get("train.objective", "")
    if name not in registry.names("objectives"):  # a run of another version of uotft
        return set()
    return objectives.parts(registry.load("objectives", name, "train.objective"))


def _reused(trial: Trial) -> int:
    """How many units a training reads: those that are kept, unless its objective reads none.

    Their number is from the run's parameters if the file of the selection is missing.
    """
    if (parts := _parts(trial)) and "source" not in parts:
        return 0
    return len(trial.kept) or int(trial.settings.get("strategy.kept", 0))


def _natural(value: str) -> tuple[bool, float, str]:
    """A sort key: the empty value, then numbers by size, then text."""
    try:
        return False, float(value or "-inf"), ""
    except ValueError:
        return True, 0.0, value
