"""SUN397: 397 kinds of scenes (Xiao et al., CVPR 2010).

Official split: 50 training and 50 test images of each class (19,850 each), in ten partitions. The
literature uses the first and reports top-1. Princeton's address answered 404 in 2026
(pytorch/vision#9348), so the archives may have to be downloaded by hand. One image of the set
cannot be decoded (tensorflow/datasets#2889); if a partition lists it, set `unreadable: skip`.

    uotft data prepare sun
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

SITE = "https://vision.princeton.edu/projects/2010/SUN/"
CARD = Card(
    name="sun",
    home=SITE,
    licence="not stated; photographs from the web, for research",
    classes=397,
    images={"train": 19_850, "test": 19_850},
    metric="top-1",
    archives=(
        Archive(
            "SUN397.tar.gz",
            "SUN397",
            39_077_296_924,
            "f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
            (f"{SITE}SUN397.tar.gz",),
        ),
        Archive(
            "Partitions.zip",
            "Training_01.txt",
            18_293_705,
            "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
            (f"{SITE}download/Partitions.zip",),
        ),
    ),
    by_hand="opendatalab.com/OpenDataLab/SUN397 may have copies",
)


class Settings(files.PublicSettings):
    """Settings of the data set ``sun``."""

    path: str = Field("downloads/sun", description="the folder of its archives")
    partition: int = Field(1, ge=1, le=10, description="which of the ten official splits")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """SUN397/a/airport_terminal/sun_*.jpg; lists hold lines like /a/airport_terminal/sun_*.jpg."""
    folder = archives.unpacked(CARD, settings.path, root, progress)

    def image(line: str) -> tuple[str, str]:
        empty, letter, *scene, _ = line.split("/")
        if empty or len(letter) != 1 or not scene:
            raise ValueError("each line must be /LETTER/SCENE/IMAGE")
        return f"SUN397{line}", line.rpartition("/")[0]

    rows = [
        (path, scene, part)
        for part, name in (("train", "Training"), ("test", "Testing"))
        for path, scene in files.lines(folder / f"{name}_{settings.partition:02d}.txt", image)
    ]
    scenes = sorted({scene for _, scene, _ in rows})
    names = {scene: scene[3:].replace("/", " ").replace("_", " ") for scene in scenes}
    return files.listed(folder, rows, names, settings, progress)
