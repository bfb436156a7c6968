"""Weights + images -> confusion matrix, every image counted exactly once on any number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from uotft.images import ahead, to_input
from uotft.network import Network
from uotft.records import Pixels


@torch.no_grad()
def confusion(
    network: Network,
    images: Pixels,
    labels: NDArray[np.int64],
    accelerator: Accelerator,
    *,
    classes: int,
    batch_size: int = 512,
) -> NDArray[np.int64]:
    """Predict with the target head; returns the integer matrix (classes, classes)."""
    network.eval()
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=accelerator.device)
    mine = np.arange(accelerator.process_index, len(images), accelerator.num_processes)
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    for rows, part in ahead(lambda rows: (rows, images[rows]), batches):
        pixels = torch.as_tensor(part, device=accelerator.device)
        true = torch.as_tensor(labels[rows], device=accelerator.device)
        predicted = network(to_input(pixels, network.channels))["target"].argmax(1)
        counts += torch.bincount(true * classes + predicted, minlength=classes * classes)
    total: torch.Tensor = accelerator.reduce(counts, "sum")
    if int(total.sum()) != len(images):
        raise RuntimeError(f"evaluated {int(total.sum())} of {len(images)} images")
    return total.cpu().numpy().reshape(classes, classes)
