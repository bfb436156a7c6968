"""Stanford Cars: 196 makes, models and years (Krause et al., 3dRR workshop at ICCV 2013).

Official split: 8,144 training and 8,041 test images. The literature reports top-1. The original
site is gone (pytorch/vision#7545), so most archives must be downloaded by hand.

    uotft data prepare cars --from DIR
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files
from uotft.data.archives import Archive, Card

CARD = Card(
    name="cars",
    home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
    licence="not stated; photographs from the web, for research",
    classes=196,
    images={"train": 8_144, "test": 8_041},
    metric="top-1",
    archives=(
        Archive(
            "cars_train.tgz",
            "cars_train",
            979_269_282,
            "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
        ),
        Archive(
            "cars_test.tgz",
            "cars_test",
            977_350_468,
            "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
        ),
        Archive(
            "car_devkit.tgz",
            "devkit",
            330_960,
            "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
            ("https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",),
        ),
        Archive(
            "cars_test_annos_withlabels.mat",
            "cars_test_annos_withlabels.mat",
            185_758,
            "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        ),
    ),
    by_hand="Kaggle has copies of the images (jessicali9530/stanford-cars-dataset), and "
    "pytorch/vision#7545 says where the lists are. Unpacked, the four are cars_train/00001.jpg, "
    "cars_test/00001.jpg, devkit/cars_meta.mat and cars_test_annos_withlabels.mat",
)


class Settings(files.PublicSettings):
    """Settings of the data set ``cars``."""

    path: str = Field("downloads/cars", description="the folder of its archives")


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """cars_train/00001.jpg, as devkit/cars_train_annos.mat and the test annotations say."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    lists = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}

    def image(entry: Any) -> tuple[str, int]:
        return files.text(entry["fname"]), int(entry["class"])

    rows = [
        (f"cars_{part}/{file}", label, part)
        for part, path in lists.items()
        for file, label in files.mat(folder / path, ("annotations",), image)
    ]
    models = files.mat(folder / "devkit/cars_meta.mat", ("class_names",), files.text)
    return files.listed(folder, rows, dict(enumerate(models, 1)), settings, progress)
