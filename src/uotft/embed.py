"""Images + backbone -> features, in evaluation mode, in the order of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from uotft.images import ahead, to_input
from uotft.network import Network
from uotft.records import Pixels


@torch.no_grad()
def features(
    network: Network,
    images: Pixels,
    accelerator: Accelerator,
    *,
    batch_size: int = 512,
    progress: Callable[..., Iterable[int]] = lambda starts, label: starts,
) -> NDArray[np.float32]:
    """uint8 (n, H, W) or (n, H, W, 3) -> (n, D) float32: what the heads see."""
    backbone, device = network.backbone.eval().to(accelerator.device), accelerator.device
    parts = []
    starts = progress(range(0, len(images), batch_size), "embedding")
    for pixels in ahead(lambda i: images[i : i + batch_size], starts):
        batch = torch.as_tensor(pixels, device=device)
        parts.append(backbone(to_input(batch, network.channels)))
    return np.asarray(torch.cat(parts).cpu().numpy())


@torch.no_grad()
def projected(network: Network, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, D) -> (n, D'): what selection compares, by a backbone that has a ``project``."""
    project = network.backbone.get_submodule("project").eval()
    weight = next(project.parameters())
    return np.asarray(project(torch.as_tensor(features).to(weight)).cpu().numpy())
