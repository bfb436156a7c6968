"""What the name after --dataset means, inside a project and outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.image_folders import pictures
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline import init
from uotft.pipeline.init import Wanted
from uotft.runs import whole


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on photos/, whose set is called photos-images, since the folder has the name."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", 3, 12)
    init.init(tmp_path, Wanted("small", "", "photos", tmp_path, alone=True))
    return tmp_path


@pytest.mark.parametrize("text", ["photos-images", "photos", "./photos/"])
def test_a_set_of_the_project_goes_by_its_name_or_its_path(here: Path, text: str) -> None:
    assert whole.section(text) == "photos-images"
    assert whole.order(Cell("photos-images", "none", 0), "", "", "", ()) is None


def test_other_images_get_a_project_of_their_own(here: Path) -> None:
    pictures(here / "birds", 3, 12)
    assert whole.section("birds") == whole.section("dogs") == ""
    order = whole.order(Cell("birds", "none", 0), "", "", "", ())
    assert order
    assert order.wanted.home == here
    assert order.preview().root == here / "uotft-birds"
    assert not (here / "uotft-birds").exists()


def test_what_means_nothing_is_refused_with_all_that_is_known(here: Path) -> None:
    with pytest.raises(UserError, match=r"'dgos' has no section .*imagenet, photos-images.*dogs, "):
        whole.section("dgos")


def test_a_set_of_the_project_has_its_backbone_there(here: Path) -> None:
    with pytest.raises(UserError, match="photos-images has a section in params.yaml, where"):
        whole.order(Cell("photos-images", "none", 0), "", "", "resnet50", ())


def test_small_needs_a_source_that_is_smaller_than_imagenet(here: Path) -> None:
    order = whole.Order("dogs", "imagenet", "small", "", "uot", 0)
    with pytest.raises(UserError, match="--preset small trains its network on the source from not"):
        order.wanted  # noqa: B018  it raises
    assert whole.Order("dogs", "imagenet", "small", "", "none", 0).wanted.alone
    assert whole.Order("dogs", "imagenet", "small", "resnet18", "uot", 0).wanted
    order = whole.Order("dogs", "imagenet", "", "small_resnet", "uot", 0)
    with pytest.raises(UserError, match="--backbone small_resnet trains its network on the source"):
        order.wanted  # noqa: B018  it raises
