"""Some classes of ImageNet-1k, such as those that a selection kept: their training images.

``path`` is a JSON file, {"classes": ["n01440764", ...]}; ``images`` is where the images lie on this
machine: a folder of WordNet ids, ILSVRC2012_img_train.tar or class tars, read in place. Without a
copy it is the folder into which the classes are fetched.

    imagenet: {kind: imagenet_classes, path: selected/imagenet.json, images: /data/imagenet}

    uotft data prepare imagenet
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydantic import Field

from uotft.core.paths import located
from uotft.core.records import ImageSet
from uotft.data import class_images, files, wordnet
from uotft.data.lists import Found

#: Its images are fetched class by class, once classes have been selected.
BY_CLASS = True


class Settings(files.PublicSettings):
    """Settings of a data set of some of ImageNet's classes."""

    path: str = Field(
        "selected/imagenet.json", description='a JSON file, {"classes": [WordNet ids]}'
    )
    images: str = Field(
        "downloads/imagenet",
        description="where the training images lie: folders of WordNet ids, "
        "ILSVRC2012_img_train.tar, or class tars; or a folder to fetch them into",
    )


def every_class() -> tuple[str, ...]:
    """The names of all 1,000 classes, in the order of a published classifier's rows."""
    return tuple(wordnet.named(wnid) for wnid in wordnet.imagenet())


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """The listed classes by ascending id; a share of each is cut for validation.

    Which images of a class are cut does not depend on the other classes. Without any class the set
    is empty. Raises `UserError` for a class that is missing.
    """
    wnids = class_images.listed(located(root, settings.path))
    rows = class_images.place(located(root, settings.images)).rows(wnids)
    splits = np.full(len(rows.paths), "train", "U5")
    for label in range(len(wnids)):
        own = slice(*np.searchsorted(rows.labels, [label, label + 1]))
        part = splits[own]  # a view: the cut is made in `splits`
        files.cut(rows.labels[own], part, "val", settings.val, settings.seed)
    names = tuple(wordnet.named(wnid) for wnid in wnids)
    return files.image_set(
        rows.root, rows.paths, rows.labels, splits, names, settings, progress, **rows.inside
    )


def found(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> Found:
    """The images of the listed classes that exist now, or the tars that hold them."""
    wnids = class_images.listed(located(root, settings.path))
    rows = class_images.place(located(root, settings.images)).rows(wnids)
    files = rows.inside["archives"].tolist() if rows.inside else rows.paths
    return Found(rows.root, [(path, "", "") for path in dict.fromkeys(files)])
