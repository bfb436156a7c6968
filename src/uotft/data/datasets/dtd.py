"""Describable Textures: 47 kinds of textures (Cimpoi et al., CVPR 2014).

Official split: 1,880 training, validation and test images each, in ten partitions. The literature
uses the first and reports top-1.

    uotft data prepare dtd
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

SITE = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
CARD = Card(
    name="dtd",
    home=SITE,
    licence="for research",
    classes=47,
    images={"train": 1_880, "val": 1_880, "test": 1_880},
    metric="top-1",
    archives=(
        Archive(
            "dtd-r1.0.1.tar.gz",
            "dtd",
            625_239_812,
            "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            (
                f"{SITE}download/dtd-r1.0.1.tar.gz",
                "https://thor.robots.ox.ac.uk/dtd/dtd-r1.0.1.tar.gz",
            ),
        ),
    ),
)


class Settings(files.PublicSettings):
    """Settings of the data set ``dtd``."""

    path: str = Field("downloads/dtd", description="the folder of its archive")
    partition: int = Field(1, ge=1, le=10, description="which of the ten official splits")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """images/banded/banded_0002.jpg, as labels/train1.txt, val1.txt and test1.txt say."""
    folder = archives.unpacked(CARD, settings.path, root, progress) / "dtd"

    def image(line: str) -> tuple[str, str]:
        texture, _ = line.split("/")
        return f"images/{line}", texture

    rows = [
        (path, texture, part)
        for part in ("train", "val", "test")
        for path, texture in files.lines(folder / f"labels/{part}{settings.partition}.txt", image)
    ]
    names = {texture: texture for texture in sorted({texture for _, texture, _ in rows})}
    return files.listed(folder, rows, names, settings, progress)
