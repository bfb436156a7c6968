"""What is said of a data set when it is prepared: classes without tests, near copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import answer, call
from support.folder_datasets import many, quiet, tree
from support.pictures import encoded, scene
from support.projects import tiny_params, workspace, write_params
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.data import checks
from uotft.pipeline import overlap, prepare


def labelled(labels: list[int], splits: list[str], names: tuple[str, ...]) -> ImageSet:
    return ImageSet(np.empty(0, np.uint8), np.array(labels), np.array(splits), names)


def prepared(root: Path, **settings: object) -> list[str]:
    """The notes of ROOT/photos, as data/pets.json keeps them."""
    params = tiny_params()
    section = {"kind": "folder", "path": "photos", "stored": 64, "size": 16, **settings}
    params["datasets"]["pets"] = section
    write_params(root, params)
    ws = workspace(root)
    prepare.prepare(ws, "pets", progress=quiet)
    return storage.read_json(ws.data("pets").with_suffix(".json")).get("notes", [])


def test_classes_without_an_image_in_a_part_are_named() -> None:
    images = labelled([0, 1, 2, 0, 1, 0], ["train"] * 3 + ["val"] * 2 + ["test"], ("a", "b", "c"))
    assert checks.classes_without(images) == [
        "classes without an image in val: 1 of 3 (c)",
        "classes without an image in test: 2 of 3 (b, c)",
    ]
    several = tuple(f"c{i:02}" for i in range(15))
    images = labelled([*range(15), 0], ["train"] * 15 + ["test"], several)
    (note,) = checks.classes_without(images)
    assert note.startswith("classes without an image in test: 14 of 15 (c01, c02, ")
    assert note.endswith("c09, c10 and 4 more)")


def test_a_part_that_is_empty_lacks_no_class() -> None:
    assert checks.classes_without(labelled([0, 1], ["train"] * 2, ("a", "b"))) == []


def test_prepare_names_classes_that_are_too_small_to_be_tested(tmp_path: Path) -> None:
    tree(tmp_path / "photos", *many("", ["a"], 8), "one/0.png", "two/0.png", "two/1.png")
    assert prepared(tmp_path) == [
        "classes without an image in val: 2 of 3 (one, two)",
        "classes without an image in test: 1 of 3 (one)",
    ]


def copied(root: Path) -> None:
    """Ten scenes in train, four others in test, and two of train's there, saved anew."""
    tree(root / "photos", *many("train/", ["cat", "dog"], 5))
    for i in range(4):
        path = root / f"photos/test/{('cat', 'dog')[i % 2]}/own{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(50 + i)))
    for i in range(2):
        small = encoded(scene(i).resize((80, 60)), "JPEG", quality=80)
        (root / f"photos/test/cat/copy{i}.jpg").write_bytes(small)


def test_near_copies_between_parts_are_counted(tmp_path: Path) -> None:
    copied(tmp_path)
    assert prepared(tmp_path) == [
        "test images that look the same as an image of train or val but differ in bytes: 2 of 6 "
        "(test/cat/copy0.jpg = train/cat/0.png); `uotft data overlap` with the set's name lists "
        "them"
    ]


def test_a_large_set_is_left_to_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tmp_path)
    monkeypatch.setattr(checks, "NEAR", 15)
    assert prepared(tmp_path) == []


def test_where_all_pictures_look_alike_no_near_copy_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            for i in range(6):
                path = tmp_path / f"photos/{part}/{name}/{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.asarray(scene(1)).copy()
                pixels[0, 0] = (i, len(part), ord(name))
                path.write_bytes(encoded(Image.fromarray(pixels)))
    [note] = prepared(tmp_path)
    assert note.startswith("24 of 24 pictures checked have the same pixels as another one")


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "TEST")])
def test_the_command_lists_near_copies_of_one_set(tmp_path: Path, parts: tuple[str, str]) -> None:
    copied(tmp_path)
    prepared(tmp_path)
    done = call("uotft", "data", "overlap", "pets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 test images are in train and val, 2 pairs: bytes 0, stem 0, picture 2" in done.stdout
    for part, name in zip(("train", "test"), parts, strict=True):
        shutil.move(tmp_path / "photos" / part, tmp_path / "photos" / f"{part}.moved")
        shutil.move(tmp_path / "photos" / f"{part}.moved", tmp_path / "photos" / name)
    found = overlap.within(str(tmp_path / "photos"), progress=quiet)
    assert {(m["target"], m["source"]) for m in found["matches"]} == {
        (f"{parts[1]}/cat/copy{i}.jpg", f"{parts[0]}/cat/{i}.png") for i in range(2)
    }


def test_what_cannot_be_compared_with_itself(tmp_path: Path) -> None:
    tree(tmp_path / "photos", *many("", ["cat", "dog"], 3))
    with pytest.raises(UserError, match="the folder has no train/ and test/ to compare"):
        overlap.within(str(tmp_path / "photos"), progress=quiet)
    prepared(tmp_path, test=0.0)
    ws = workspace(tmp_path)
    with pytest.raises(
        UserError, match="pets: none of its images can be read: there are none in te"
    ):
        overlap.within("pets", progress=quiet, workspace=lambda: ws)
    for arguments in ([], ["pets", "--target", "pets"], ["--source", "pets"]):
        done = answer("uotft", "data", "overlap", *arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments


def test_a_prepared_set_comes_before_the_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tmp_path)
    prepared(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "pets")
    (tmp_path / "photos").symlink_to("pets")
    ws = workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = overlap.within("pets", progress=quiet, workspace=lambda: ws)
    assert found["target"]["sha256"] == storage.fingerprint(ws.data("pets"))
    folder = overlap.within("./pets", progress=quiet, workspace=lambda: ws)
    assert folder["target"]["sha256"] != found["target"]["sha256"]
    assert folder["counts"] == found["counts"]
