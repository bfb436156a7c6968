"""Pixels -> what a network sees: the endless batches of training, and the views of tests.

A stream's order is a function of (seed, stream name, epoch) and its distortions of (seed, stream
name, view, step), drawn for the whole global batch before a process takes its share: neither
depends on the number of processes, and any step can be asked for directly. Two streams of one name
and two views are the same images in the same order, distorted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from uotft.core.config import Augment
from uotft.core.errors import UserError
from uotft.core.records import Files, Floats, ImageSet, Pixels
from uotft.data.pixel_cache import Store, pool, scaled

LUMA = (0.299, 0.587, 0.114)
AT_ONCE, IN_CACHE = 1024, 4  # images that go to a GPU together; that stay in a CPU's cache
RATIO = 3 / 4  # of a random crop's sides, or its inverse, at most
Squares = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # n times (S, S, 3)
T = TypeVar("T")
K = TypeVar("K")


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


class Views:
    """Some rows of an image set as a network is tested on them: uint8 (n, H, W) or (n, H, W, 3).

    Of files, the centred square of each picture (Resize and CenterCrop of the paper's scripts).
    """

    def __init__(self, images: ImageSet, rows: NDArray[np.int64]) -> None:
        self.pixels, self.files, self.rows = images.images, images.files, rows
        kept = self.pixels.shape[1:]
        side = self.files and (self.files.size, self.files.size, *kept[2:])
        self.shape: tuple[int, ...] = (len(rows), *(side or kept))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: Any) -> NDArray[np.uint8]:
        rows = self.rows[part]
        if self.files is None:
            return self.pixels[rows]
        return views(
            _squares(self.pixels, rows), self.files.sizes[rows], self.files.share, self.files.size
        )


def views(squares: Squares, sizes: NDArray[np.int32], share: float, size: int) -> NDArray[np.uint8]:
    """Of pictures of ``sizes`` (n, 2), kept as squares, what tests see: (n, size, size, 3)."""
    return np.asarray(_crops(squares, _centres(sizes, share), size))


def ahead(make: Callable[[K], T], keys: Iterable[K]) -> Iterator[T]:
    """``make(key)`` of every key in order, each made while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for key in keys:
            made, waiting = waiting, thread.submit(make, key)
            if made is not None:
                yield made.result()
        if waiting is not None:
            yield waiting.result()


class Stream:
    """Endless shuffled, distorted batches of one labelled set; ``stream[step]`` is a Batch.

    ``labels`` (n,) belong to the rows ``origin`` (n,) of ``images``, by default to all in order.
    ``channels``, those of the batches, are what the backbone wants, not what the images have.
    With ``files``, images are squares of pictures, and are cropped to the size of a view.
    """

    def __init__(
        self,
        images: Pixels,
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
        files: Files | None = None,
    ) -> None:
        if not len(labels):
            raise UserError(f"the {name} images to train on are none at all: the set is empty")
        self.images, self.files, self.device = images, files, torch.device(device)
        self.origin = np.arange(len(labels)) if origin is None else origin
        self.held = self._hold()
        self.labels = torch.as_tensor(labels, device=device)
        self.batch_size, self.augment = batch_size, augment
        self.view, self.channels = view, channels
        self.key = (seed, crc32(name.encode()))
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The numbers among the labels of the global batch at ``step``."""
        n, first = len(self.origin), step * self.batch_size
        position = range(first, first + self.batch_size)
        return np.array([_order(n, (*self.key, 0, p // n))[p % n] for p in position])

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the global batch at ``step``."""
        rows = self.rows(step)
        mine = torch.as_tensor(rows[self.share], device=self.device)
        rng = np.random.default_rng((*self.key, self.view, step))  # 0 is the order's
        theta = _affines(self.augment, self.batch_size, rng)[self.share]
        contrast = rng.uniform(
            1 - self.augment.contrast, 1 + self.augment.contrast, self.batch_size
        )
        corner = rng.random((2, self.batch_size))
        boxes = self._boxes(rows, rng)
        turned = np.zeros(self.batch_size, bool)
        if self.augment.flip:
            turned = rng.integers(2, size=self.batch_size) == 1
        images = self._images(rows[self.share], boxes[self.share], turned[self.share])
        if self.augment.operations:
            from uotft.training.randaugment import randaugment

            images = randaugment(images, self.augment, rng, self.batch_size, self.share)
        if self.augment.moves:
            images = _warp(images, theta)
        if self.augment.contrast:
            images = _stretch(images, contrast[self.share])
        if self.augment.cutout:
            images = _cut_out(images, corner[:, self.share], self.augment.cutout)
        return Batch(images, self.labels[mine])

    def _boxes(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        """What is cropped of each picture of the global batch; nothing where there are no files."""
        if self.files is None:
            return np.empty((0, 4))
        sizes = self.files.sizes[self.origin[rows]]
        if self.augment.crop:
            return _random_boxes(sizes, self.augment.crop, rng)
        return _centres(sizes, self.files.share)

    def _images(self, rows: NDArray[np.int64], boxes: Floats, turned: NDArray[np.bool_]) -> Tensor:
        """Some images (n, C, H, W) in [-1, 1], cropped and, where ``turned``, left to right."""
        if self.files is not None and self.held is None:
            crops = _crops(_squares(self.images, self.origin[rows]), boxes, self.files.size)
            for row in np.flatnonzero(turned).tolist():
                crops[row] = crops[row].flip(1)
            if self.device.type == "cpu":
                return _to_input_in_parts(crops, self.channels)
            return to_input(crops.to(self.device), self.channels)
        assert self.held is not None
        held = self.held[torch.as_tensor(rows, device=self.device)]
        images = to_input(held, self.channels)
        if self.files is not None:
            images = _crops_at_once(images, boxes, self.files.size)
        if turned.any():
            mirrored = torch.as_tensor(turned, device=self.device)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        return images

    def _hold(self) -> Tensor | None:
        """All images on the device, where they are small or it is a GPU with room for them."""
        if self.files is None:
            return torch.as_tensor(self.images[self.origin], device=self.device)
        needed = len(self.origin) * int(np.prod(self.images.shape[1:]))
        cuda = self.device.type == "cuda"
        if not cuda or 2 * needed > torch.cuda.mem_get_info(self.device)[0]:
            return None
        parts = np.array_split(self.origin, -(-len(self.origin) // AT_ONCE))
        return torch.cat([torch.as_tensor(self.images[p], device=self.device) for p in parts])


@lru_cache(4)  # to shuffle a large set takes longer than a step
def _order(n: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """The order of ``n`` labels in one epoch."""
    return np.random.default_rng(seed).permutation(n)


def _squares(pixels: Pixels, rows: NDArray[np.int64]) -> Squares:
    """The kept squares of some rows, not copied where they need not be."""
    return pixels.read(rows) if isinstance(pixels, Store) else pixels[rows]


def _centres(sizes: NDArray[np.int32], share: float) -> Floats:
    """Of pictures (n, 2), the centred square that is ``share`` of the shorter side, as boxes.

    A box is (top, left, height, width) in shares of the picture, so of the kept square too.
    """
    extent = share * sizes.min(1, keepdims=True) / sizes
    return np.concatenate([(1 - extent) / 2, extent], 1)


def _random_boxes(sizes: NDArray[np.int32], smallest: float, rng: np.random.Generator) -> Floats:
    """A random box of each picture (n, 2): Inception's crop, torchvision's RandomResizedCrop.

    The area is at least ``smallest`` of the picture's and the ratio of the sides at most RATIO. Of
    ten boxes the first that fits is taken, or else the largest one in the middle.
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


def _to_input_in_parts(pixels: Tensor, channels: int) -> Tensor:
    """``to_input`` of colour, a few images at a time, which a CPU's cache holds.

    The memory is NumPy's, which asks for huge pages: tens of megabytes of small ones cost more.
    """
    images = np.empty((*pixels.shape[:3], channels), np.float32)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    for start in range(0, len(pixels), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        batch[part] = to_input(pixels[part], channels)
    return batch


def _crops(squares: Squares, boxes: Floats, size: int) -> Tensor:
    """A box of each square, scaled: uint8 (n, size, size, 3)."""
    crops = np.empty((len(squares), size, size, 3), np.uint8)
    side = len(squares[0]) if len(squares) else 1
    first, last = boxes[:, :2] * side, (boxes[:, :2] + boxes[:, 2:]) * side
    start = np.minimum(np.rint(first).astype(int), side - 1)
    stop = np.maximum(np.rint(last).astype(int), start + 1)

    def one(row: int) -> None:
        (top, left), (bottom, right) = start[row], stop[row]
        # a copy of its own: what is kept is mapped read-only
        box = squares[row][top:bottom, left:right].copy()
        crops[row] = scaled(box, size)

    for _ in pool().map(one, range(len(squares))):
        pass
    return torch.from_numpy(crops)


def _crops_at_once(images: Tensor, boxes: Floats, size: int) -> Tensor:
    """The same of (n, C, H, W) in one call for a GPU, bilinear: (n, C, size, size)."""
    extent = torch.as_tensor(boxes[:, 2:], dtype=torch.float32)
    middle = torch.as_tensor(boxes[:, :2], dtype=torch.float32) + extent / 2
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = extent[:, 1], extent[:, 0]
    theta[:, 0, 2], theta[:, 1, 2] = 2 * middle[:, 1] - 1, 2 * middle[:, 0] - 1
    grid = _grid(theta.to(images.device), size, size)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _grid(theta: Tensor, height: int, width: int) -> Tensor:
    """torch's ``affine_grid`` of (n, 2, 3): (n, height, width, 2), but faster on a CPU."""
    x, y = (
        torch.linspace(-1, 1, length, device=theta.device) * (length - 1) / length
        for length in (width, height)
    )
    of_x, of_y, shift = theta[:, None, None].unbind(-1)
    return x[:, None] * of_x + y[:, None, None] * of_y + shift


def _affines(augment: Augment, n: int, rng: np.random.Generator) -> Tensor:
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


def _warp(images: Tensor, theta: Tensor) -> Tensor:
    """Warp (n, C, H, W) by (n, 2, 3); what lies outside is background (-1)."""
    grid = _grid(theta.to(images.device), *images.shape[2:])
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
