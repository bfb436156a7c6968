"""How far do norm statistics drift in training, and is it the drift that costs accuracy?

    python experiments/norm_statistics.py RUNS.csv > statistics.csv     # in the project's folder

One line for each trained model of the runs, on images of the target that its training did not
see: the validation part, and the training images beyond the labelled ones.

- ``shift``: mean of |m' - m| / s over all channels of all layers; m and s are a channel's mean and
  standard deviation in the pre-trained network, m' its mean after training;
- ``scale``: mean of |ln(s' / s)|;
- ``own``, ``pretrained``, ``target``: accuracy (mean per class, %) with the model's own statistics,
  with those of the pre-trained network in their place, and with those of the labelled target images
  under the trained weights. Nothing else of the model changes.
"""

from __future__ import annotations

import csv
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uotft.core.records import Cell, ImageSet
from uotft.data import subset
from uotft.models import model_io
from uotft.models.inputs import Views, to_input
from uotft.models.network import Network
from uotft.pipeline import readers
from uotft.pipeline.workspace import Workspace
from uotft.training import metrics
from uotft.training.finish import reestimate_norm

BATCH = 64
COLUMNS = ("row", "seed", "shift", "scale", "own", "pretrained", "target")


def norms(network: Network) -> list[Any]:
    """The layers of the backbone that keep statistics, in order."""
    return [m for m in network.backbone.modules() if getattr(m, "running_mean", None) is not None]


def drift(trained: Network, before: Network) -> tuple[float, float]:
    """(shift, scale) as above."""
    shifts, scales = [], []
    for new, old in zip(norms(trained), norms(before), strict=True):
        old_var, new_var = old.running_var + old.eps, new.running_var + new.eps
        shifts.append((new.running_mean - old.running_mean).abs() / old_var.sqrt())
        scales.append((new_var / old_var).log().abs() / 2)
    return float(torch.cat(shifts).mean()), float(torch.cat(scales).mean())


@torch.no_grad()
def accuracy(network: Network, images: ImageSet, rows: NDArray[np.int64]) -> float:
    """Mean accuracy per class, in percent, in evaluation mode."""
    network.eval()
    views, found = Views(images, rows), []
    for start in range(0, len(rows), BATCH):
        pixels = to_input(torch.as_tensor(views[start : start + BATCH]), network.channels)
        found.append(network.head("target")(network.backbone(pixels)).argmax(1))
    predicted, classes = torch.cat(found).numpy(), len(images.names)
    return metrics.mean_per_class(metrics.confusion(images.labels[rows], predicted, classes))


def line(ws: Workspace, cell: Cell, before: Network) -> tuple[float, ...]:
    """The numbers of one model."""
    trained, _ = model_io.read(ws.cell("models", cell))
    images = readers.images(ws, cell.target)
    pool = images.rows("train")
    seen = pool[subset.sample(images.labels[pool], ws.params.subset, cell.seed)]
    rows = np.setdiff1d(np.concatenate([pool, images.rows("val")]), seen)
    moved, own = drift(trained, before), accuracy(trained, images, rows)
    for new, old in zip(norms(trained), norms(before), strict=True):
        new.running_mean.copy_(old.running_mean)
        new.running_var.copy_(old.running_var)
    pretrained = accuracy(trained, images, rows)
    reestimate_norm(trained, Views(images, seen))
    return *moved, own, pretrained, accuracy(trained, images, rows)


def main(runs_file: str) -> None:
    """Print a line a model."""
    project = Workspace.find()
    before, _ = model_io.read(project.pretrained())
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    with open(runs_file, encoding="utf-8", newline="") as file:
        for run in csv.DictReader(file):
            ws = project.with_changes(run["settings"].split())
            if ws.params.train.objective == "frozen":
                continue
            numbers = line(ws, Cell(run["target"], run["strategy"], int(run["seed"])), before)
            writer.writerow((run["row"], run["seed"], *(f"{n:.4f}" for n in numbers)))
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
