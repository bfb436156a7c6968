"""The 1,000 classes: the order and names of published classifiers."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.repository import REPOSITORY
from uotft.data import wordnet


def test_names_and_order_are_those_of_torchvision_and_timm() -> None:
    timm = pytest.importorskip("timm")
    from torchvision.models import ResNet18_Weights

    table = wordnet.imagenet()
    listed = Path(timm.__file__).parent / "data/_info/imagenet_synsets.txt"
    assert [*table] == listed.read_text().split() == sorted(table)
    assert [*table.values()] == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


@pytest.mark.parametrize(
    ("name", "wnid"),
    [
        ("n01440764", "n01440764"),
        ("n01440764 tench", "n01440764"),
        ("n02085620-Chihuahua", "n02085620"),
        ("n02085620_1", "n02085620"),
        ("n014407641", ""),
        ("n01440764x", ""),
        ("tench n01440764", ""),
        ("tench", ""),
        ("", ""),
    ],
)
def test_an_id_is_found_at_the_start_of_a_name(name: str, wnid: str) -> None:
    assert wordnet.id_of(name) == wnid


def test_rows_need_an_id_of_the_thousand_in_every_name() -> None:
    assert wordnet.rows(["n01443537 goldfish", "n01440764", "n15075141 toilet tissue"]) == [
        1, 0, 999
    ]  # fmt: skip
    assert wordnet.rows(["n01440764", "tench"]) is None
    assert wordnet.rows(["n01440764", "n00001740"]) is None, "entity is no class of the 1,000"
    assert wordnet.rows([]) == []
    assert wordnet.named("n01440764") == "n01440764 tench"
    assert wordnet.named("n00001740") == "n00001740"


def test_the_wheel_has_the_table(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("uotft/data/imagenet_classes.tsv").startswith(b"n01440764\ttench\n")
