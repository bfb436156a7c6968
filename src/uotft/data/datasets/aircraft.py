"""FGVC-Aircraft: 100 model variants of aeroplanes (Maji et al., arXiv:1306.5151, 2013).

Official split: 3,334 training, 3,333 validation and 3,333 test images. The literature reports the
mean of the per-class accuracies.

    uotft data prepare aircraft
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

SITE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
CARD = Card(
    name="aircraft",
    home=SITE,
    licence="non-commercial research",
    classes=100,
    images={"train": 3_334, "val": 3_333, "test": 3_333},
    metric="mean per class",
    archives=(
        Archive(
            "fgvc-aircraft-2013b.tar.gz",
            "fgvc-aircraft-2013b",
            2_770_575_360,
            "d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75",
            (f"{SITE}archives/fgvc-aircraft-2013b.tar.gz",),
        ),
    ),
)


class Settings(files.PublicSettings):
    """Settings of the data set ``aircraft``."""

    path: str = Field("downloads/aircraft", description="the folder of its archive")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """data/images/0034309.jpg; a line of images_variant_train.txt is "0034309 A300B4"."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    folder = folder / "fgvc-aircraft-2013b" / "data"
    names = {name: name for name in files.lines(folder / "variants.txt", str)}

    def image(line: str) -> tuple[str, str]:
        number, name = line.split(maxsplit=1)
        return f"images/{number}.jpg", names[name]

    rows = [
        (path, name, part)
        for part in ("train", "val", "test")
        for path, name in files.lines(folder / f"images_variant_{part}.txt", image)
    ]
    return files.listed(folder, rows, names, settings, progress)
