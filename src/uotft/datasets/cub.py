"""Caltech-UCSD Birds-200-2011: 200 bird species (Wah et al., CNS-TR-2011-001, 2011).

Official split: 5,994 images for training, 5,794 for tests; the literature reports top-1. Some test
images are ImageNet images, byte for byte: `uotft data overlap` finds them.

    uotft data prepare cub
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft import archives, files
from uotft.archives import Archive, Card
from uotft.records import ImageSet

CARD = Card(
    name="cub",
    home="https://data.caltech.edu/records/65de6-vp158",
    licence="not stated; photographs from the web, for research and teaching",
    classes=200,
    images={"train": 5_994, "test": 5_794},
    metric="top-1",
    archives=(
        Archive(
            "CUB_200_2011.tgz",
            "CUB_200_2011",
            1_150_585_339,
            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            (
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",
            ),
        ),
    ),
)


class Settings(files.Shelf):
    """Settings of the data set ``cub``."""

    path: str = Field("downloads/cub", description="the folder of its archive")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """images/001.Black_footed_Albatross/*.jpg, as images.txt and its sister lists say by number."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    folder = folder / "CUB_200_2011"

    def column(name: str) -> dict[str, str]:
        pairs = (line.split(maxsplit=1) for line in files.lines(folder / f"{name}.txt"))
        return {number: value for number, value in pairs}

    label, trained = column("image_class_labels"), column("train_test_split")
    rows = [
        (f"images/{path}", label[image], "train" if trained[image] == "1" else "test")
        for image, path in column("images").items()
    ]
    names = {
        number: name.partition(".")[2].replace("_", " ")
        for number, name in column("classes").items()
    }
    return files.listed(folder, rows, names, settings, progress)
