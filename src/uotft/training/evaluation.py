"""Weights + images -> the class predicted for each, and the confusion matrix.

Every image is answered exactly once on any number of ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from accelerate.utils import broadcast
from numpy.typing import NDArray

from uotft.core.context import Context
from uotft.core.errors import Interrupted
from uotft.core.records import Pixels
from uotft.models.inputs import ahead, to_input
from uotft.models.network import Network
from uotft.training import metrics
from uotft.training.runtime import agreed


@torch.no_grad()
def answers(
    network: Network,
    images: Pixels,
    context: Context,
    *,
    batch_size: int = 512,
) -> NDArray[np.int64]:
    """The target class that the network predicts for each image: (n,).

    Ranks take every world-th image and their answers are added up, zero elsewhere: shares may
    differ in size, and nothing is padded, as gathering would need. All take the batch-norm buffers
    of the first rank, which are those that are written; in training each has its own. When one of
    them is told to stop, all leave after the same batch, by ``Interrupted``.
    """
    network.eval()
    accelerator = context.accelerator
    for buffer in network.buffers():
        broadcast(buffer)
    world = accelerator.num_processes
    found = torch.zeros(2, len(images), dtype=torch.int64, device=accelerator.device)
    mine = np.arange(accelerator.process_index, len(images), world)
    # as many batches on every rank, the last one perhaps empty: they agree at each
    starts = range(0, -(-len(images) // world), batch_size)
    batches = [mine[start : start + batch_size] for start in starts]
    for rows, part in ahead(lambda rows: (rows, images[rows]), batches):
        if agreed(context.stop, accelerator):
            raise Interrupted("interrupted while images were answered")
        if not len(rows):
            continue
        pixels = torch.as_tensor(part, device=accelerator.device)
        found[0, rows] = network(to_input(pixels, network.channels))["target"].argmax(1)
        found[1, rows] += 1
    total: torch.Tensor = accelerator.reduce(found, "sum")
    predicted, times = total.cpu().numpy()
    if not (times == 1).all():
        raise RuntimeError(f"answered {(times == 1).sum()} of {len(images)} images exactly once")
    return np.asarray(predicted)


def confusion(
    network: Network,
    images: Pixels,
    labels: NDArray[np.int64],
    context: Context,
    *,
    classes: int,
    batch_size: int = 512,
) -> NDArray[np.int64]:
    """Predict with the target head; returns the integer matrix (classes, classes)."""
    predicted = answers(network, images, context, batch_size=batch_size)
    return metrics.confusion(labels, predicted, classes)
