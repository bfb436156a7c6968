"""What explains how well a selection does: near classes, diverse ones, or alike gradients?

    python experiments/kept.py DEFINITION.yaml RUNS.csv > kept.csv     # in the project's folder

One line for each training that reuses classes, before any step:

- ``distance``: mean cosine distance from a kept class's mean to the nearest target class's;
- ``diversity``: mean cosine distance between two kept classes' means;
- ``gradients``: cosine between the gradients of two mean losses in the backbone's weights, that of
  the target's validation images and that of IMAGES source images of kept classes. Heads start from
  class means, norms are in evaluation mode.

``gain`` is the accuracy (mean per class, %) less that of the same seed of the definition's row
"equal compute" with the same norms. The rank correlations (Spearman) with the gain go to standard
error, over all trainings with the same norms.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch.nn import functional

from uotft.core.records import Cell, Floats
from uotft.models import model_io
from uotft.models.inputs import Views, to_input
from uotft.models.network import nearest_mean_rows
from uotft.pipeline import readers
from uotft.pipeline.workspace import Workspace

IMAGES = 256  # of the source, drawn with the training's seed
BATCH = 64
MEASURES = ("distance", "diversity", "gradients")
CONTROL = "equal compute"
FROZEN = ", frozen"


def distances(a: Floats, b: Floats) -> Floats:
    """Cosine distances (A, B) between the rows of two arrays of class means."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return 1 - a @ b.T


def gradient(
    backbone: torch.nn.Module, means: Floats, scale: float, images: Views, labels: NDArray[np.int64]
) -> torch.Tensor:
    """The gradient (P,) of the mean loss, with a head that starts from the class means (T, D)."""
    weight, bias = nearest_mean_rows(torch.as_tensor(means, dtype=torch.float32), scale)
    backbone.zero_grad()
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        pixels = to_input(torch.as_tensor(images[part]), backbone.channels)
        scores = functional.linear(backbone(pixels), weight, bias)
        wanted = torch.as_tensor(labels[part])
        (functional.cross_entropy(scores, wanted, reduction="sum") / len(images)).backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])


def cells(definition: dict[str, Any]) -> list[tuple[str, Workspace, str]]:
    """(label, workspace, strategy) of the rows that reuse classes."""
    ws = Workspace.find()
    return [
        (row["label"], ws.with_changes([*definition["set"], *row["set"]]), row["strategy"])
        for row in definition["rows"]
        if row["strategy"] != "none"
    ]


def main(definition_file: str, runs_file: str) -> None:
    """Print a line a training, then the correlations."""
    definition = yaml.safe_load(Path(definition_file).read_text())
    [target] = definition["targets"]
    with open(runs_file, encoding="utf-8", newline="") as file:
        reached = {
            (r["row"], int(r["seed"])): float(r["mean_per_class"])
            for r in csv.DictReader(file)
            if r["target"] == target
        }
    known: dict[int, tuple[Floats, torch.Tensor]] = {}
    made: dict[tuple[tuple[int, ...], int], tuple[float, float, float]] = {}
    backbone, lines = None, []
    for label, ws, strategy in cells(definition):
        scale = ws.params.train.head_scale
        if backbone is None:
            backbone = model_io.read(ws.pretrained())[0].backbone.eval()
        for seed in sorted(seed for row, seed in reached if row == label):
            if seed not in known:
                means = readers.target_bank(ws, target, seed).means
                images = readers.images(ws, target)
                rows = images.rows("val")
                own = gradient(backbone, means, scale, Views(images, rows), images.labels[rows])
                known[seed] = means, own
            of_target, toward = known[seed]
            chosen = readers.read_selection(ws, Cell(target, strategy, seed))["classes"]
            kept = tuple(c["row"] for c in chosen)
            if (kept, seed) not in made:
                part = readers.source_part(ws, np.array(kept))
                drawn = np.random.default_rng(seed).permutation(len(part.rows))[:IMAGES]
                views = Views(part.data, part.rows[drawn])
                own = gradient(backbone, part.means, scale, views, part.labels[drawn])
                among = distances(part.means, part.means)
                made[kept, seed] = (
                    float(distances(part.means, of_target).min(1).mean()),
                    float(among.sum() / (len(among) * (len(among) - 1))),
                    float(functional.cosine_similarity(own, toward, 0)),
                )
            control = CONTROL + FROZEN * label.endswith(FROZEN)
            gain = reached[label, seed] - reached[control, seed]
            lines.append((label, seed, *made[kept, seed], gain))
    for frozen in (False, True):
        own = [line for line in lines if line[0].endswith(FROZEN) == frozen]
        for place, name in enumerate(MEASURES, 2):
            found = spearmanr([line[place] for line in own], [line[-1] for line in own])
            norms = "frozen" if frozen else "moving"
            said = f"{found.statistic:+.2f}, p {found.pvalue:.2f}"
            print(f"{norms} norms, {name} and gain: {said}, {len(own)} trainings", file=sys.stderr)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("row", "seed", *MEASURES, "gain"))
    writer.writerows((label, seed, *(f"{n:.4f}" for n in rest)) for label, seed, *rest in lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
