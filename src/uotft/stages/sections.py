"""The sections of a comparison's page: rows of finished trainings -> headings, tables, pictures.

What a set of trainings lacks is said in a line where its section would stand.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft import changes, compare, report, store, trials
from uotft.errors import UserError
from uotft.records import ImageSet
from uotft.stages.selecting import source_bank, source_images
from uotft.stages.workspace import Workspace
from uotft.statistics import LEVEL, Interval, interval, paired

if TYPE_CHECKING:
    from uotft.report import Part
    from uotft.trials import Line

MOST = 8  # rows of which single classes and images are shown
PAIRS = 3  # pairs of classes of a row, repaired and broken
THUMBNAILS = 12  # classes or images of a row
LEGEND = (
    "Mean ± 95 % t-interval over seeds. Δ: paired difference in top-1 on the same seeds, in "
    "points; p: of its t-test, corrected after Holm for the rows that have one. "
    "Every seed draws its own labelled images."
)
CONFUSED = ("strategy", "true class", "taken for", "none", "with reuse", "change", "seeds")
TURNED = ("strategy", "repaired", "broken", "test images", "seeds")
COST = ("strategy", "trainings", "images seen", "x none", "seconds", "x none", "timed")

Curve = dict[int, dict[int, float]]  # {step: {seed: validation top-1}}


def sections(
    target: str, rows: list[Line], by: list[str], ws: Workspace | None
) -> dict[str, list[Part]]:
    """{name: one section} of one target, in the order of the page.

    ``ws`` has the images, if there is one; ``by`` are the parameters that tell rows apart.
    """
    results, baselines = trials.results(rows), trials.baselines(rows)
    table, note = compare.table(results, baselines), compare.overlap_note(results)
    none = {label: found["none"] for label, found in baselines.items() if "none" in found}
    overview = report.comparison_picture(
        target,
        {row.strategy: row.top1 for row in table},
        {row.strategy: row.against["none"] for row in table if "none" in row.against},
    )
    return {
        "comparison": [
            (f"{target}: did reuse help?", report.Lead(compare.verdict(table))),
            ("", overview),
        ],
        "table": [
            (f"{target}: results", compare.cells(table)),
            ("", LEGEND),
            *([("", note)] if note else []),
        ],
        "sure": [("How sure the differences are", compare.sure(results, table, none))],
        "standing": _standing(results),
        "curves": _curves(target, rows, none),
        "settings": _settings(target, rows, by),
        "classes": _classes(target, rows, ws),
        "plan": _plans(rows),
        "common": _common(rows),
        "changes": _changes(target, rows, none, ws),
        "cost": _cost(rows, none),
        "versions": _versions(rows),
    }


def _standing(results: compare.Results) -> list[Part]:
    """How often each row wins, ties and loses against the others, and by how much."""
    found, heading = compare.pairs(results), "Win, tie, loss"
    if not found:
        return [(heading, "Two rows with two seeds in common are needed.")]
    names = [*results]
    values = np.array([[_shown(found, a, b) for b in names] for a in names])
    words = [[_word(found, a, b) for b in names] for a in names]
    title = "row minus column, top-1, points; wins and losses in colour"
    picture = report.square_picture(title, values, words, names)
    rule = (
        "A win is a gain on the same seeds whose p, corrected after Holm for all pairs of rows, is "
        f"below {LEVEL:g}; a loss is the reverse; all others are ties."
    )
    return [(heading, compare.standing(results, found)), ("", picture), ("", rule)]


def _curves(target: str, rows: list[Line], none: dict[str, str]) -> list[Part]:
    curves = {row.label: curve(row) for row in rows}
    curves = {label: found for label, found in curves.items() if found}
    if not curves:
        return [("Learning curves", "These runs have no validation curve (val/top1).")]
    picture = report.curves_picture(
        target,
        {label: by_step(found) for label, found in curves.items()},
        {
            label: against
            for label, found in curves.items()
            if (against := _over(found, curves.get(none.get(label, ""), {})))
        },
    )
    return [("Learning curves", picture)]


def curve(row: Line) -> Curve:
    """{step: {seed: validation top-1}} of a row."""
    found: Curve = {}
    for seed, trial in row.trials.items():
        for step, value in trial.curve.items():
            found.setdefault(step, {})[seed] = value
    return dict(sorted(found.items()))


def by_step(found: Curve) -> dict[int, Interval]:
    """The mean over seeds at each step."""
    return {step: interval(list(values.values())) for step, values in found.items()}


def _over(found: Curve, none: Curve) -> dict[int, Interval]:
    """The paired difference from ``none`` at the steps that both have."""
    return {
        step: paired(values, none[step])
        for step, values in found.items()
        if values.keys() & none.get(step, {}).keys()
    }


def _settings(target: str, rows: list[Line], by: list[str]) -> list[Part]:
    """Accuracy against each numeric parameter in which rows differ."""
    heading, parts = "Accuracy against the settings", []
    for name in by:
        lines: dict[str, dict[float, Interval]] = {}
        for row in rows:
            others = [f"{trials.short(k, by)}={v}" for k, v in row.settings.items() if k != name]
            if isfinite(x := _number(row.settings.get(name, ""))):
                top1 = interval([t.test["top1"] for t in row.trials.values()])
                lines.setdefault(" ".join([row.strategy, *others]), {})[x] = top1
        if any(len(line) > 1 for line in lines.values()):
            ordered = {label: dict(sorted(line.items())) for label, line in lines.items()}
            title = f"{target}: test top-1, %"
            parts.append(("", report.setting_picture(title, name, ordered)))
    if not parts:
        return [(heading, "These runs differ in no numeric parameter.")]
    return [(heading, "Mean over seeds with a 95 % band."), *parts]


def _classes(target: str, rows: list[Line], ws: Workspace | None) -> list[Part]:
    """Contact sheets of what each row kept, or a table where the images are not here."""
    heading, chosen = "Selected classes", [row for row in rows if row.first.kept][:MOST]
    if not chosen:
        return [(heading, "No row keeps a source class, or the runs do not say which.")]
    seed = f"Of each row's lowest seed, {THUMBNAILS} at most, best first: rank, score, name."
    try:
        picture = report.classes_picture("", _sheets(ws, target, chosen), columns=THUMBNAILS)
        return [(heading, seed), ("", picture)]
    except UserError as error:
        reason = f"{seed} Without pictures: {error}."
    words = [[f"{c['name']} ({c['score']:.3g})" for c in r.first.kept[:THUMBNAILS]] for r in chosen]
    lines = [(str(rank), *line) for rank, line in enumerate(zip_longest(*words, fillvalue=""), 1)]
    return [(heading, [("rank", *(row.label for row in chosen)), *lines]), ("", reason)]


def _sheets(
    ws: Workspace | None, target: str, rows: list[Line]
) -> dict[str, list[tuple[str, NDArray[np.uint8]]]]:
    """The target's classes, then the kept units of each row: the first training image of each."""
    from uotft.images import Views

    if ws is None:
        raise UserError("there is no params.yaml here, and so no images")
    made = store.fingerprint(ws.embedding(ws.params.source))
    for row in rows:
        if row.first.selection["fingerprints"]["source"] != made:
            raise UserError(f"{row.label} selected from another source than the one that is here")
    images, bank = ws.images(target), source_bank(ws)
    source = source_images(ws, bank)

    def first(
        images: ImageSet, members: NDArray[np.int64], wanted: list[int]
    ) -> list[NDArray[np.uint8]]:
        """The first training image of each unit wanted, where ``members`` is the unit of each."""
        found, numbers = np.unique(members, return_index=True)
        views = Views(images, images.rows("train")[numbers[np.searchsorted(found, wanted)]])
        return [*views[:]]

    labels, names = images.labels[images.rows("train")], bank.labels or bank.names
    classes = np.unique(labels)[:THUMBNAILS].tolist()
    captions = [f"\n{images.names[c][:14]}" for c in classes]
    sheets = {target: [*zip(captions, first(images, labels, classes), strict=True)]}
    for row in rows:
        kept = row.first.kept[:THUMBNAILS]
        shown = first(source, bank.members, [c["row"] for c in kept])
        captions = [_caption(c["rank"], c["score"], names[c["row"]]) for c in kept]
        sheets[row.label] = [*zip(captions, shown, strict=True)]
    return sheets


