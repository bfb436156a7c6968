"""The stage forecast: pre-trained weights and selections -> delta^2 before any training.

``hindsight`` is its part of the report: what was foretold beside what was gained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.analysis.statistics import Interval, interval
from uotft.core import storage
from uotft.core.records import Cell, Progress, Scores
from uotft.data import subset
from uotft.pipeline.select import read_selection, source_bank, source_images, target_bank
from uotft.pipeline.workspace import Workspace
from uotft.selection import ranking

if TYPE_CHECKING:
    from uotft.analysis.figures import Part
    from uotft.analysis.forecast_evaluation import Values
    from uotft.training.gradients import Products

PANELS = {"delta2": "forecast δ²", "cosine": "cosine of mean gradients"}
NOTE = (
    "δ²: mean squared distance between the target's gradient and those of the kept source images, "
    "at the pre-trained weights, in the backbone (equation 4 of Liu et al.; a small one promises "
    "a gain). Cosine: of the two mean gradients. Correlations with 95 % intervals from a bootstrap "
    "over seeds; these strategies are fixed, so another set of strategies may correlate otherwise."
)


def forecast(ws: Workspace, target: str, *, progress: Progress) -> dict[str, Any]:
    """delta^2 of every strategy and seed, at its own K and along K; writes forecast/TARGET.json.

    Empty where single images are selected: a gradient for each of them would not fit in memory.
    """
    if ws.params.select.unit == "image":
        storage.write_json(ws.forecast(target), {})
        return {}
    geometry = gradient_products(ws, target, ws.params.seeds, progress=progress)
    cells: dict[str, dict[str, Any]] = {}
    for strategy in ws.params.strategies:
        for seed in ws.params.seeds:
            chosen = read_selection(ws, Cell(target, strategy, seed))
            if chosen["classes"]:
                kept = np.array([c["row"] for c in chosen["classes"]])
                cells.setdefault(strategy, {})[str(seed)] = {
                    "selected": measured(geometry[seed], kept, len(kept)),
                    "curve": [
                        measured(geometry[seed], ranked(chosen), k)
                        for k in grid(len(ranked(chosen)), ws.params.forecast.points)
                    ],
                }
    storage.write_json(ws.forecast(target), cells)
    return cells


def gradient_products(
    ws: Workspace, target: str, seeds: list[int], *, progress: Progress
) -> dict[int, Products]:
    """Products of source and target gradients for each seed, with the heads training starts from.

    The source head is the whole pre-trained classifier, so that a class's gradient does not depend
    on which others are selected; that of a cluster is the mean over its images, class by class.
    """
    import torch

    from uotft.models import model_io
    from uotft.models.inputs import Views
    from uotft.models.network import Network, nearest_mean_rows, random_rows
    from uotft.training import gradients, runtime

    device = runtime.start(0, ws.params.cpu_threads).device
    pretrained, _ = model_io.read(ws.pretrained())
    pretrained = pretrained.to(device)
    images, settings = ws.images(target), ws.params.train
    pool = images.rows("train")
    targets = []
    for seed in seeds:
        network = Network(pretrained.backbone, target=len(images.names)).to(device)
        if settings.target_head == "class_means":
            means = torch.as_tensor(target_bank(ws, target, seed).head_means(), dtype=torch.float32)
            start = nearest_mean_rows(means, settings.head_scale)
        else:
            start = random_rows("target", network.head("target").weight.shape, seed)
        network.start_head("target", *start)
        rows = pool[subset.draw(images.labels[pool], ws.params.subset, seed)]
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
    """The measures of the first ``k`` classes of ``order``."""
    from uotft.training import gradients

    return {"k": k, **gradients.measures(products, order[:k])}


def ranked(chosen: dict[str, Any]) -> NDArray[np.int64]:
    """Rows of all classes that a selection.json could keep at some K, best first."""
    names = tuple(chosen["scores"])
    values = [-np.inf if v is None else v for v in chosen["scores"].values()]
    return ranking.keep(Scores(np.array(values)), names, len(names))


def grid(largest: int, points: int) -> list[int]:
    """At most ``points`` numbers of classes from 1 to ``largest``, evenly on a log scale."""
    return sorted({round(float(k)) for k in np.geomspace(1, largest, points)})


def hindsight(ws: Workspace, target: str, top1: dict[str, Values]) -> tuple[list[Part], str]:
    """The forecast beside the gains in ``top1`` (validation and test): report parts, Markdown.

    Nothing without the strategy none, or when no strategy keeps any class.
    """
    from uotft.analysis import figures, forecast_evaluation

    cells = storage.read_json(ws.forecast(target))
    strategies = [s for s in ws.params.strategies if s in cells]
    if "none" not in ws.params.strategies or not strategies:
        return [], ""

    def of(measure: str) -> Values:
        return {
            s: {int(i): c["selected"][measure] for i, c in cells[s].items()} for s in strategies
        }

    measured = {name: of(name) for name in ("k", "delta2", "cosine")}
    gained = {part: forecast_evaluation.gains(values, strategies) for part, values in top1.items()}
    table = forecast_evaluation.table(measured, list(gained.values()))
    correlations = forecast_evaluation.correlations(measured["delta2"], gained)
    picture = figures.forecast_picture(
        target,
        ws.params.strategies,
        {title: {s: _curve(cells[s], name) for s in strategies} for name, title in PANELS.items()},
        {
            title: {s: (_mean(measured["k"][s]), _mean(measured[name][s])) for s in strategies}
            for name, title in PANELS.items()
        },
    )
    storage.write_bytes(ws.root / "reports/pictures" / f"forecast-{target}.png", picture)
    note = f"{NOTE} {forecast_evaluation.verdict(correlations)}"
    parts: list[Part] = [
        ("Forecast before training, and what came true", table),
        ("Did the forecast foretell the gain?", correlations),
        ("Forecast along K", picture),
        ("How to read the forecast", note),
    ]
    return parts, f"\n{figures.markdown(table)}\n{figures.markdown(correlations)}\n{note}\n"


def _curve(seeds: dict[str, Any], measure: str) -> dict[int, Interval]:
    """{K: interval over seeds}."""
    values: dict[int, list[float]] = {}
    for cell in seeds.values():
        for point in cell["curve"]:
            values.setdefault(point["k"], []).append(point[measure])
    return {k: interval(v) for k, v in sorted(values.items())}


def _mean(seeds: dict[int, float]) -> float:
    return float(np.mean(list(seeds.values())))
