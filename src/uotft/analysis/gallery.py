"""The sections of a comparison's page that show classes and test images.

What was selected, what the plan sends where, and what reuse repaired or broke.
"""

from __future__ import annotations

from itertools import zip_longest
from math import isfinite, nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uotft.analysis import figures, prediction_changes
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.pipeline.select import source_bank, source_images
from uotft.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from uotft.analysis.figures import Part
    from uotft.analysis.trials import Line

MOST = 8  # rows of which single classes and images are shown
PAIRS = 3  # pairs of classes of a row, repaired and broken
THUMBNAILS = 12  # classes or images of a row
CONFUSED = ("strategy", "true class", "taken for", "none", "with reuse", "change", "seeds")
TURNED = ("strategy", "repaired", "broken", "test images", "seeds")


def classes(target: str, rows: list[Line], ws: Workspace | None) -> list[Part]:
    """Contact sheets of what each row kept, or a table where the images are not here."""
    heading, chosen = "Selected classes", [row for row in rows if row.first.kept][:MOST]
    if not chosen:
        return [(heading, "No row keeps a source class, or the runs do not say which.")]
    seed = f"Of each row's lowest seed, {THUMBNAILS} at most, best first: rank, score, name."
    try:
        picture = figures.classes_picture("", _sheets(ws, target, chosen), columns=THUMBNAILS)
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
    from uotft.models.inputs import Views

    if ws is None:
        raise UserError("there is no params.yaml here, and so no images")
    made = storage.fingerprint(ws.embedding(ws.params.source))
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


def plans(rows: list[Line]) -> list[Part]:
    """The plan of each row that has one, of its lowest seed."""
    heading, parts = "The transport plan", []
    for row in rows[:MOST]:
        trial = row.first
        if trial.plan_KT is not None:
            kept = tuple(c["name"] for c in trial.kept)
            known = trial.answers.names if trial.answers else ()
            names = known or tuple(map(str, range(trial.plan_KT.shape[1])))
            title = f"{row.label}, seed {trial.seed}"
            picture = figures.wide_plan_picture(title, trial.plan_KT, kept, names)
            parts.append(("", picture))
    if not parts:
        return [(heading, "No row has a plan: uot alone makes one.")]
    return [(heading, "How much mass each kept class sends to each target class."), *parts]


def common(rows: list[Line]) -> list[Part]:
    """Which share of the kept classes two rows have in common."""
    heading = "Overlap of the selections"
    chosen = [row for row in rows if row.first.kept]
    if len(chosen) < 2:
        return [(heading, "Two rows that keep source classes are needed.")]
    values = np.array([[_jaccard(a, b) for b in chosen] for a in chosen])
    words = [[f"{v:.2f}" if isfinite(v) else "" for v in line] for line in values]
    names = [row.label for row in chosen]
    title = "classes in both / classes in either, mean over seeds"
    return [(heading, figures.square_picture(title, values, words, names))]


def _jaccard(a: Line, b: Line) -> float:
    """|A and B| / |A or B| of the classes kept, mean over the seeds that both have."""
    shares = []
    for seed in a.trials.keys() & b.trials.keys():
        one, other = ({c["name"] for c in row.trials[seed].kept} for row in (a, b))
        shares.append(len(one & other) / len(one | other))
    return float(np.mean(shares)) if shares else nan


def changes(
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
        if (found := prediction_changes.sides(answers[other], answers[label]))
    }
    if not both:
        reason = "No row has the answers of its own models and those of none; evaluate keeps them."
        return [(heading, reason) for heading in headings]
    turned: list[tuple[str, ...]] = [TURNED]
    pairs: list[tuple[str, ...]] = [CONFUSED]
    for label, found in both.items():
        repaired, broken = prediction_changes.turned(found)
        images = str(len(found[0][0].rows))
        turned.append((label, str(repaired), str(broken), images, str(len(found))))
    for label, found in [*both.items()][:MOST]:
        for pair in prediction_changes.confused(found, PAIRS):
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


def _thumbnails(
    target: str, both: dict[str, prediction_changes.Sides], ws: Workspace | None
) -> list[Part]:
    """The images that most seeds repaired, and those that most seeds broke."""
    from uotft.models.inputs import Views

    [(example, _), *_] = next(iter(both.values()))
    if ws is None or not ws.data(target).is_file():
        return [("", f"Without pictures: the images of {target} are not here.")]
    if storage.fingerprint(ws.data(target)) != example.data:
        return [("", f"Without pictures: {ws.data(target)} is not the one that was tested.")]
    images, sheets = ws.images(target), {}
    for label, found in both.items():
        for word in ("repaired", "broke"):
            changed = prediction_changes.changed(found, THUMBNAILS, repaired=word == "repaired")
            shown = Views(images, np.array([c.row for c in changed], np.int64))[:]
            captions = [
                f"{c.true[:14]}\n{c.before[:9]} → {c.after[:9]}\n{c.times} of {len(found)}"
                for c in changed
            ]
            sheets[f"{label}\n{word}"] = [*zip(captions, shown, strict=True)]
    note = "Above each image: its class; the answer of none → with reuse; on how many seeds."
    return [("", figures.classes_picture("", sheets, columns=THUMBNAILS)), ("", note)]


def _caption(rank: int, score: float, name: str) -> str:
    return f"{rank}. {score:.3g}\n" + "\n".join(word[:12] for word in name.split()[-2:])
