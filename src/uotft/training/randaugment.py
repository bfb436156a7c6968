"""RandAugment (Cubuk et al. 2020): n random operations per image, all of magnitude m out of 30.

The fourteen operations and their ranges are those of the paper's table, as in torchvision. This
module samples them itself, since torchvision uses the global generator, and one sample per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import atan, degrees

import numpy as np
import torch
from torch import Tensor

from uotft.core.settings import Augment

#: (images (n, C, H, W) in [0, 1], strength in [0, 1], sign) -> images
Operation = Callable[[Tensor, float, int], Tensor]


def randaugment(
    images: Tensor, augment: Augment, rng: np.random.Generator, batch: int, share: slice
) -> Tensor:
    """Distort images (n, C, H, W) in [-1, 1]: this process's ``share`` of ``batch`` images."""
    table, size = operations(), (batch, augment.operations)
    # sampled for the whole batch, so that the result does not depend on the number of processes
    sampled = np.stack([rng.integers(len(table), size=size), rng.choice([-1, 1], size=size)], 2)
    images, strength = (images + 1) / 2, augment.magnitude / 30
    for turn in sampled[share].swapaxes(0, 1):  # (n, 2): operation and sign for each image
        for number, sign in np.unique(turn, axis=0).tolist():
            rows = np.flatnonzero((turn == (number, sign)).all(1))
            chosen = torch.as_tensor(rows, device=images.device)
            images[chosen] = table[number](images[chosen], strength, sign)
    return images.clamp(0, 1) * 2 - 1


def operations() -> list[Operation]:
    """The operations; `randaugment` samples an index into this list, so their order is fixed."""
    from torchvision.transforms.v2 import functional as f

    def shear(images: Tensor, x: float, y: float) -> Tensor:
        angles = [degrees(atan(x)), degrees(atan(y))]
        turned: Tensor = f.affine_image(images, 0.0, [0, 0], 1.0, angles, center=[0, 0])
        return turned

    def shift(images: Tensor, x: float, y: float) -> Tensor:
        height, width = images.shape[-2:]
        pixels = [int(x * width), int(y * height)]
        moved: Tensor = f.affine_image(images, 0.0, pixels, 1.0, [0.0, 0.0])
        return moved

    return [
        lambda images, m, sign: images,
        lambda images, m, sign: f.adjust_brightness(images, 1 + 0.9 * m * sign),
        lambda images, m, sign: f.adjust_saturation(images, 1 + 0.9 * m * sign),
        lambda images, m, sign: f.adjust_contrast(images, 1 + 0.9 * m * sign),
        lambda images, m, sign: f.adjust_sharpness(images, 1 + 0.9 * m * sign),
        lambda images, m, sign: f.rotate(images, 30 * m * sign),
        lambda images, m, sign: shear(images, 0.3 * m * sign, 0),
        lambda images, m, sign: shear(images, 0, 0.3 * m * sign),
        lambda images, m, sign: shift(images, 150 / 331 * m * sign, 0),
        lambda images, m, sign: shift(images, 0, 150 / 331 * m * sign),
        lambda images, m, sign: f.posterize(images, 8 - round(4 * m)),
        lambda images, m, sign: f.solarize(images, 1 - m),
        lambda images, m, sign: f.autocontrast(images),
        lambda images, m, sign: f.equalize(images),
    ]