def _plans(rows: list[Line]) -> list[Part]:
    """The plan of each row that has one, of its lowest seed."""
    heading, parts = "The transport plan", []
    for row in rows[:MOST]:
        trial = row.first
        if trial.plan_KT is not None:
            kept = tuple(c["name"] for c in trial.kept)
            known = trial.answers.names if trial.answers else ()
            names = known or tuple(map(str, range(trial.plan_KT.shape[1])))
            title = f"{row.label}, seed {trial.seed}"
            picture = report.wide_plan_picture(title, trial.plan_KT, kept, names)
            parts.append(("", picture))
    if not parts:
        return [(heading, "No row has a plan: uot alone makes one.")]
    return [(heading, "How much mass each kept class sends to each target class."), *parts]


def _common(rows: list[Line]) -> list[Part]:
    """Which share of the kept classes two rows have in common."""
    heading = "Overlap of the selections"
    chosen = [row for row in rows if row.first.kept]
    if len(chosen) < 2:
        return [(heading, "Two rows that keep source classes are needed.")]
    values = np.array([[_jaccard(a, b) for b in chosen] for a in chosen])
    words = [[f"{v:.2f}" if isfinite(v) else "" for v in line] for line in values]
    names = [row.label for row in chosen]
    title = "classes in both / classes in either, mean over seeds"
    return [(heading, report.square_picture(title, values, words, names))]


