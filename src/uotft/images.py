"""Pixels in memory, and the endless streams of batches that training reads.

A stream's order is a function of (seed, stream name, epoch) and its distortions of (seed, stream
name, view, step), drawn for the whole global batch before a process takes its share: neither
depends on the number of processes, and any step can be asked for directly. Two streams of one name
and two views are the same images in the same order, distorted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from uotft.config import Augment
from uotft.records import Floats

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Batch:
    """``images`` (n, C, H, W) in [-1, 1], ``labels`` (n,)."""

    images: Tensor
    labels: Tensor


def to_input(pixels: Tensor, channels: int = 1) -> Tensor:
    """uint8 (n, H, W) grey or (n, H, W, 3) colour -> float (n, ``channels``, H, W) in [-1, 1].

    Grey is repeated for a backbone that wants colour; colour becomes grey as in Pillow (ITU-R 601).
    """
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    images = images.float().div_(127.5).sub_(1)
    if images.shape[1] > channels:
        return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return images.expand(-1, channels, -1, -1)


class Stream:
    """Endless shuffled, distorted batches of one labelled set; ``stream[step]`` is a Batch.

    ``channels``, those of the batches, are what the backbone wants, not what the images have.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        name: str,
        batch_size: int,
        seed: int,
        augment: Augment,
        view: int = 1,
        channels: int = 1,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        origin: NDArray[np.int64] | None = None,
    ) -> None:
        if not len(images):
            raise ValueError(f"the {name} stream has no images")
        self.images = torch.as_tensor(images, device=device)
        self.labels = torch.as_tensor(labels, device=device)
        self.origin = np.arange(len(images)) if origin is None else origin  # for messages
        self.batch_size, self.augment = batch_size, augment
        self.view, self.channels = view, channels
        self.key = (seed, crc32(name.encode()))
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The row numbers of the global batch at ``step``."""
        n = len(self.images)
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            epoch: np.random.default_rng((*self.key, 0, epoch)).permutation(n)
            for epoch in np.unique(position // n).tolist()
        }
        return np.array([orders[p // n][p % n] for p in position.tolist()])

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the global batch at ``step``."""
        rows = torch.as_tensor(self.rows(step)[self.share], device=self.images.device)
        rng = np.random.default_rng((*self.key, self.view, step))  # 0 is the order's
        theta = _affines(self.augment, self.batch_size, rng)[self.share]
        contrast = rng.uniform(
            1 - self.augment.contrast, 1 + self.augment.contrast, self.batch_size
        )
        corner = rng.random((2, self.batch_size))
        images = _warp(to_input(self.images[rows], self.channels), theta)
        if self.augment.contrast:
            images = _stretch(images, contrast[self.share])
        if self.augment.cutout:
            images = _cut_out(images, corner[:, self.share], self.augment.cutout)
        return Batch(images, self.labels[rows])


def _affines(augment: Augment, n: int, rng: np.random.Generator) -> Tensor:
    """n random affine maps, (n, 2, 3), in the coordinates of ``affine_grid``."""
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


def _warp(images: Tensor, theta: Tensor) -> Tensor:
    """Warp (n, C, H, W) by (n, 2, 3); what lies outside is background (-1)."""
    grid = functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def _stretch(images: Tensor, contrast: Floats) -> Tensor:
    """Scale each image's (n, C, H, W) distance from its own mean by ``contrast`` (n,)."""
    factor = torch.as_tensor(contrast, dtype=torch.float32, device=images.device)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + factor[:, None, None, None] * (images - mean)).clamp(-1, 1)


def _cut_out(images: Tensor, corner: Floats, side: float) -> Tensor:
    """Blank a square of each image (DeVries and Taylor 2017), wholly inside the picture.

    ``corner`` (2, n) in [0, 1) places it, ``side`` is a share of the picture's; blank is -1.
    """
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        size = round(side * length)
        start = torch.as_tensor(np.floor(corner[axis] * (length - size + 1)), device=images.device)
        position = torch.arange(length, device=images.device)
        inside.append((position >= start[:, None]) & (position < start[:, None] + size))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(square, -1)
