"""Network + images -> the predicted class of each image, and the confusion matrix.

Each image is predicted exactly once, whatever the number of processes.
"""

from __future__ import annotations

import numpy as np
import torch
from accelerate.utils import broadcast
from numpy.typing import NDArray

from uotft.core.context import Context
from uotft.core.errors import Interrupted
from uotft.core.records import Pixels
from uotft.models.inputs import ahead, beside, to_input
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

    With W processes, each predicts every W-th image and leaves zeros elsewhere; the sum over
    processes is the result. So the shares may differ in size, and need no padding as gathering
    would. All processes use rank 0's batch-norm buffers, which are the ones saved in the model; in
    training each process has its own. If one process is asked to stop, all raise ``Interrupted``
    after the same batch.
    """
    network.eval()
    accelerator = context.accelerator
    for buffer in network.buffers():
        broadcast(buffer)
    world = accelerator.num_processes
    found = torch.zeros(2, len(images), dtype=torch.int64, device=accelerator.device)
    mine = np.arange(accelerator.process_index, len(images), world)
    # every rank has the same number of batches (the last may be empty), because `agreed` below
    # must be called by all ranks
    starts = range(0, -(-len(images) // world), batch_size)
    batches = [mine[start : start + batch_size] for start in starts]
    read = beside(
        lambda rows: (rows, torch.as_tensor(images[rows], device=accelerator.device)),
        accelerator.device,
        lambda made: [made[1]],
    )
    for rows, pixels in ahead(read, batches):
        if agreed(context.stop, accelerator):
            raise Interrupted("interrupted while images were being predicted")
        if not len(rows):
            continue
        found[0, rows] = network(to_input(pixels, network.channels))["target"].argmax(1)
        found[1, rows] += 1
    total: torch.Tensor = accelerator.reduce(found, "sum")
    predicted, times = total.cpu().numpy()
    if not (times == 1).all():
        raise RuntimeError(f"predicted {(times == 1).sum()} of {len(images)} images exactly once")
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
    """The confusion matrix of the target head's predictions: counts (classes, classes)."""
    predicted = answers(network, images, context, batch_size=batch_size)
    return metrics.confusion(labels, predicted, classes)
