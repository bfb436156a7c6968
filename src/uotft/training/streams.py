"""The endless batches of training.

A stream's order is a function of (seed, stream name, epoch), its distortions are a function of
(seed, stream name, view, step). Both are sampled for the whole global batch before a process takes
its share. So neither depends on the number of processes, and any step can be read directly. Two
streams with one name and two views have the same images in the same order, but other distortions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotft.core.context import Context
from uotft.core.errors import Interrupted, UserError
from uotft.core.records import Files, Floats, ImageSet, Pixels
from uotft.core.settings import Augment
from uotft.data.pixel_cache import Store
from uotft.models.inputs import centres, crops, squares_of, to_input, to_input_in_parts
from uotft.training.distortions import (
    affines,
    crops_at_once,
    cut_out,
    random_boxes,
    stretch,
    warp,
)

AT_ONCE = 1024  # images copied to a GPU in one piece


@dataclass(frozen=True)
class Batch:
    """``images`` (n, C, H, W) in [-1, 1], ``labels`` (n,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Sampling:
    """How a stream samples and distorts images; ``seed`` and ``name`` alone decide the order.

    ``batch_size`` counts the images of all processes. A second ``view`` has the same images with
    other distortions. ``channels`` is the number that the backbone expects, whatever the images'.
    """

    name: str
    batch_size: int
    seed: int
    augment: Augment
    view: int = 1
    channels: int = 1


@dataclass(frozen=True)
class Place:
    """A process's device, and its ``rank`` among ``world`` processes."""

    device: torch.device | str = "cpu"
    rank: int = 0
    world: int = 1


class Stream:
    """Endless shuffled, distorted batches of one labelled set; ``stream[step]`` is a Batch.

    ``labels`` (n,) are those of the rows ``origin`` (n,) of ``images``; by default of all rows in
    order. With ``files``, ``images`` are squares of pictures, which are cropped to the view's size.
    """

    def __init__(
        self,
        images: Pixels,
        labels: NDArray[np.int64],
        sampling: Sampling,
        place: Place = Place(),  # noqa: B008  it is frozen
        *,
        origin: NDArray[np.int64] | None = None,
        files: Files | None = None,
    ) -> None:
        if not len(labels):
            raise UserError(
                f"there are no {sampling.name} images to train on: the training set is empty"
            )
        self.images, self.files, self.device = images, files, torch.device(place.device)
        self.origin = np.arange(len(labels)) if origin is None else origin
        self.held = self._hold()
        self.labels = torch.as_tensor(labels, device=self.device)
        self.batch_size, self.augment = sampling.batch_size, sampling.augment
        self.view, self.channels = sampling.view, sampling.channels
        self.key = (sampling.seed, crc32(sampling.name.encode()))
        first, last = (
            rank * sampling.batch_size // place.world for rank in (place.rank, place.rank + 1)
        )
        self.share = slice(first, last)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Indices into ``labels`` of the global batch at ``step``: (batch_size,)."""
        n, first = len(self.origin), step * self.batch_size
        position = range(first, first + self.batch_size)
        return np.array([_order(n, (*self.key, 0, p // n))[p % n] for p in position])

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the global batch at ``step``."""
        rows = self.rows(step)
        mine = torch.as_tensor(rows[self.share], device=self.device)
        rng = np.random.default_rng((*self.key, self.view, step))  # `rows` uses the key with 0
        # sampled for the whole batch before this process takes its share
        theta = affines(self.augment, self.batch_size, rng)[self.share]
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
            images = warp(images, theta)
        if self.augment.contrast:
            images = stretch(images, contrast[self.share])
        if self.augment.cutout:
            images = cut_out(images, corner[:, self.share], self.augment.cutout)
        return Batch(images, self.labels[mine])

    def _boxes(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        """The crop box of each picture of the global batch: (n, 4), or (0, 4) without files."""
        if self.files is None:
            return np.empty((0, 4))
        sizes = self.files.sizes[self.origin[rows]]
        if self.augment.crop:
            return random_boxes(sizes, self.augment.crop, rng)
        return centres(sizes, self.files.share)

    def _images(self, rows: NDArray[np.int64], boxes: Floats, turned: NDArray[np.bool_]) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] of some rows, cropped, and mirrored where ``turned``."""
        if self.files is not None and self.held is None:
            pictures = crops(squares_of(self.images, self.origin[rows]), boxes, self.files.size)
            for row in np.flatnonzero(turned).tolist():
                pictures[row] = pictures[row].flip(1)
            if self.device.type == "cpu":
                return to_input_in_parts(pictures, self.channels)
            return to_input(pictures.to(self.device), self.channels)
        assert self.held is not None
        held = self.held[torch.as_tensor(rows, device=self.device)]
        images = to_input(held, self.channels)
        if self.files is not None:
            images = crops_at_once(images, boxes, self.files.size)
        if turned.any():
            mirrored = torch.as_tensor(turned, device=self.device)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        return images

    def _hold(self) -> Tensor | None:
        """All images on the device: arrays always, files if a GPU has the memory; else None."""
        if self.files is None:
            return torch.as_tensor(self.images[self.origin], device=self.device)
        needed = len(self.origin) * int(np.prod(self.images.shape[1:]))
        cuda = self.device.type == "cuda"
        if not cuda or 2 * needed > torch.cuda.mem_get_info(self.device)[0]:
            return None
        parts = np.array_split(self.origin, -(-len(self.origin) // AT_ONCE))
        return torch.cat([torch.as_tensor(self.images[p], device=self.device) for p in parts])


@lru_cache(4)  # shuffling a large set takes longer than a training step
def _order(n: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """The random order of ``n`` labels in one epoch."""
    return np.random.default_rng(seed).permutation(n)


def decode(images: ImageSet, rows: NDArray[np.int64], context: Context) -> None:
    """Decode, once each, all pictures that the processes will read, and keep their pixels."""
    if not isinstance(images.images, Store):
        return
    accelerator = context.accelerator

    def bar(starts: Iterable[int], label: str) -> Iterator[int]:
        for start in context.progress(starts, label):
            if context.stop():
                raise Interrupted("training was interrupted before its images were decoded")
            yield start

    # Each process decodes its share. If machines do not share a disk, the shares of other machines
    # are still missing here, so one process per machine decodes what remains.
    images.images.hold(rows[accelerator.process_index :: accelerator.num_processes], bar)
    accelerator.wait_for_everyone()
    with accelerator.local_main_process_first():
        images.images.hold(rows, bar)
