"""Images + backbone -> features, in evaluation mode, some batches at a time.

Which images make a batch depends on their number alone, so on the CPU any number of processes, and
any part of the work that is left, gives every image the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from uotft.core.context import Context
from uotft.core.errors import Interrupted
from uotft.core.records import Pixels, silently
from uotft.models.inputs import ahead, beside, to_input
from uotft.models.network import Network


@torch.no_grad()
def shards(
    network: Network,
    images: Pixels,
    wanted: Sequence[range],
    context: Context,
    *,
    batch_size: int = 512,
) -> Iterator[tuple[range, NDArray[np.float32]]]:
    """(rows, their features (len(rows), D) float32: what the heads see) for each of ``wanted``.

    ``images`` are uint8 (n, H, W) or (n, H, W, 3). Ends after the batch in which it is told to
    stop.
    """
    backbone, device = (
        network.backbone.eval().to(context.accelerator.device),
        context.accelerator.device,
    )
    batches = [rows[i : i + batch_size] for rows in wanted for i in range(0, len(rows), batch_size)]
    made = ahead(
        beside(
            lambda rows: torch.as_tensor(images[rows.start : rows.stop], device=device),
            device,
            lambda batch: [batch],
        ),
        context.progress(batches, "embedding"),
    )
    for rows in wanted:
        parts = []
        for _ in range(0, len(rows), batch_size):
            if context.stop():
                return
            parts.append(backbone(to_input(next(made), network.channels)))
        yield rows, np.asarray(torch.cat(parts).cpu().numpy())


def features(network: Network, images: Pixels, context: Context) -> NDArray[np.float32]:
    """The features (n, D) of a few images, all at once; ``Interrupted`` when it is to stop."""
    quiet = replace(context, progress=silently)
    for _, found in shards(network, images, [range(len(images))], quiet):
        return found
    raise Interrupted("embedding was interrupted")


@torch.no_grad()
def projected(network: Network, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, D) -> (n, D'): what selection compares, by a backbone that has a ``project``."""
    project = network.backbone.get_submodule("project").eval()
    weight = next(project.parameters())
    return np.asarray(project(torch.as_tensor(features).to(weight)).cpu().numpy())
