"""Sets without labels: every picture below a folder, whatever the folders and lists are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.image_folders import pictures
from uotft.core.errors import UserError
from uotft.core.records import silently
from uotft.data.datasets import folder


def load(path: Path, **settings: object):  # noqa: ANN201
    return folder.load(folder.Settings(path=str(path), labels=False, **settings), silently)


def test_all_pictures_below_a_folder_are_one_class(tmp_path: Path) -> None:
    """Folders named like parts, or like classes, mean nothing; one image is for validation."""
    pictures(tmp_path / "dump" / "2021" / "test", 2, 3)
    pictures(tmp_path / "dump" / "train", 1, 4, seed=1)
    images = load(tmp_path / "dump", test=0.5, val=0.5)
    assert images.names == ("unlabelled",)
    assert images.splits.tolist().count("val") == 1
    assert (images.splits == "train").sum() == 9


def test_copies_in_two_folders_are_no_two_labels(tmp_path: Path) -> None:
    pictures(tmp_path / "dump", 1, 4)
    shutil.copytree(tmp_path / "dump" / "class 0", tmp_path / "dump" / "again")
    images = load(tmp_path / "dump")
    assert len(images.labels) == 4
    assert any("one of each is kept" in note for note in images.notes)


def test_a_list_needs_no_labels_then(tmp_path: Path) -> None:
    pictures(tmp_path, 2, 2)
    lines = [f"class {c}/{n}.png" for c in range(2) for n in range(2)]
    (tmp_path / "all.csv").write_text("\n".join(["path", *lines]))
    assert load(tmp_path / "all.csv").names == ("unlabelled",)
    with pytest.raises(UserError, match="no column label"):
        folder.load(folder.Settings(path=str(tmp_path / "all.csv")), silently)


def test_an_empty_one_is_refused_with_what_lies_there(tmp_path: Path) -> None:
    (tmp_path / "scan.heic").touch()
    with pytest.raises(UserError, match=r"no image in it\n.*\.heic"):
        load(tmp_path)


def test_sets_with_labels_are_prepared_as_before(tmp_path: Path) -> None:
    """Else projects of earlier versions would have to prepare them again."""
    assert "labels" not in folder.Settings(path="photos").model_dump(mode="json")
    assert folder.Settings(path="photos", labels=False).model_dump(mode="json")["labels"] is False
