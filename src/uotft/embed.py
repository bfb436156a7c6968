"""Images + backbone -> features, in evaluation mode, in the order of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from uotft.images import to_input
from uotft.network import Network


@torch.no_grad()
def features(
    network: Network,
    images: NDArray[np.uint8],
    accelerator: Accelerator,
    *,
    batch_size: int = 512,
    progress: Callable[..., Iterable[int]] = lambda starts, label: starts,
) -> NDArray[np.float32]:
    """(n, H, W) uint8 -> (n, D) float32."""
    backbone = network.backbone.eval().to(accelerator.device)
    parts = [
        backbone(to_input(torch.as_tensor(images[i : i + batch_size], device=accelerator.device)))
        for i in progress(range(0, len(images), batch_size), "embedding")
    ]
    return np.asarray(torch.cat(parts).cpu().numpy())
