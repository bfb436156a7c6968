"""The stage evaluate: models and test images -> metrics and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Answers, Cell, Progress, Stop, never
from uotft.models import model_io
from uotft.models.inputs import Views
from uotft.pipeline import freshness, readers
from uotft.pipeline.readers import read_overlap
from uotft.pipeline.workspace import Workspace
from uotft.training import evaluation, metrics, runtime
from uotft.training.streams import decode


def evaluate(
    ws: Workspace,
    target: str,
    strategy: str,
    *,
    progress: Progress,
    known: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
    stop: Stop = never,
) -> dict[str, Any]:
    """Measure every seed of a strategy on the test images, each read once.

    Returns the results by seed, and writes them to metrics/TARGET/STRATEGY.json; accuracies are in
    percent. Predictions go to predictions/TARGET/STRATEGY.npz. ``seeds`` limits the work to these
    seeds; ``known`` then holds the results of the others, which are written again. Raises
    `UserError` if a model was trained on other images, weights or selections than today's, and
    `Interrupted` if ``stop`` says so.
    """
    context = Context(runtime.start(0, ws.params.cpu_threads), progress=progress, stop=stop)
    images = readers.images(ws, target)
    rows, data = ws.rows(target, images, "test"), storage.fingerprint(ws.data(target))
    labels, classes = images.labels[rows], len(images.names)
    clean = ~np.isin(rows, read_overlap(ws, target)["target"])
    before = storage.read_answers(ws.predictions(target, strategy)) if known else {}
    results = {**(known or {})}
    answers = {seed: said for seed, said in before.items() if str(seed) in results}
    decode(images, rows, context)
    for seed in progress(seeds or ws.seeds(target, strategy), "evaluating"):
        cell = Cell(target, strategy, seed)
        network, facts = model_io.read(ws.cell("models", cell))
        if facts["data"] != data:
            raise UserError(f"{ws.data(target)} changed since seed {seed} was trained: dvc repro")
        freshness.check_model(ws, cell, facts)
        network.to(context.accelerator.device)
        predicted = evaluation.answers(network, Views(images, rows), context)
        confusion = metrics.confusion(labels, predicted, classes)
        others = metrics.confusion(labels[clean], predicted[clean], classes)
        answers[seed] = Answers(rows, labels, predicted, images.names, data)
        results[str(seed)] = {
            **_accuracy(confusion),
            "source_classes": len(facts["reused"]),
            "model": facts["sha256"],
            "confusion": confusion.tolist(),
            # the same without test images that are also in the source
            **({} if clean.all() else {"clean": _accuracy(others)}),
        }
    storage.write_answers(ws.predictions(target, strategy), answers)
    storage.write_json(ws.metrics(target, strategy), results)
    return results


def _accuracy(confusion: NDArray[np.int64]) -> dict[str, Any]:
    if not confusion.any():
        return {"images": 0}
    return {
        "top1": metrics.top1(confusion),
        "mean_per_class": metrics.mean_per_class(confusion),
        "images": int(confusion.sum()),
    }
