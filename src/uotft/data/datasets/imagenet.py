"""ImageNet-1k, the usual source: 1,000 WordNet synsets (Russakovsky et al., IJCV 2015).

Official split: 1,281,167 training and 50,000 validation images. The literature reports top-1 on the
latter. Download it by hand from image-net.org, after accepting its terms; or use folders
train/n01440764/*.JPEG and val/n01440764/*.JPEG. Classes are in the order of their WordNet ids, as
in published classifiers.

    uotft data prepare imagenet --from DIR
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from uotft.core.records import ImageSet
from uotft.data import archives, files, walk
from uotft.data.archives import Archive, Card

KIT = "ILSVRC2012_devkit_t12/data"
CARD = Card(
    name="imagenet",
    home="https://image-net.org/download-images.php",
    licence="non-commercial research, under ImageNet's terms",
    classes=1000,
    images={"train": 1_281_167, "val": 50_000},
    metric="top-1",
    archives=(
        Archive(
            "ILSVRC2012_img_train.tar",
            "",
            147_897_477_120,
            md5="1d675b47d978889d74fa0da5fadfb00e",
            into="train",
            files=1_300_000,
        ),
        Archive(
            "ILSVRC2012_img_val.tar",
            "",
            6_744_924_160,
            md5="29b22e2961454d5413ddabcf34fc5622",
            into="val",
        ),
        Archive(
            "ILSVRC2012_devkit_t12.tar.gz",
            "ILSVRC2012_devkit_t12",
            0,
            md5="fa75699e90414af021442c21a62c3abf",
        ),
    ),
    by_hand="sign in at https://image-net.org/download-images.php, ILSVRC2012, or use Kaggle's "
    "imagenet-object-localization-challenge. Or, for a folder with train/WNID/ and val/WNID/, set "
    "datasets.imagenet.path in params.yaml",
    signs=("train",),
)


class Settings(files.PublicSettings):
    """Settings of the data set ``imagenet``."""

    path: str = Field(
        "downloads/imagenet", description="the folder of its archives, or of train/ and val/"
    )


def load(settings: Settings, progress: Callable[..., Iterable[int]], root: Path) -> ImageSet:
    """train/n01440764/n01440764_18.JPEG; val/ has the same layout, or no folders and a devkit."""
    folder = archives.unpacked(CARD, settings.path, root, progress)
    wnids = sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir())
    nouns, truth = _kit(folder / KIT)
    rows = []
    for part in ("train", "val"):
        inside = folder / part
        for path in map(os.fsdecode, walk.below(inside) if inside.is_dir() else ()):
            wnid = path.split("/")[0] if "/" in path else truth.get(path, "")
            rows.append((f"{part}/{path}", wnid, part))
    names = {wnid: f"{wnid} {nouns.get(wnid, '')}".strip() for wnid in wnids}
    return files.listed(folder, rows, names, settings, progress)


def _kit(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """{WordNet id: first noun} and {validation image: WordNet id}; empty without a devkit."""
    if not folder.is_dir():
        return {}, {}

    def synset(entry: Any) -> tuple[int, str, str]:
        named = files.text(entry["WNID"]), files.text(entry["words"]).split(",")[0]
        return int(entry["ILSVRC2012_ID"]), *named

    synsets = files.mat(folder / "meta.mat", ("synsets",), synset)
    wnid = {number: name for number, name, _ in synsets}
    truth = files.lines(
        folder / "ILSVRC2012_validation_ground_truth.txt", lambda line: wnid[int(line)]
    )
    images = (f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(truth) + 1))
    return {name: noun for _, name, noun in synsets}, dict(zip(images, truth, strict=True))
