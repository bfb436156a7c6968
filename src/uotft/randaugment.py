"""RandAugment (Cubuk et al. 2020): n random operations an image, all of strength m of 30.

The fourteen operations and their ranges are those of the paper's table, as in torchvision; they are
drawn here, because torchvision draws from the generator of the whole process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from uotft.config import Augment

Operation = Callable[[Tensor, float, int], Tensor]  # image (C, H, W) in [0, 1], strength, sign


def randaugment(
    images: Tensor, augment: Augment, rng: np.random.Generator, batch: int, share: slice
) -> Tensor:
    """Distort (n, C, H, W) in [-1, 1], which are the ``share`` of a global ``batch``."""
    table = [*operations()]
    drawn = rng.integers(len(table), size=(batch, augment.operations))[share]
    signs = rng.choice([-1, 1], size=(batch, augment.operations))[share]
    strength, changed = augment.magnitude / 30, []
    for image, numbers, directions in zip((images + 1) / 2, drawn, signs, strict=True):
        for number, sign in zip(numbers.tolist(), directions.tolist(), strict=True):
            image = table[number](image, strength, sign)
        changed.append(image)
    return torch.stack(changed).clamp(0, 1) * 2 - 1


def operations() -> list[Operation]:
    """The table, in the order in which numbers are drawn."""
    from torchvision.transforms.v2 import functional as f

    def shear(image: Tensor, x: float, y: float) -> Tensor:
        degrees = [np.degrees(np.arctan(x)), np.degrees(np.arctan(y))]
        turned: Tensor = f.affine_image(image, 0.0, [0, 0], 1.0, degrees)
        return turned

    def shift(image: Tensor, x: float, y: float) -> Tensor:
        height, width = image.shape[1:]
        pixels = [round(x * width), round(y * height)]
        moved: Tensor = f.affine_image(image, 0.0, pixels, 1.0, [0.0, 0.0])
        return moved

    return [
        lambda image, m, sign: image,
        lambda image, m, sign: f.adjust_brightness(image, 1 + 0.9 * m * sign),
        lambda image, m, sign: f.adjust_saturation(image, 1 + 0.9 * m * sign),
        lambda image, m, sign: f.adjust_contrast(image, 1 + 0.9 * m * sign),
        lambda image, m, sign: f.adjust_sharpness(image, 1 + 0.9 * m * sign),
        lambda image, m, sign: f.rotate(image, 30 * m * sign),
        lambda image, m, sign: shear(image, 0.3 * m * sign, 0),
        lambda image, m, sign: shear(image, 0, 0.3 * m * sign),
        lambda image, m, sign: shift(image, 150 / 331 * m * sign, 0),
        lambda image, m, sign: shift(image, 0, 150 / 331 * m * sign),
        lambda image, m, sign: f.posterize(image, 8 - round(4 * m)),
        lambda image, m, sign: f.solarize(image, 1 - m),
        lambda image, m, sign: f.autocontrast(image),
        lambda image, m, sign: f.equalize(image),
    ]