def _jaccard(a: Line, b: Line) -> float:
    """|A and B| / |A or B| of the classes kept, mean over the seeds that both have."""
    shares = []
    for seed in a.trials.keys() & b.trials.keys():
        one, other = ({c["name"] for c in row.trials[seed].kept} for row in (a, b))
        shares.append(len(one & other) / len(one | other))
    return float(np.mean(shares)) if shares else nan


def _changes(
    target: str, rows: list[Line], none: dict[str, str], ws: Workspace | None
) -> list[Part]:
    """Mistakes that reuse repaired, and those it made: counts, pairs of classes, images."""
    headings = "Test images repaired and broken", "Confused classes"
    answers = {
        row.label: {s: t.answers for s, t in row.trials.items() if t.answers is not None}
        for row in rows
    }
    both = {
        label: found
        for label, other in none.items()
        if (found := changes.sides(answers[other], answers[label]))
    }
    if not both:
        reason = "No row has the answers of its own models and those of none; evaluate keeps them."
        return [(heading, reason) for heading in headings]
    turned: list[tuple[str, ...]] = [TURNED]
    pairs: list[tuple[str, ...]] = [CONFUSED]
    for label, found in both.items():
        repaired, broken = changes.turned(found)
        images = str(len(found[0][0].rows))
        turned.append((label, str(repaired), str(broken), images, str(len(found))))
    for label, found in [*both.items()][:MOST]:
        for pair in changes.confused(found, PAIRS):
            means = f"{pair.before:.1f}", f"{pair.after:.1f}", pair.change.signed()
            pairs.append((label, pair.true, pair.taken_for, *means, str(len(found))))
    note = (
        "Repaired: wrong with none, right with reuse, on the same seed; broken: the reverse. "
        "Images a seed, mean ± 95 % t-interval."
    )
    return [
        (headings[0], turned),
        ("", note),
        *_thumbnails(target, {k: both[k] for k in [*both][:MOST]}, ws),
        (headings[1], pairs),
        ("", f"Test images a seed; of each row the {PAIRS} largest falls and rises."),
    ]


