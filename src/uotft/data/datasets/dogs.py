"""Stanford Dogs: 120 breeds, taken from ImageNet (Khosla et al., FGVC workshop at CVPR 2011).

Official split: 12,000 training and 8,580 test images. The literature reports top-1. File names are
ImageNet ids: `uotft data overlap` finds the test images that are also in ImageNet.

    uotft data prepare dogs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

SITE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
CARD = Card(
    name="dogs",
    home=SITE,
    licence="not stated; photographs of ImageNet, for research",
    classes=120,
    images={"train": 12_000, "test": 8_580},
    metric="top-1",
    archives=(
        Archive(
            "images.tar",
            "Images",
            793_579_520,
            "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            (f"{SITE}images.tar",),
        ),
        Archive(
            "lists.tar",
            "train_list.mat",
            481_280,
            "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            (f"{SITE}lists.tar",),
        ),
    ),
)


class Settings(files.PublicSettings):
    """Settings of the data set ``dogs``."""

    path: str = Field("downloads/dogs", description="the folder of its archives")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """Images/n02085620-Chihuahua/n02085620_10074.jpg, as train_list.mat and test_list.mat say."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    rows, names = [], {}

    def image(file: str, label: int) -> tuple[str, str, int]:
        breed, _ = files.text(file).split("/")
        return file, breed.split("-", 1)[1].replace("_", " "), int(label)

    for part in ("train", "test"):
        path = folder / f"{part}_list.mat"
        for file, breed, label in files.mat(path, ("file_list", "labels"), image):
            rows.append((f"Images/{file}", label, part))
            names[label] = breed
    return files.listed(folder, rows, dict(sorted(names.items())), settings, progress)
