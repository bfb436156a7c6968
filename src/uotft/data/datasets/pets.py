"""Oxford-IIIT Pet: 37 breeds of cats and dogs (Parkhi et al., CVPR 2012).

Official split: 3,680 images for training and validation, 3,669 for tests. The literature reports
the mean of the per-class accuracies (Kornblith et al. 2019).

    uotft data prepare pets
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

CARD = Card(
    name="pets",
    home="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    licence="CC BY-SA 4.0",
    classes=37,
    images={"train": 3_680, "test": 3_669},
    metric="mean per class",
    archives=(
        Archive(
            "images.tar.gz",
            "images",
            791_918_971,
            "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            (
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                "https://thor.robots.ox.ac.uk/pets/images.tar.gz",
            ),
        ),
        Archive(
            "annotations.tar.gz",
            "annotations",
            19_173_078,
            "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            (
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                "https://thor.robots.ox.ac.uk/pets/annotations.tar.gz",
            ),
        ),
    ),
)


class Settings(files.PublicSettings):
    """Settings of the data set ``pets``."""

    path: str = Field("downloads/pets", description="the folder of its archives")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """images/Abyssinian_1.jpg; a line of annotations/trainval.txt is "Abyssinian_1 1 1 1"."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    rows, names = [], {}

    def image(line: str) -> tuple[str, str, int]:
        stem, label, _, _ = line.split()
        breed, _ = stem.rsplit("_", 1)
        return stem, breed.replace("_", " "), int(label)

    for part, name in (("train", "trainval"), ("test", "test")):
        for stem, breed, label in files.lines(folder / f"annotations/{name}.txt", image):
            rows.append((f"images/{stem}.jpg", label, part))
            names[label] = breed
    return files.listed(folder, rows, dict(sorted(names.items())), settings, progress)
