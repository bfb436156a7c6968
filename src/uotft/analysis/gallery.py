"""The sections of a comparison's page that show classes and test images.

They show what was selected, where the plan sends mass, and what reuse repaired or broke. The
caller provides the images as `Images`; this module reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from math import isfinite, nan
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from uotft.analysis import figures, prediction_changes, trials
from uotft.analysis.page import Items, Part, Picture, Rows, Section, Table, Text
from uotft.analysis.prediction_changes import Changed, Sides
from uotft.analysis.trials import Line

MOST = 8  # most rows that show single classes and images
PAIRS = 3  # most pairs of classes a row, repaired and broken each
THUMBNAILS = 12  # most classes or images a row
CONFUSED = ("strategy", "true class", "taken for", "none", "with reuse", "change", "seeds")
TURNED = ("strategy", "repaired", "broken", "test images", "seeds")


class Shown(NamedTuple):
    """The name of a class or unit, and one image of it: uint8 (H, W) or (H, W, 3)."""

    name: str
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Absent:
    """Why images cannot be shown."""

    reason: str


class Images(Protocol):
    """Where the page gets its images from."""

    def examples(self, target: str, rows: list[Line], most: int) -> dict[str, list[Shown]] | Absent:
        """{label: its first ``most`` classes or kept units, in order}; ``target`` comes first.

        The labels are ``target`` and those of ``rows``. Each class or unit comes with its first
        training image.
        """

    def tested(self, target: str, data: str, rows: NDArray[np.int64]) -> NDArray[np.uint8] | Absent:
        """The images (n, H, W) or (n, H, W, 3) in ``rows`` (n,) of a target's file.

        ``data`` is the SHA-256 of the file that was tested; images of another file are absent.
        """


def classes(target: str, rows: list[Line], images: Images) -> Section:
    """Contact sheets of the classes that each row kept; without images, a table of their names."""
    heading, chosen = "Selected classes", [row for row in rows if row.first.kept][:MOST]
    if not chosen:
        return Section(
            heading, [Text("No row keeps a source class, or the runs do not say which.")]
        )
    seed = f"Lowest seed of each row, at most {THUMBNAILS} classes, best first: rank, score, name."
    found = images.examples(target, chosen, THUMBNAILS)
    if isinstance(found, Absent):
        reason = f"{seed} No pictures: {found.reason}."
        return Section(heading, [Table(_kept_classes(chosen)), Text(reason)])
    sheets = {target: [(f"\n{name[:14]}", image) for name, image in found[target]]}
    for row in chosen:
        kept = zip(row.first.kept, found[row.label], strict=False)
        sheets[row.label] = [(_caption(c["rank"], c["score"], s.name), s.image) for c, s in kept]
    picture = figures.classes_picture("", sheets, columns=THUMBNAILS)
    return Section(heading, [Text(seed), Picture(picture, "classes")])


def _kept_classes(rows: list[Line]) -> Rows:
    """Name and score of what each row kept, a column per row, best first."""
    texts = [
        [f"{c['name']} ({c['score']:.3g})" for c in row.first.kept[:THUMBNAILS]] for row in rows
    ]
    ranked = enumerate(zip_longest(*texts, fillvalue=""), 1)
    return [("rank", *(row.label for row in rows)), *((str(rank), *line) for rank, line in ranked)]


def plans(rows: list[Line]) -> Section:
    """The transport plan of each row that has one, for its lowest seed."""
    heading, pictures = "The transport plan", list[Part]()
    for row in rows[:MOST]:
        trial = row.first
        if trial.plan_KT is not None:
            kept = tuple(c["name"] for c in trial.kept)
            known = trial.answers.names if trial.answers else ()
            names = known or tuple(map(str, range(trial.plan_KT.shape[1])))
            title = f"{row.label}, seed {trial.seed}"
            pictures.append(Picture(figures.wide_plan_picture(title, trial.plan_KT, kept, names)))
    if not pictures:
        return Section(heading, [Text("No row has a plan; only the strategy uot makes one.")])
    note = Text("How much mass each kept class sends to each target class.")
    return Section(heading, [note, *pictures])


def common(rows: list[Line]) -> Section:
    """The share of kept classes that each pair of rows has in common."""
    heading = "Overlap of the selections"
    chosen = [row for row in rows if row.first.kept]
    if len(chosen) < 2:
        return Section(heading, [Text("This needs two rows that keep source classes.")])
    values = np.array([[_jaccard(a, b) for b in chosen] for a in chosen])
    texts = [[f"{v:.2f}" if isfinite(v) else "" for v in line] for line in values]
    names = [row.label for row in chosen]
    title = "classes in both / classes in either, mean over seeds"
    parts: list[Part] = [Picture(figures.square_picture(title, values, texts, names))]
    if same := trials.same_selections(rows):
        parts.append(Items(tuple(same)))
    return Section(heading, parts)


def _jaccard(a: Line, b: Line) -> float:
    """The Jaccard index of the kept classes, |A and B| / |A or B|: mean over common seeds."""
    shares = []
    for seed in a.trials.keys() & b.trials.keys():
        one, other = ({c["name"] for c in row.trials[seed].kept} for row in (a, b))
        shares.append(len(one & other) / len(one | other))
    return float(np.mean(shares)) if shares else nan


def changes(target: str, rows: list[Line], none: dict[str, str], images: Images) -> list[Section]:
    """Mistakes that reuse repaired, and new ones that it made: counts, images, pairs of classes.

    ``none`` is {row: the row of the strategy none that it is compared with}, by label.
    """
    headings = "Test images repaired and broken", "Confused classes"
    answers = prediction_changes.of_one_version(
        {
            row.label: {s: t.answers for s, t in row.trials.items() if t.answers is not None}
            for row in rows
        }
    )
    both = {
        label: found
        for label, other in none.items()
        if (found := prediction_changes.sides(answers[other], answers[label]))
    }
    if not both:
        reason = "No row has predictions for itself and for none; `uotft evaluate` writes them."
        return [Section(heading, [Text(reason)]) for heading in headings]
    first = {label: both[label] for label in [*both][:MOST]}
    note = (
        "Repaired: wrong with none, right with reuse, on the same seed; broken: the reverse. "
        "Images a seed, mean ± 95 % t-interval."
    )
    turned: list[Part] = [Table(_turned(both)), Text(note), *_thumbnails(target, first, images)]
    pairs = f"Test images a seed; the {PAIRS} largest falls and rises of each row."
    return [
        Section(headings[0], turned),
        Section(headings[1], [Table(_confused(first)), Text(pairs)]),
    ]


def _turned(both: dict[str, Sides]) -> Rows:
    """How many test images each row repaired and broke."""
    lines: Rows = [TURNED]
    for label, found in both.items():
        repaired, broken = prediction_changes.turned(found)
        images = str(len(found[0][0].rows))
        lines.append((label, str(repaired), str(broken), images, str(len(found))))
    return lines


def _confused(both: dict[str, Sides]) -> Rows:
    """The pairs of classes that each row confuses less, and those it confuses more."""
    lines: Rows = [CONFUSED]
    for label, found in both.items():
        for pair in prediction_changes.confused(found, PAIRS):
            means = f"{pair.before:.1f}", f"{pair.after:.1f}", pair.change.signed()
            lines.append((label, pair.true, pair.taken_for, *means, str(len(found))))
    return lines


def _thumbnails(target: str, both: dict[str, Sides], images: Images) -> list[Part]:
    """The images that most seeds repaired, and those that most seeds broke."""
    groups = {
        (label, verb): prediction_changes.changed(found, THUMBNAILS, repaired=verb == "repaired")
        for label, found in both.items()
        for verb in ("repaired", "broke")
    }
    [(example, _), *_] = next(iter(both.values()))
    rows = np.array([c.row for changed in groups.values() for c in changed], np.int64)
    found = images.tested(target, example.data, rows)
    if isinstance(found, Absent):
        return [Text(f"No pictures: {found.reason}.")]
    pictures = iter(found)
    sheets = {
        f"{label}\n{verb}": [(_answers(c, len(both[label])), next(pictures)) for c in changed]
        for (label, verb), changed in groups.items()
    }
    note = "Above each image: its class; prediction of none → with reuse; on how many seeds."
    return [Picture(figures.classes_picture("", sheets, columns=THUMBNAILS)), Text(note)]


def _answers(image: Changed, seeds: int) -> str:
    return f"{image.true[:14]}\n{image.before[:9]} → {image.after[:9]}\n{image.times} of {seeds}"


def _caption(rank: int, score: float, name: str) -> str:
    return f"{rank}. {score:.3g}\n" + "\n".join(word[:12] for word in name.split()[-2:])
