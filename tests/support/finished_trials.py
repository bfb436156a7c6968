"""Finished trainings made by hand, which tests of comparisons share."""

from __future__ import annotations

import numpy as np

from uotft.analysis.trials import Line
from uotft.core.records import Answers, Cell, Origin, Trial
from uotft.pipeline import readers, workspace

NAMES = ("cat", "dog", "cow")
SETTINGS = {
    "train.objective": "joint",
    "train.target_batch": "4",
    "train.source_batch": "6",
    "select.top_k": "2",
}


def trial(
    strategy: str = "none", seed: int = 0, top1: float = 80.0, target: str = "pets", **more: object
) -> Trial:
    """A training of 10 steps, with ``settings`` over the usual ones and the rest as given."""
    settings = SETTINGS | {"strategy": strategy, "seed": str(seed)} | dict(more.pop("settings", {}))
    kept = [] if strategy == "none" else ["lion", "wolf"]
    classes = [
        {"rank": i, "name": name, "row": i, "score": -float(i)} for i, name in enumerate(kept, 1)
    ]
    usual = {
        "test": {"top1": top1, "mean_per_class": top1 - 1},
        "curve": {0: 50.0, 10: top1},
        "selection": {"classes": classes, "fingerprints": {"source": "x"}},
        "origin": Origin(f"{strategy}{seed}", seed, 2.0, {"git.commit": "abc"}),
    }
    return Trial(target, strategy, seed, settings=settings, **(usual | more))


def answers(*predicted: int, labels: tuple[int, ...] = (0, 0, 1, 1, 2, 2)) -> Answers:
    """What a model said of the six test images in rows 10 to 15."""
    rows = np.arange(10, 10 + len(labels))
    return Answers(rows, np.array(labels), np.array(predicted), NAMES, "data")


def line_of(ws: workspace.Workspace, target: str, strategy: str) -> Line:
    """The row of a strategy, of seed 0 alone, with the selection that is there."""
    chosen = readers.read_selection(ws, Cell(target, strategy, 0))
    return Line(target, strategy, strategy, {}, {0: trial(strategy, 0, selection=chosen)})
