"""Test metrics of many runs -> tables: means and intervals over seeds, paired differences.

A row's label is its strategy, and also other settings if those tell rows apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite, nan
from statistics import fmean, median
from typing import Any

from uotft.analysis import endings
from uotft.analysis.statistics import LEVEL, Interval, holm, interval, paired, resampled, wilson
from uotft.core.records import BASELINES, EQUAL

HEADER = ("strategy", "seeds", "classes", "top-1 %", "mean per class %")
SEEN = "images seen"  # a column of files; on a terminal, of a table of its own
COSTS = ("strategy", SEEN, "seconds")
CERTAINTY = ("strategy", "seeds", "Δ none, 95 % t-interval", "p", "p, Holm", "95 % bootstrap")
STANDING = ("strategy", "win", "tie", "loss")
MARK = "†"  # behind the mean of a row with a seed that collapsed
MOST = 12  # lines on trainings that ended badly
FEW = 500  # test images; with fewer, one image is worth more than 0.2 points
LEGEND = (
    "Mean ± 95 % t-interval over seeds. Δ: paired difference in top-1 on the same seeds, in "
    "points; p: of its t-test, corrected by Holm's method over the rows that have one. "
    "Images seen: by one training, repeats included. "
    "A seed decides which labelled images subset keeps, their order and the random weights."
)

Results = dict[str, dict[str, Any]]  # {row: {seed: test metrics}}


@dataclass(frozen=True)
class Row:
    """One row; ``against`` is {baseline: paired difference in top-1}, in points.

    ``p`` is {baseline: its p-value}, corrected for the number of rows with that baseline.
    ``images`` and ``seconds`` are what a training costs, means over seeds, NaN if unknown. ``odd``
    names seeds that collapsed, and ``notes`` are lines on trainings that ended badly.
    """

    strategy: str
    classes: float
    top1: Interval
    mean_per_class: Interval
    against: dict[str, Interval]
    p: dict[str, float] = field(default_factory=dict)
    images: float = nan
    seconds: float = nan
    odd: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def cells(self, baselines: Sequence[str] = BASELINES[:2]) -> tuple[str, ...]:
        """The row as text: what HEADER names, then difference and p for each baseline."""
        differences: list[str] = []
        for b in baselines:
            known = b in self.against
            differences += [self.against[b].signed(), _p(self.p[b])] if known else ["", ""]
        return (
            self.strategy,
            str(self.top1.n),
            f"{self.classes:g}",
            f"{self.top1}{f' {MARK}' * bool(self.odd)}",
            str(self.mean_per_class),
            *differences,
        )


@dataclass(frozen=True)
class Pair:
    """Top-1 of one row minus that of another on the same seeds; ``p`` corrected for all pairs."""

    difference: Interval
    p: float

    @property
    def outcome(self) -> str:
        """A win is a gain whose corrected p is below 0.05, a loss the reverse, else a tie."""
        if not self.p < LEVEL:
            return "tie"
        return "win" if self.difference.mean > 0 else "loss"


def table(results: Results, baselines: dict[str, dict[str, str]] | None = None) -> list[Row]:
    """Rows in the order given; ``baselines`` is {row: {baseline: the row it is compared with}}.

    Without ``baselines`` every row is compared with the rows called none and random, and one with
    reuse with that of equal compute.
    """
    top1, known = _top1(results), baselines or {}
    own = {b: b for b in BASELINES if b in results}
    kept = {r: interval([m["source_classes"] for m in s.values()]).mean for r, s in results.items()}
    against: dict[str, dict[str, Interval]] = {}
    for label in results:
        fair = {b: o for b, o in own.items() if o != label and (b != EQUAL or kept[label])}
        others = known.get(label, fair)
        both = {b: o for b, o in others.items() if top1[label].keys() & top1[o].keys()}
        against[label] = {b: paired(top1[label], top1[o]) for b, o in both.items()}
    p: dict[str, dict[str, float]] = {label: {} for label in results}
    for baseline in BASELINES:
        tested = [label for label in results if baseline in against[label]]
        corrected = holm([against[label][baseline].p() for label in tested])
        for label, value in zip(tested, corrected, strict=True):
            p[label][baseline] = value
    return [
        Row(
            strategy=label,
            classes=kept[label],
            top1=interval(list(top1[label].values())),
            mean_per_class=interval([m["mean_per_class"] for m in seeds.values()]),
            against=against[label],
            p=p[label],
            images=_finite_mean([m.get("images_seen", nan) for m in seeds.values()]),
            seconds=_finite_mean([m.get("seconds", nan) for m in seeds.values()]),
            odd=tuple(endings.collapsed(top1[label])),
            notes=tuple(_endings(label, top1[label], seeds)),
        )
        for label, seeds in results.items()
    ]


def _endings(label: str, top1: dict[int, float], seeds: dict[str, Any]) -> Iterator[str]:
    """Lines on the trainings of a row that ended badly; a collapsed seed is not averaged unseen."""
    odd = endings.collapsed(top1)
    if odd:
        others = [value for seed, value in top1.items() if seed not in odd]
        far = ", ".join(f"seed {seed} collapsed to a test top-1 of {top1[seed]:.2f} %"
                        for seed in odd)  # fmt: skip
        yield (
            f"{MARK} {label}: {far}, where the row's median is {median(top1.values()):.2f} %. "
            f"Without {'it' if len(odd) == 1 else 'them'} the mean is {interval(others)} "
            f"({len(others)} seeds)"
        )
    for seed, found in seeds.items():
        if why := found.get("warning", ""):
            yield f"{label}, seed {seed}: {why}"


def endings_of(target: str, rows: list[Row]) -> list[str]:
    """A line for each training of these rows that ended badly, the last one with advice."""
    lines = [f"{target}: {note}." for row in rows for note in row.notes]
    if len(lines) > MOST:
        lines = [*lines[:MOST], f"{target}: {len(lines) - MOST} more trainings ended badly."]
    return [*lines, f"If validation falls: {endings.ADVICE}."] if lines else []


def certainty(
    results: Results, rows: list[Row], baselines: dict[str, str]
) -> list[tuple[str, ...]]:
    """Each row's difference from ``none`` with its t-interval, p-values and bootstrap interval.

    ``baselines`` is {row: the row of none that it is compared with}.
    """
    lines: list[tuple[str, ...]] = [CERTAINTY]
    top1 = _top1(results)
    for row in rows:
        if "none" in row.against:
            found = row.against["none"]
            low, high = resampled(top1[row.strategy], top1[baselines[row.strategy]])
            bootstrap = f"[{low:+.2f}, {high:+.2f}]" if isfinite(low) else "too few seeds"
            p = _p(found.p()), _p(row.p["none"])
            lines.append((row.strategy, str(found.n), found.signed(), *p, bootstrap))
    return lines


def pairs(results: Results) -> dict[tuple[str, str], Pair]:
    """{(row, other row): their difference}, both ways, for rows with two common seeds or more."""
    top1 = _top1(results)
    both = [(a, b) for a, b in combinations(results, 2) if len(top1[a].keys() & top1[b].keys()) > 1]
    found = [paired(top1[a], top1[b]) for a, b in both]
    made = {}
    for (a, b), difference, p in zip(both, found, holm([f.p() for f in found]), strict=True):
        made[a, b] = Pair(difference, p)
        made[b, a] = Pair(paired(top1[b], top1[a]), p)
    return made


def standing(results: Results, found: dict[tuple[str, str], Pair]) -> list[tuple[str, ...]]:
    """Header and, for each row, the number of rows it wins against, ties with and loses to."""
    lines: list[tuple[str, ...]] = [STANDING]
    for label in results:
        outcomes = [pair.outcome for (a, _), pair in found.items() if a == label]
        lines.append((label, *(str(outcomes.count(outcome)) for outcome in STANDING[1:])))
    return lines


def verdict(rows: list[Row]) -> str:
    """One or two sentences on whether reuse helped, from the differences from none."""
    tested = [row for row in rows if row.classes and "none" in row.against]
    if not tested:
        return (
            "No row that trains on source classes can be compared with plain fine-tuning (the "
            "strategy none) on its own seeds."
        )
    significant = [row for row in tested if row.p["none"] < LEVEL]
    best = max(tested, key=lambda row: row.against["none"].mean)
    better = sorted(
        (row for row in significant if row.against["none"].mean > 0),
        key=lambda row: -row.against["none"].mean,
    )
    worse = [row for row in significant if row.against["none"].mean < 0]
    if better:
        text = f"Reuse helped: {_difference(better[0])}."
        if len(better) > 1:
            text += f" So did {', '.join(row.strategy for row in better[1:])}."
    else:
        text = f"These runs do not show that reuse helps: at best, {_difference(best)}."
    shown = better[0] if better else best
    if EQUAL in shown.against:
        text += f" Where plain fine-tuning sees as many images, {_difference(shown, EQUAL)}."
    if worse:
        text += f" Reuse hurt: {', '.join(_difference(row) for row in worse)}."
    return text


def overlap_note(results: dict[str, dict[str, Any]]) -> str:
    """How accuracy changes without the test images that are also in the source; "" if none are.

    Of runs of several sources, those are counted that have such images, each with its own.
    """
    found = {
        label: [m for m in seeds.values() if {"clean", "images"} <= m.keys()]
        for label, seeds in results.items()
    }
    tested = [m for measured in found.values() for m in measured]
    if not tested:
        return ""
    counts = sorted({int(m["images"] - m["clean"]["images"]) for m in tested})
    number = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
    note = f"{number} of {tested[0]['images']} test images are also in the source."
    means = [
        f"{label} {interval([m['top1'] for m in measured]).mean:.2f} / "
        f"{interval([m['clean']['top1'] for m in measured]).mean:.2f}"
        for label, measured in found.items()
        if measured and all("top1" in m["clean"] for m in measured)
    ]
    return f"{note} Mean top-1 with / without them, %: {', '.join(means)}." if means else note


def cautions(results: Results, rows: list[Row]) -> list[str]:
    """Lines below the table: test images in the source, one seed, equal seeds, few test images.

    All seeds see the same test images, so intervals over seeds do not cover the choice of images.
    """
    found = {
        label: interval([m["top1"] for m in seeds.values()]) for label, seeds in results.items()
    }
    lines = [note for note in [overlap_note(results)] if note]
    if alone := [label for label, value in found.items() if value.n < 2]:
        lines.append(f"– means no interval, since there is only one seed: {', '.join(alone)}.")
    if equal := [label for label, value in found.items() if value.constant]:
        lines.append(
            f"± 0.00 does not mean certainty: all seeds got the same share of these test images "
            f"right ({', '.join(equal)})."
        )
    if same := [
        f"{row.strategy} − {baseline}"
        for row in rows
        for baseline, difference in row.against.items()
        if difference.constant and not isfinite(row.p[baseline])
    ]:
        lines.append(f"There is no p where every seed has the same difference: {', '.join(same)}.")
    images = min(m.get("images", FEW) for seeds in results.values() for m in seeds.values())
    if 0 < images < FEW:
        shares = ", ".join(
            "{} {:.2f} [{:.2f}, {:.2f}]".format(label, value.mean, *wilson(value.mean, images))
            for label, value in found.items()
        )
        lines.append(
            f"There are {images} test images, so one is worth {100 / images:.2f} points. On other "
            f"test images, top-1 might lie within (binomial 95 % interval, Wilson): {shares}."
        )
    return lines


def cells(rows: list[Row], *, seen: bool = True) -> list[tuple[str, ...]]:
    """The table as text, header first; with the images seen, unless it would be too wide for that.

    A baseline that no row is compared with has no columns, but for none and random.
    """
    shown = [b for b in BASELINES if b != EQUAL or any(b in row.against for row in rows)]
    lines = [(*HEADER, *(text for b in shown for text in (f"Δ {b}", "p")))]
    lines += [row.cells(shown) for row in rows]
    if not seen:
        return lines
    counts = [SEEN, *(_count(row.images) for row in rows)]
    return [(*line, count) for line, count in zip(lines, counts, strict=True)]


def costs(rows: list[Row]) -> list[tuple[str, ...]]:
    """What one training of each row costs: images and seconds, which differ between machines."""
    timed = (f"{row.seconds:.1f}" if isfinite(row.seconds) else "not known" for row in rows)
    lines = (
        (row.strategy, _count(row.images), took) for row, took in zip(rows, timed, strict=True)
    )
    return [COSTS, *lines]


def flat(row: Row) -> dict[str, Any]:
    """The row as numbers, for CSV and `dvc metrics show`; unknown intervals are left out."""
    numbers: dict[str, Any] = {"strategy": row.strategy, "seeds": row.top1.n}
    columns = {"top1": row.top1, "mean_per_class": row.mean_per_class}
    columns |= {f"minus_{name}": difference for name, difference in row.against.items()}
    for name, value in columns.items():
        numbers[name] = round(value.mean, 4)
        if value.n > 1:
            numbers[f"{name}_half"] = round(value.half, 4)
    numbers |= {"images_seen": round(row.images)} if isfinite(row.images) else {}
    numbers |= {f"p_{name}": round(p, 4) for name, p in row.p.items() if isfinite(p)}
    return numbers


def _top1(results: Results) -> dict[str, dict[int, float]]:
    return {s: {int(k): m["top1"] for k, m in seeds.items()} for s, seeds in results.items()}


def _difference(row: Row, baseline: str = "none") -> str:
    """A clause on a row's difference from a baseline."""
    found, p = row.against[baseline], _p(row.p[baseline])
    where = "above" if found.mean >= 0 else "below"
    apart = f"{row.strategy} is {abs(found.mean):.2f} points {where} {baseline}"
    if found.n < 2:
        return f"{apart} (one seed)"
    if not p:
        return f"{apart} on each of {found.n} seeds, which no t-test can judge"
    test = p if p.startswith("<") else f"= {p}"
    return (
        f"{row.strategy} is {abs(found.mean):.2f} ± {found.half:.2f} points {where} {baseline} "
        f"({found.n} seeds, p {test})"
    )


def _count(images: float) -> str:
    return f"{images:,.0f}" if isfinite(images) else "not known"


def _finite_mean(values: list[float]) -> float:
    known = [value for value in values if isfinite(value)]
    return fmean(known) if known else nan


def _p(value: float) -> str:
    """A p-value in three digits; "" without a test."""
    if not isfinite(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
