"""Image files -> pixels as a model was trained on -> its likeliest classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from uotft.core import config
from uotft.core.errors import UserError
from uotft.core.records import Progress, silently
from uotft.data.files import View, printable
from uotft.data.pixel_cache import NO_BACKGROUND, in_parts, picture_of, square, upright_size
from uotft.models.inputs import ahead, to_input, views
from uotft.models.network import Network

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
AT_ONCE = 64  # images that go through the network together


@dataclass(frozen=True)
class Answer:
    """The likeliest classes of one file, best first, with their probabilities."""

    file: str
    classes: tuple[tuple[str, float], ...]


def read(path: Path, shape: list[int], resize: Callable[[Image], Pixels] | None = None) -> Pixels:
    """An image file as uint8 pixels of ``shape``, (H, W) grey or (H, W, 3) colour.

    A picture that already has that size is taken as it is. Others go through ``resize``, the data
    set's own way, or else are stretched (bicubic).
    """
    from PIL.Image import Resampling

    picture = picture_of(_content(path), path, "L" if len(shape) == 2 else "RGB")
    size = (shape[1], shape[0])
    if picture.size != size and resize is not None:
        return resize(picture)
    if picture.size != size:
        picture = picture.resize(size, Resampling.BICUBIC)
    return np.asarray(picture)


def see(path: Path, view: View) -> Pixels:
    """An image file as tests see it in a data set of files: (size, size, 3)."""
    content = _content(path)
    kept = square(content, view.stored, path, view.background, view.white)
    size = np.array([upright_size(content)])
    pixels: Pixels = views([kept], size, view.share, view.size)[0]
    return pixels


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


@torch.no_grad()
def best(
    network: Network, pixels: Pixels, classes: list[str], files: list[str], top: int = 5
) -> list[Answer]:
    """uint8 (n, H, W) or (n, H, W, 3) -> the ``top`` classes of each image."""
    inputs = to_input(torch.as_tensor(pixels), network.channels)
    found = network.eval()(inputs)["target"].softmax(1).topk(min(top, len(classes)))
    rows = zip(files, found.indices.tolist(), found.values.tolist(), strict=True)
    return [
        Answer(file, tuple((classes[c], p) for c, p in zip(numbers, shares, strict=True)))
        for file, numbers, shares in rows
    ]


def answers(
    network: Network,
    read: Callable[[Path], Pixels],
    classes: list[str],
    files: Sequence[str],
    progress: Progress = silently,
) -> Iterator[Answer | UserError]:
    """The answer for each file in order, or why it cannot be read; AT_ONCE of them at a time.

    The next files are read while the network answers, so two batches are in memory.
    """

    def one(row: int) -> tuple[str, Pixels | UserError]:
        try:
            return printable(os.fsencode(files[row])), read(Path(files[row]))
        except UserError as error:
            return "", error

    def batch(start: int) -> list[tuple[str, Pixels | UserError]]:
        return in_parts(one, range(len(files))[start : start + AT_ONCE])

    starts: Iterable[int] = range(0, len(files), AT_ONCE)
    if len(files) > AT_ONCE:
        starts = progress(starts, "predicting")
    for found in ahead(batch, starts):
        good = [(name, pixels) for name, pixels in found if not isinstance(pixels, UserError)]
        names, images = zip(*good, strict=True) if good else ((), ())
        made = iter(best(network, np.stack(images), classes, [*names]) if good else ())
        for _, pixels in found:
            yield pixels if isinstance(pixels, UserError) else next(made)


def reader(facts: dict[str, Any]) -> Callable[[Path], NDArray[np.uint8]]:
    """What makes pixels of an image file as the model's data set made those of its images."""
    module, settings = dataset_of(facts)
    if isinstance(settings, View):
        return partial(see, view=settings)
    resize = getattr(module, "from_picture", None)
    return partial(
        read,
        shape=facts["image_size"],
        resize=resize and partial(resize, settings=settings),
    )


def dataset_of(facts: dict[str, Any]) -> tuple[ModuleType | None, Any]:
    """The module and the settings of the data set that a model was trained on, if it says so.

    A model from before there was ``background`` was trained on pixels without their transparency.
    """
    if "dataset" not in facts:
        return None, None
    module, settings = config.dataset_section(facts["dataset"], "the model's data set")
    if isinstance(settings, View) and "background" not in facts["dataset"]:
        settings = settings.model_copy(update={"background": NO_BACKGROUND})
    return module, settings
