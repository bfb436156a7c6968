"""Caltech-UCSD Birds-200-2011: 200 bird species (Wah et al., CNS-TR-2011-001, 2011).

Official split: 5,994 training and 5,794 test images. The literature reports top-1. Some test images
are also ImageNet images, byte for byte: `uotft data overlap` finds them.

    uotft data prepare cub
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

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


class Settings(files.PublicSettings):
    """Settings of the data set ``cub``."""

    path: str = Field("downloads/cub", description="the folder of its archive")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """images/001.Black_footed_Albatross/*.jpg; lists have a line "NUMBER VALUE" per image."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    folder = folder / "CUB_200_2011"

    def column(name: str, parse: Callable[[str], str] = str) -> dict[str, str]:
        def pair(line: str) -> tuple[str, str]:
            number, value = line.split(maxsplit=1)
            return number, parse(value)

        return dict(files.lines(folder / f"{name}.txt", pair))

    names = column("classes", lambda name: name.split(".", 1)[1].replace("_", " "))
    paths, label = column("images"), column("image_class_labels")
    part = column("train_test_split", {"1": "train", "0": "test"}.__getitem__)
    if apart := (paths.keys() ^ label.keys()) | (paths.keys() ^ part.keys()):
        raise UserError(
            f"{folder}: image {min(apart)} is missing from images.txt, image_class_labels.txt or "
            "train_test_split.txt: unpack the archive again"
        )
    rows = [(f"images/{path}", label[image], part[image]) for image, path in paths.items()]
    return files.listed(folder, rows, names, settings, progress)
