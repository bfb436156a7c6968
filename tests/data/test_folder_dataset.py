"""The data set `folder`: folders, archives and lists of the user's own, and their mistakes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from support import dataset_archives as official
from support.projects import tiny_params, workspace, write_params
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.data import files
from uotft.pipeline import prepare as prepare_stage, readers


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def prepare(root: Path, path: object, **settings: object) -> ImageSet:
    params = tiny_params()
    section = {"kind": "folder", "path": str(path), "stored": 16, "size": 16, **settings}
    params["datasets"]["birds"] = section
    write_params(root, params)
    prepare_stage.prepare(workspace(root), "birds", progress=quiet)
    return readers.images(workspace(root), "birds")


def wrong(root: Path, path: object, **settings: object) -> str:
    with pytest.raises(UserError) as error:
        prepare(root, path, **settings)
    assert not (root / "data").exists()
    return str(error.value)


MEMBERS = {
    f"{part}/{name}/{i}.jpg": official.picture(label, part, i)
    for part in official.PARTS
    for label, name in enumerate(("lark", "wren"))
    for i in range(3)
}


def write(folder: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def right(images: ImageSet) -> None:
    """Every image has the label and the part that its colour says."""
    assert images.names == ("lark", "wren")
    pixels = images.images[np.arange(len(images.labels))][:, 8, 8].astype(int)
    assert np.abs(pixels[:, 0] - (20 + 40 * images.labels)).max() < 8
    blue = np.array([official.PARTS[part] for part in images.splits.tolist()])
    assert np.abs(pixels[:, 2] - blue).max() < 8
    assert len(images.labels) == len(MEMBERS)


@pytest.mark.parametrize("top", ["", "birds/"])
@pytest.mark.parametrize("name", ["b.zip", "b.tar", "b.tar.gz"])
def test_an_archive_of_the_layout(tmp_path: Path, name: str, top: str) -> None:
    make = {"b.zip": official.zipped, "b.tar": official.tar, "b.tar.gz": official.tgz}[name]
    (tmp_path / name).write_bytes(make({top + member: c for member, c in MEMBERS.items()}))
    right(prepare(tmp_path, name))


def test_an_archive_is_unpacked_once_and_another_anew(tmp_path: Path) -> None:
    place, archive = tmp_path / "cache" / "unpacked", tmp_path / "b.zip"
    archive.write_bytes(official.zipped(MEMBERS))
    prepare(tmp_path, "b.zip")
    (made,) = place.iterdir()
    before = made.stat().st_mtime_ns
    prepare(tmp_path, "b.zip")
    assert made.stat().st_mtime_ns == before
    archive.write_bytes(
        official.zipped({**MEMBERS, "train/lark/4.jpg": official.picture(0, "train", 4)})
    )
    assert len(prepare(tmp_path, "b.zip").labels) == len(MEMBERS) + 1
    assert len(list(place.iterdir())) == 2


def table(members: dict[str, bytes], *columns: str) -> pd.DataFrame:
    rows = [(path, path.split("/")[1], path.split("/")[0]) for path in members]
    return pd.DataFrame(rows, columns=["path", "label", "split"])[list(columns)]


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_list(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "photos", MEMBERS)
    listed = table(MEMBERS, "label", "path", "split")
    if name == "list.csv":
        listed.to_csv(folder / name, index=False, encoding="utf-8-sig")  # as Excel writes it
    else:
        listed.to_parquet(folder / name)
    right(prepare(tmp_path, folder / name))


def test_a_list_without_parts_is_cut_as_a_folder_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", MEMBERS)
    table(MEMBERS, "path", "label").to_csv(folder / "list.csv", index=False)
    images = prepare(tmp_path, folder / "list.csv")
    parts = {part: len(images.rows(part)) for part in official.PARTS}
    assert parts == {"train": 12, "val": 2, "test": 4}


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_a_zip_with_a_list(tmp_path: Path, name: str) -> None:
    flat = {f"{i}.jpg": content for i, content in enumerate(MEMBERS.values())}
    listed = table(MEMBERS, "path", "label", "split").assign(path=list(flat))
    content = listed.to_csv(index=False).encode() if name.endswith("csv") else listed.to_parquet()
    (tmp_path / "b.zip").write_bytes(official.zipped({**flat, name: content}))
    right(prepare(tmp_path, "b.zip"))


def test_images_outside_the_folder_of_their_list(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", MEMBERS)
    listed = table(MEMBERS, "path", "label", "split")
    listed["path"] = [str(folder / path) for path in listed["path"]]
    (tmp_path / "lists").mkdir()
    listed.to_csv(tmp_path / "lists" / "list.csv", index=False)
    right(prepare(tmp_path, tmp_path / "lists" / "list.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,class\na.jpg,lark\n",
            "no column path and no column label; a list needs the columns path (relative",
        ),
        ("path,label\na.jpg,\n", "row 1: needs a path and a label"),
        ("path,label,split\na.jpg,lark,tests\n", "row 1: split: got 'tests'; known are train, val"),
        ("path,label\n", "it lists no image"),
        ("path,label\nnone.jpg,lark\n", "none.jpg: No such file"),
        ("path,label,split\na.jpg,lark,test\n", "class 'lark' has no training image"),
        ("path,label\na.jpg\0,lark\n", "row 1: needs a path and a label"),
        (
            "path,label,split\na.jpg,lark,train\na.jpg,lark,test\n",
            "row 2: a.jpg is test here, but train in row 1",
        ),
        ("path,label\n\xff,lark\n", "the list cannot be read ('utf-8' codec"),
    ],
)
def test_mistakes_in_a_list(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(official.picture(0, "train"))
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    assert message in wrong(tmp_path, "list.csv")


def test_a_broken_parquet_list(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(b"PAR1 and no more")
    assert "list.parquet: the list cannot be read" in wrong(tmp_path, "list.parquet")


def test_labels_of_a_parquet_list_may_be_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", MEMBERS)
    listed = table(MEMBERS, "path", "label", "split")
    listed["label"] = [int(label == "wren") for label in listed["label"]]
    listed.to_parquet(folder / "list.parquet")
    assert prepare(tmp_path, folder / "list.parquet").names == ("0", "1")


def test_a_source_needs_no_tests(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", MEMBERS)
    table(MEMBERS, "path", "label").to_csv(folder / "list.csv", index=False)
    images = prepare(tmp_path, folder / "list.csv", test=0.0)
    assert (len(images.rows("train")), len(images.rows("test"))) == (14, 0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: no such folder or file"),
        ("notes.txt", "notes.txt: neither a folder nor a file that ends in .tar,"),
        ("empty", "empty: no image in a folder named after its class"),
        ("evil.zip", "'../evil.jpg': its path leaves the folder"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "evil.zip").write_bytes(official.zipped({"../evil.jpg": b""}))
    assert message in wrong(tmp_path, path)


def test_a_path_starts_from_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "photos", MEMBERS)
    monkeypatch.chdir(os.path.sep)
    right(prepare(tmp_path, "photos"))


def test_a_file_that_changed_after_it_was_prepared_is_not_used(tmp_path: Path) -> None:
    """Its manifest, and so every fingerprint downstream, is of other bytes."""
    folder = write(tmp_path / "photos", MEMBERS)
    prepare(tmp_path, "photos")
    shutil.rmtree(tmp_path / "cache" / "birds")
    (folder / "train/lark/0.jpg").write_bytes(official.picture(1, "test"))
    images = readers.images(workspace(tmp_path), "birds")
    with pytest.raises(UserError, match=r"lark/0\.jpg: it changed since"):
        images.images[images.rows("train")]


def test_hold_out_depends_on_the_seed_and_leaves_every_class_an_image() -> None:
    labels = np.repeat(np.arange(4), [1, 2, 10, 40])
    kept, held = files.hold_out(labels, 0.25, 0)
    assert sorted([*kept, *held]) == list(range(53))
    assert np.bincount(labels[held], minlength=4).tolist() == [0, 1, 2, 10]
    assert np.array_equal(files.hold_out(labels, 0.25, 0)[1], held)
    assert not np.array_equal(files.hold_out(labels, 0.25, 1)[1], held)
