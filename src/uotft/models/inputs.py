"""Pixels -> what a network sees, the same for tests, features and prediction.

Images of files are kept as squares of one side, whatever the picture's shape; a box says which part
of the picture is meant, in shares of its sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotft.core.records import Floats, ImageSet, Pixels
from uotft.data.pixel_cache import Store, pool, scaled

LUMA = (0.299, 0.587, 0.114)
IN_CACHE = 4  # images that stay in a CPU's cache
Squares = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # n times (S, S, 3)
T = TypeVar("T")
K = TypeVar("K")


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
            squares_of(self.pixels, rows), self.files.sizes[rows], self.files.share, self.files.size
        )


def views(squares: Squares, sizes: NDArray[np.int32], share: float, size: int) -> NDArray[np.uint8]:
    """Of pictures of ``sizes`` (n, 2), kept as squares, what tests see: (n, size, size, 3)."""
    return np.asarray(crops(squares, centres(sizes, share), size))


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


def beside(
    make: Callable[[K], T],
    device: torch.device | str,
    tensors: Callable[[T], Iterable[Tensor]],
) -> Callable[[K], T]:
    """``make`` for the thread of ``ahead``: on a GPU its work goes to a CUDA stream of its own.

    In the default stream each copy from the host would wait for all that the reader has queued
    there, the whole training step. ``tensors`` are those of a result that are on the device. The
    stream that is current here is the reader's. On a CPU this is ``make`` itself.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return make
    reader = torch.cuda.current_stream(device)
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    own.wait_stream(reader)  # what is read there, such as held images, may still be on its way

    def made(key: K) -> T:
        with torch.cuda.stream(own):
            value = make(key)
            for tensor in tensors(value):
                tensor.record_stream(reader)  # its memory stays until the reader is done
        own.synchronize()  # here, in the thread, and not in the reader
        return value

    return made


def to_input_in_parts(pixels: Tensor, channels: int) -> Tensor:
    """``to_input`` of colour, a few images at a time, which a CPU's cache holds.

    The memory is NumPy's, which asks for huge pages: tens of megabytes of small ones cost more.
    """
    images = np.empty((*pixels.shape[:3], channels), np.float32)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    for start in range(0, len(pixels), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        batch[part] = to_input(pixels[part], channels)
    return batch


def squares_of(pixels: Pixels, rows: NDArray[np.int64]) -> Squares:
    """The kept squares of some rows, not copied where they need not be."""
    return pixels.read(rows) if isinstance(pixels, Store) else pixels[rows]


def centres(sizes: NDArray[np.int32], share: float) -> Floats:
    """Of pictures (n, 2), the centred square that is ``share`` of the shorter side, as boxes.

    A box is (top, left, height, width) in shares of the picture, so of the kept square too.
    """
    extent = share * sizes.min(1, keepdims=True) / sizes
    return np.concatenate([(1 - extent) / 2, extent], 1)


def crops(squares: Squares, boxes: Floats, size: int) -> Tensor:
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

    # one alone is made here: its reader may be a thread of the pool, which would wait for itself
    for _ in (map if len(squares) == 1 else pool().map)(one, range(len(squares))):
        pass
    return torch.from_numpy(crops)
