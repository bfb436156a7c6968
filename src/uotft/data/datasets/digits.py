"""The target of the toy task: 1,797 real handwritten digits, which come with scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak 1998, CC BY 4.0): 8 x 8 pixels, 17 grey levels, scaled up here to the source's size. A
stratified split gives test and validation images; each seed samples its few labelled training
images from the rest.

    uotft prepare --dataset digits        # writes data/digits.npz: 397 train, 400 val, 1000 test
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uotft.core.records import ImageSet, Settings as BaseSettings

if TYPE_CHECKING:
    from PIL.Image import Image


class Settings(BaseSettings):
    """Settings of the target data set ``digits``."""

    size: int = Field(28, ge=8, description="side of the images in pixels")
    margin: int = Field(2, ge=0, description="empty pixels on each side")
    val: int = Field(400, ge=10, description="number of validation images")
    test: int = Field(1000, ge=10, description="number of test images")
    seed: int = Field(0, ge=0, description="seed of the split")
    path: str = Field("", description="a file that DVC watches; not read")


def load(settings: Settings, progress: Callable[..., Iterator[int]], root: Path) -> ImageSet:
    """Read the set and split it into train, val and test; uint8, white on black."""
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    rows = np.arange(len(raw.target))
    rest, test = train_test_split(
        rows, test_size=settings.test, stratify=raw.target, random_state=settings.seed
    )
    _, val = train_test_split(
        rest, test_size=settings.val, stratify=raw.target[rest], random_state=settings.seed
    )
    splits = np.full(len(rows), "train")
    splits[val], splits[test] = "val", "test"
    images = np.zeros((len(rows), settings.size, settings.size), np.uint8)
    for row in progress(rows, "scaling digits"):
        # 17 grey levels, 0 to 16
        grey = Image.fromarray((raw.images[row] * (255 / 16)).astype(np.uint8))
        images[row] = from_picture(grey, settings)
    return ImageSet(images, raw.target.astype(np.int64), splits, tuple(map(str, range(10))))


def from_picture(picture: Image, settings: Settings) -> NDArray[np.uint8]:
    """A grey picture of any size, white on black -> (size, size), bicubic, with a margin."""
    from PIL.Image import Resampling

    inner = settings.size - 2 * settings.margin
    scaled = picture.resize((inner, inner), Resampling.BICUBIC)
    return np.pad(np.asarray(scaled), settings.margin)
