"""The lists of the public sets, broken in every way that a download or an editor breaks them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support import dataset_archives as official
from support.projects import tiny_params, workspace, write_params
from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.data import archives
from uotft.pipeline import prepare

VARIANT = "fgvc-aircraft-2013b/data/images_variant_"
KIT = "ILSVRC2012_devkit_t12/data/"
LISTS = {
    "dogs": ["train_list.mat", "test_list.mat"],
    "cars": ["devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat",
             "devkit/cars_meta.mat"],
    "cub": [f"CUB_200_2011/{name}.txt"
            for name in ("classes", "images", "image_class_labels", "train_test_split")],
    "pets": ["annotations/trainval.txt", "annotations/test.txt"],
    "sun": ["Training_01.txt", "Testing_01.txt"],
    "aircraft": ["fgvc-aircraft-2013b/data/variants.txt",
                 *(f"{VARIANT}{part}.txt" for part in official.PARTS)],
    "dtd": [f"dtd/labels/{part}1.txt" for part in official.PARTS],
    "imagenet": [f"{KIT}meta.mat", f"{KIT}ILSVRC2012_validation_ground_truth.txt"],
}  # fmt: skip
EVERY = [(name, path) for name, paths in LISTS.items() for path in paths]


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def unpacked(root: Path, name: str) -> Path:
    """A project whose set ``name`` is a folder that the user has unpacked; returns the folder."""
    contents, made = getattr(official, name)(), root / "mine"
    members = []
    for archive in registry.load("datasets", name, "").CARD.archives:
        storage.write_bytes(root / "given" / archive.name, contents[archive.name])
        members.append((root / "given" / archive.name, archive.into, 1000))
    archives.unpack(members, made, quiet)
    params = tiny_params()
    params["datasets"][name] = {"path": "mine", "stored": 16, "size": 16}
    write_params(root, params)
    return made


def refused(root: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        prepare.prepare(workspace(root), name, progress=quiet)
    assert not (root / "data").exists()
    return str(error.value)


def in_the_second_line(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def harm(content: bytes) -> bytes:
        first, second, *others = content.split(b"\n")
        return b"\n".join([first, change(second), *others])

    return harm


def cut(content: bytes) -> bytes:
    """In the middle of the second line."""
    return content[: content.index(b"\n") + 3]


TEXT_HARMS = {
    "cut off": (cut, "line 2 is not in the format of the set's makers: got b'"),
    "another encoding": (lambda content: content.decode().encode("utf-16"), "line 1 is not in"),
    "a strange byte": (in_the_second_line(lambda line: b"\xff" + line), "line 2 is not in"),
    "zeros, as after a crash": (lambda content: bytes(len(content)), "line 1 is not in"),
    "a web page": (lambda content: b"<html>\n<p>404</p>\n</html>", "is not in the format of"),
    "empty": (lambda content: b"\n", "the list is empty"),
}
# what is left is a list of names or of numbers like any other: it no longer fits the images
ELSEWHERE = {
    (LISTS["aircraft"][0], "cut off"): "images_variant_train.txt: line 5 is not in",
    (LISTS["aircraft"][0], "a web page"): "images_variant_train.txt: line 1 is not in",
    (LISTS["imagenet"][1], "cut off"): "val/ILSVRC2012_val_00000003.JPEG is of an unknown class",
}
MAT_HARMS = {
    "cut off": (lambda content: content[: len(content) // 2], "cannot be read ("),
    "a web page": (lambda content: b"<html>" * 99, "cannot be read ("),
    "empty": (lambda content: b"", "cannot be read ("),
    "another variable": (lambda content: official.matlab(other=1), "cannot be read (KeyError"),
}


def harmed(root: Path, name: str, path: str, harm: Callable[[bytes], bytes]) -> str:
    made = unpacked(root, name) / path
    made.write_bytes(harm(made.read_bytes()))
    return refused(root, name)


@pytest.mark.parametrize("harm", TEXT_HARMS)
@pytest.mark.parametrize(("name", "path"), [e for e in EVERY if e[1].endswith(".txt")])
def test_a_harmed_list_is_named_with_its_line(
    tmp_path: Path, name: str, path: str, harm: str
) -> None:
    change, message = TEXT_HARMS[harm]
    refusal = harmed(tmp_path, name, path, change)
    if (path, harm) in ELSEWHERE:
        assert ELSEWHERE[path, harm] in refusal
    else:
        assert f"mine/{path}: " in refusal
        assert message in refusal


@pytest.mark.parametrize("harm", MAT_HARMS)
@pytest.mark.parametrize(("name", "path"), [e for e in EVERY if e[1].endswith(".mat")])
def test_a_harmed_matlab_file_is_named(tmp_path: Path, name: str, path: str, harm: str) -> None:
    change, message = MAT_HARMS[harm]
    refusal = harmed(tmp_path, name, path, change)
    assert f"mine/{path}: " in refusal
    assert message in refusal


@pytest.mark.parametrize(
    ("name", "path", "variables", "message"),
    [
        ("dogs", "train_list.mat", {"file_list": [1, 2], "labels": [1, 2]}, "entry 1 is not in"),
        ("dogs", "train_list.mat", {"file_list": official.cells(["a-b/1.jpg", "c"]),
                                    "labels": [1, 2]}, "entry 2 is not in"),
        ("dogs", "train_list.mat", {"file_list": official.cells(["a-b/1.jpg", "c-d/2.jpg"]),
                                    "labels": [1, float("inf")]}, "entry 2 is not in"),
        ("dogs", "train_list.mat", {"file_list": official.cells(["a-b/1.jpg", "c-d/2.jpg"]),
                                    "labels": [1, 2, 3]}, "2 of file_list, 3 of labels"),
        ("cars", "devkit/cars_meta.mat", {"class_names": [1.0]}, "entry 1 is not in"),
        ("cars", "devkit/cars_train_annos.mat", {"annotations": [1.0]}, "entry 1 is not in"),
        ("cars", "devkit/cars_train_annos.mat",
         {"annotations": official.structs([{"fname": "1.jpg", "class": "x"}])}, "entry 1 is not"),
        ("imagenet", f"{KIT}meta.mat", {"synsets": [1.0]}, "entry 1 is not in"),
    ],
)  # fmt: skip
def test_matlab_files_with_other_things_in_them(
    tmp_path: Path, name: str, path: str, variables: dict, message: str
) -> None:
    refusal = harmed(tmp_path, name, path, lambda content: official.matlab(**variables))
    assert f"mine/{path}: " in refusal
    assert message in refusal


@pytest.mark.parametrize(("name", "path"), EVERY)
def test_a_list_that_is_not_there(tmp_path: Path, name: str, path: str) -> None:
    (unpacked(tmp_path, name) / path).unlink()
    refusal = refused(tmp_path, name)
    assert Path(path).name in refusal or f"`uotft data prepare {name}` fetches" in refusal


@pytest.mark.parametrize("name", ["cub", "sun", "dtd", "pets", "aircraft"])
def test_a_list_that_ends_early_is_seen_in_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whole lines are missing: nothing is wrong with those that are there."""
    folder = unpacked(tmp_path, name)
    module = registry.load("datasets", name, "")
    card = official.card(name, getattr(official, name)())
    monkeypatch.setattr(module, "CARD", card)
    assert "its makers count" not in prepare.prepare(workspace(tmp_path), name, progress=quiet)
    path = folder / LISTS[name][-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:-1]))
    if name == "cub":
        shutil.rmtree(tmp_path / "data")
        assert "is missing from images.txt, " in refused(tmp_path, name)
    else:
        line = prepare.prepare(workspace(tmp_path), name, progress=quiet)
        assert f"its makers count {card.images['train']} train, " in line


def test_a_class_folder_of_caltech_that_is_a_file(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "caltech") / "caltech-101"
    (folder / "101_ObjectCategories").rename(folder / "moved")
    (folder / "101_ObjectCategories").write_bytes(b"")
    assert "101_ObjectCategories: Not a directory" in refused(tmp_path, "caltech")


def test_caltech_without_images(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "caltech") / "caltech-101"
    (folder / "101_ObjectCategories").rename(folder / "moved")
    (folder / "101_ObjectCategories").mkdir()
    assert "101_ObjectCategories: no image" in refused(tmp_path, "caltech")


def test_a_list_with_windows_lines_and_a_mark_is_read(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "cub")
    for path in LISTS["cub"]:
        content = (folder / path).read_bytes().replace(b"\n", b"\r\n")
        (folder / path).write_bytes(b"\xef\xbb\xbf" + content)
    assert "3 classes" in prepare.prepare(workspace(tmp_path), "cub", progress=quiet)