def _thumbnails(target: str, both: dict[str, changes.Sides], ws: Workspace | None) -> list[Part]:
    """The images that most seeds repaired, and those that most seeds broke."""
    from uotft.images import Views

    [(example, _), *_] = next(iter(both.values()))
    if ws is None or not ws.data(target).is_file():
        return [("", f"Without pictures: the images of {target} are not here.")]
    if store.fingerprint(ws.data(target)) != example.data:
        return [("", f"Without pictures: {ws.data(target)} is not the one that was tested.")]
    images, sheets = ws.images(target), {}
    for label, found in both.items():
        for word in ("repaired", "broke"):
            changed = changes.changed(found, THUMBNAILS, repaired=word == "repaired")
            shown = Views(images, np.array([c.row for c in changed], np.int64))[:]
            captions = [
                f"{c.true[:14]}\n{c.before[:9]} → {c.after[:9]}\n{c.times} of {len(found)}"
                for c in changed
            ]
            sheets[f"{label}\n{word}"] = [*zip(captions, shown, strict=True)]
    note = "Above each image: its class; the answer of none → with reuse; on how many seeds."
    return [("", report.classes_picture("", sheets, columns=THUMBNAILS)), ("", note)]


def _cost(rows: list[Line], none: dict[str, str]) -> list[Part]:
    """What a training of each row costs: images through the network, and time."""
    seen = {r.label: [trials.images_seen(t) for t in r.trials.values()] for r in rows}
    took = {r.label: [t.origin.seconds for t in r.trials.values()] for r in rows}
    lines: list[tuple[str, ...]] = [COST]
    for row in rows:
        other = none.get(row.label, row.label if row.strategy == "none" else "")
        cells = []
        for values, digits in ((seen, ",.0f"), (took, ".1f")):
            mean, base = (_finite_mean(values.get(label, [])) for label in (row.label, other))
            cells += [
                format(mean, digits) if isfinite(mean) else "not known",
                f"{mean / base:.2f}" if isfinite(mean / base) else "",
            ]
        timed = sum(isfinite(v) for v in took[row.label])
        lines.append((row.label, str(len(row.trials)), *cells, str(timed)))
    note = (
        "A training, mean over seeds: images of all batches, validation aside; seconds of its "
        "MLflow run from start to end, with whatever else the machine had to do."
    )
    return [("Cost", lines), ("", note)]


def _versions(rows: list[Line]) -> list[Part]:
    """Which code and data made the models, and how many of them each."""
    heading, made = "Versions of code and data", [t for r in rows for t in r.trials.values()]
    known = [t.origin.versions for t in made if t.origin.versions]
    if not known:
        return [(heading, "No run in this MLflow store made these models.")]
    lines: list[tuple[str, ...]] = [("what", "version", "trainings")]
    for name in sorted({name for versions in known for name in versions}):
        counts = Counter(versions.get(name, "not said") for versions in known)
        lines += [(name, version, str(count)) for version, count in counts.most_common()]
    note = f"{len(known)} of {len(made)} models have a run in this MLflow store."
    return [(heading, lines), ("", note)]


def _caption(rank: int, score: float, name: str) -> str:
    return f"{rank}. {score:.3g}\n" + "\n".join(word[:12] for word in name.split()[-2:])


def _shown(found: dict[tuple[str, str], compare.Pair], a: str, b: str) -> float:
    """What colours a cell: a tie has no colour."""
    pair = found.get((a, b))
    return pair.difference.mean if pair and pair.outcome != "tie" else 0.0


def _word(found: dict[tuple[str, str], compare.Pair], a: str, b: str) -> str:
    if (a, b) not in found:
        return ""
    outcome = found[a, b].outcome
    return f"{found[a, b].difference.mean:+.2f}" + (f"\n{outcome}" if outcome != "tie" else "")


def _number(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        return nan


def _finite_mean(values: list[float]) -> float:
    known = [v for v in values if isfinite(v)]
    return float(np.mean(known)) if known else nan
