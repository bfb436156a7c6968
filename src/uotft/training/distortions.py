"""Random distortions of training images: crop boxes, affine maps, contrast, blank squares.

`streams` draws the random numbers for the whole global batch; the functions here apply them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from uotft.core.records import Floats
from uotft.core.settings import Augment

RATIO = 3 / 4  # width : height of a random crop lies between this and its inverse


def random_boxes(sizes: NDArray[np.int32], smallest: float, rng: np.random.Generator) -> Floats:
    """A random crop box per picture, (n, 4): corner and extent, y before x, as shares of the sides.

    ``sizes`` (n, 2) are heights and widths. This is Inception's crop, as in torchvision's
    RandomResizedCrop: the area is at least ``smallest`` of the picture's, the ratio of the sides at
    most RATIO. The first of ten random boxes that fits is used; if none fits, the largest central
    one.
    """
    height, width = sizes.T.astype(float)
    area = rng.uniform(smallest, 1, (10, len(sizes))) * height * width
    ratio = np.exp(rng.uniform(np.log(RATIO), -np.log(RATIO), area.shape))
    extents = np.stack([np.sqrt(area / ratio) / height, np.sqrt(area * ratio) / width], 2)
    fits = extents.max(2) <= 1
    first = extents[fits.argmax(0), np.arange(len(sizes))]
    shape = width / height
    middle = np.stack([shape / np.maximum(shape, RATIO), np.minimum(shape, 1 / RATIO) / shape], 1)
    found = fits.max(0)[:, None]
    extent = np.where(found, first, middle)
    corner = np.where(found, rng.random((len(sizes), 2)), 0.5)
    return np.concatenate([corner * (1 - extent), extent], 1)


def crops_at_once(images: Tensor, boxes: Floats, size: int) -> Tensor:
    """Crop (n, C, H, W) to ``boxes`` (n, 4) in one bilinear call, for a GPU: (n, C, size, size)."""
    extent = torch.as_tensor(boxes[:, 2:], dtype=torch.float32)
    middle = torch.as_tensor(boxes[:, :2], dtype=torch.float32) + extent / 2
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = extent[:, 1], extent[:, 0]
    theta[:, 0, 2], theta[:, 1, 2] = 2 * middle[:, 1] - 1, 2 * middle[:, 0] - 1
    grid = _grid(theta.to(images.device), size, size)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def affines(augment: Augment, n: int, rng: np.random.Generator) -> Tensor:
    """n random affine maps, (n, 2, 3), in the coordinates of torch's ``affine_grid``."""
    angle = rng.normal(0, augment.rotation, n)
    shear = rng.normal(0, augment.shear, n)
    zoom = rng.uniform(1 - augment.zoom, 1 + augment.zoom, (2, n))
    shift = rng.normal(0, 2 * augment.shift, (2, n))
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [
        [cos * zoom[0], (cos * shear - sin) * zoom[1], shift[0]],
        [sin * zoom[0], (sin * shear + cos) * zoom[1], shift[1]],
    ]
    return torch.as_tensor(np.array(rows), dtype=torch.float32).permute(2, 0, 1)


def warp(images: Tensor, theta: Tensor) -> Tensor:
    """Warp (n, C, H, W) by affine maps (n, 2, 3); pixels from outside are background (-1)."""
    grid = _grid(theta.to(images.device), *images.shape[2:])
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def stretch(images: Tensor, contrast: Floats) -> Tensor:
    """Scale each image's (n, C, H, W) distance from its own mean by ``contrast`` (n,)."""
    factor = torch.as_tensor(contrast, dtype=torch.float32, device=images.device)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + factor[:, None, None, None] * (images - mean)).clamp(-1, 1)


def cut_out(images: Tensor, corner: Floats, side: float) -> Tensor:
    """Cutout (DeVries and Taylor 2017): set a square of each image to -1, wholly inside the image.

    ``corner`` (2, n) in [0, 1) places the square; ``side`` is its share of the image's sides.
    """
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        size = round(side * length)
        start = torch.as_tensor(np.floor(corner[axis] * (length - size + 1)), device=images.device)
        position = torch.arange(length, device=images.device)
        inside.append((position >= start[:, None]) & (position < start[:, None] + size))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(square, -1)


def _grid(theta: Tensor, height: int, width: int) -> Tensor:
    """torch's ``affine_grid`` of (n, 2, 3): (n, height, width, 2), but faster on a CPU."""
    x, y = (
        torch.linspace(-1, 1, length, device=theta.device) * (length - 1) / length
        for length in (width, height)
    )
    of_x, of_y, shift = theta[:, None, None].unbind(-1)
    return x[:, None] * of_x + y[:, None, None] * of_y + shift
