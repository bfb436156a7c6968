"""The stage forecast: pre-trained weights and selections -> delta^2 before any training.

delta^2 is equation 4 of Liu et al. (2022), training/gradients.py. `uotft forecast TARGET` runs it;
the report compares it with the gains, analysis/forecast_evaluation.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.records import Cell, Progress, Scores
from uotft.data import subset
from uotft.pipeline import readers
from uotft.pipeline.readers import (
    labelled_features,
    read_selection,
    source_bank,
    source_images,
    target_bank,
)
from uotft.pipeline.workspace import Workspace
from uotft.selection import ranking

if TYPE_CHECKING:
    from uotft.training.gradients import Products


def forecast(ws: Workspace, target: str, *, progress: Progress) -> dict[str, Any]:
    """delta^2 of every strategy and seed, at its own K and along K; writes forecast/TARGET.json.

    The file is empty for ``unit: image``, since a gradient for each image would not fit in memory;
    for a source of which only the selected classes are here; and for one of a single class, such
    as one without labels: what always gets the right label has no gradient.
    """
    if (
        ws.params.select.unit == "image"
        or ws.by_class
        or len(storage.read_json(ws.pretrained() / "model.json")["classes"]) < 2
    ):
        storage.write_json(ws.forecast(target), {})
        return {}
    products = gradient_products(ws, target, ws.params.seeds, progress=progress)
    cells: dict[str, dict[str, Any]] = {}
    for strategy in ws.params.strategies:
        for seed in ws.params.seeds:
            chosen = read_selection(ws, Cell(target, strategy, seed))
            if chosen["classes"]:
                kept, order = np.array([c["row"] for c in chosen["classes"]]), ranked(chosen)
                cells.setdefault(strategy, {})[str(seed)] = {
                    "selected": measured(products[seed], kept, len(kept)),
                    "curve": [
                        measured(products[seed], order, k)
                        for k in grid(len(order), ws.params.forecast.points)
                    ],
                }
    storage.write_json(ws.forecast(target), cells)
    return cells


def gradient_products(
    ws: Workspace, target: str, seeds: list[int], *, progress: Progress
) -> dict[int, Products]:
    """{seed: products of source and target gradients}, with the heads that training starts from.

    The source head is the whole pre-trained classifier, so the gradient of a class does not depend
    on which other classes are selected. The gradient of a cluster is the mean over its images, each
    with the label of its own class.
    """
    import torch

    from uotft.models import model_io
    from uotft.models.inputs import Views
    from uotft.models.network import Network, as_head, nearest_mean_rows, random_rows
    from uotft.training import gradients, probe, runtime

    device = runtime.start(0, ws.params.cpu_threads).device
    pretrained, _ = model_io.read(ws.pretrained())
    pretrained = pretrained.to(device)
    images, settings = readers.images(ws, target), ws.params.train
    pool = images.rows("train")
    targets = []
    for seed in seeds:
        network = Network(pretrained.backbone, target=len(images.names)).to(device)
        if settings.target_head == "class_means":
            means = torch.as_tensor(target_bank(ws, target, seed).head_means(), dtype=torch.float32)
            start = nearest_mean_rows(means, settings.head_scale)
        elif settings.target_head == "probe":
            start = as_head(*probe.fit(*labelled_features(ws, target, seed)).head)
        else:
            start = random_rows("target", network.head("target").weight.shape, seed)
        network.start_head("target", *start)
        rows = pool[subset.sample(images.labels[pool], ws.params.subset, seed)]
        found = gradients.gradients(
            network.backbone, network.head("target"), Views(images, rows), images.labels[rows]
        )
        targets.append(found.mean())
    bank = source_bank(ws)
    source = source_images(ws, bank)
    rows = source.rows("train")
    of_source = gradients.gradients(
        pretrained.backbone, pretrained.head("target"), Views(source, rows), source.labels[rows],
        groups=bank.members, progress=progress,
    )  # fmt: skip
    return dict(zip(seeds, gradients.products(targets, of_source), strict=True))


def measured(products: Products, order: NDArray[np.int64], k: int) -> dict[str, float]:
    """The measures of the first ``k`` classes of ``order`` (S,), rows of the source."""
    from uotft.training import gradients

    return {"k": k, **gradients.measures(products, order[:k])}


def ranked(chosen: dict[str, Any]) -> NDArray[np.int64]:
    """The rows of all classes that a selection.json could keep at some K, best first."""
    names = tuple(chosen["scores"])
    values = [-np.inf if v is None else v for v in chosen["scores"].values()]
    return ranking.keep(Scores(np.array(values)), names, len(names))


def grid(largest: int, points: int) -> list[int]:
    """At most ``points`` numbers of classes from 1 to ``largest``, evenly spaced on a log scale."""
    return sorted({round(float(k)) for k in np.geomspace(1, largest, points)})
