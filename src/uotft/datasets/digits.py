"""The embedded target: 1,797 real handwritten digits, the set that ships inside scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak 1998, CC BY 4.0): 8 x 8 pixels, 17 grey levels, scaled up here to the source's size. A
stratified cut gives test and validation parts; what is left is the pool from which every seed
draws its few labelled training images.

    uotft prepare --dataset digits        # writes data/digits.npz: 397 train, 400 val, 1000 test
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from pydantic import Field

from uotft.records import ImageSet, Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the target data set ``digits``."""

    size: int = Field(28, ge=8, description="pixels a side")
    margin: int = Field(2, ge=0, description="empty pixels on each side")
    val: int = Field(400, ge=10, description="images in the validation part")
    test: int = Field(1000, ge=10, description="images in the test part")
    seed: int = Field(0, ge=0, description="seed of the cut into parts")


def load(settings: Settings, progress: Callable[..., Iterator[int]]) -> ImageSet:
    """Read the set and cut it into train, val and test; uint8, white on black."""
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
        images[row] = _scale_up(raw.images[row], settings)
    return ImageSet(images, raw.target.astype(np.int64), splits, tuple(map(str, range(10))))


def _scale_up(image: np.ndarray, settings: Settings) -> np.ndarray:
    """8 x 8 in [0, 16] -> size x size in [0, 255], bicubic, with a margin."""
    from PIL import Image

    inner = settings.size - 2 * settings.margin
    grey = Image.fromarray((image * (255 / 16)).astype(np.uint8))
    return np.pad(
        np.asarray(grey.resize((inner, inner), Image.Resampling.BICUBIC)), settings.margin
    )
