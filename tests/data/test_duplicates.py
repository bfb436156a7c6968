"""One picture in several files of one data set: one row each, no picture in two parts."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.folder_datasets import load, many, quiet, tree
from support.pictures import encoded, scene
from support.projects import tiny_params, workspace, write_params
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import Files, ImageSet
from uotft.data import duplicates, files
from uotft.pipeline import datasets, prepare


def copy(root: Path, name: str, to: str) -> None:
    (root / to).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / name, root / to)


def parts(images: ImageSet) -> dict[str, set[bytes]]:
    """{part: the SHA-256 of its pictures}."""
    assert images.files is not None
    digests = images.files.sha256
    return {p: {digests[row].tobytes() for row in images.rows(p)} for p in set(images.splits)}


def made(*rows: tuple[str, str, str]) -> ImageSet:
    """A set without pixels; of each row what its picture is, its label and its part."""
    pictures, labels, splits = zip(*rows, strict=True)
    digests = [hashlib.sha256(p.encode()).digest() for p in pictures]
    n, names = len(rows), tuple(sorted(set(labels)))
    columns = Files(
        root="/photos",
        paths=np.array([f"{i}.jpg".encode() for i in range(n)]),
        bytes=np.full(n, 9),
        sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(n, 32),
        sizes=np.full((n, 2), 8, np.int32),
        stored=8,
        size=8,
        share=1.0,
    )
    found = np.array([names.index(label) for label in labels])
    return ImageSet(np.empty(0, np.uint8), found, np.array(splits, "U5"), names, columns)


def test_a_set_without_copies_is_left_as_it_is() -> None:
    images = made(("a", "cat", "train"), ("b", "cat", "test"), ("c", "dog", "train"))
    assert duplicates.without_copies(images) is images
    assert duplicates.noted(images).notes == ()


def test_the_first_of_the_same_part_is_kept() -> None:
    images = made(*[(p, "cat", "train") for p in "abacab"])
    found = duplicates.without_copies(images)
    assert found.files is not None
    assert found.files.paths.tolist() == [b"0.jpg", b"1.jpg", b"3.jpg"]
    assert len(found.labels) == len(found.splits) == len(found.files.bytes) == 3
    assert found.notes == (
        "copies in train, byte for byte, of others there: 3 (2.jpg = 0.jpg); one of each is kept",
    )


def test_test_keeps_a_picture_before_val_and_val_before_train() -> None:
    images = made(
        ("a", "cat", "train"), ("a", "cat", "val"), ("a", "cat", "test"),
        ("b", "cat", "train"), ("b", "cat", "val"), ("c", "cat", "train"),
    )  # fmt: skip
    found = duplicates.without_copies(images)
    assert found.files is not None
    assert found.files.paths.tolist() == [b"2.jpg", b"4.jpg", b"5.jpg"]
    assert found.splits.tolist() == ["test", "val", "train"]
    assert found.notes == (
        "copies in train, byte for byte, of files in val: 1 (3.jpg = 4.jpg); left out of train",
        "copies in train, byte for byte, of files in test: 1 (0.jpg = 2.jpg); left out of train",
        "copies in val, byte for byte, of files in test: 1 (1.jpg = 2.jpg); left out of val",
    )


def test_two_labels_are_refused_and_both_files_named() -> None:
    images = made(*[(str(i % 7), ("cat", "pet")[i // 7], "train") for i in range(14)])
    with pytest.raises(UserError) as error:
        duplicates.without_copies(images)
    lines = str(error.value).split("\n")
    assert lines[0].startswith("/photos: pictures with two labels, byte for byte: 7. Remove")
    assert lines[1] == "  0.jpg is 'cat', 7.jpg is 'pet'"
    assert lines[-1] == "  and 2 more"


def test_a_public_set_keeps_its_rows_and_says_what_it_has() -> None:
    images = made(
        ("a", "cat", "train"), ("a", "dog", "test"), ("b", "cat", "train"), ("b", "cat", "train")
    )
    found = duplicates.noted(images)
    assert found.labels is images.labels
    assert [note.split(":")[0] for note in found.notes] == [
        "copies in train, byte for byte, of others there",
        "copies in train, byte for byte, of files in test",
        "pictures with two labels, byte for byte",
    ]


def test_files_that_cannot_be_read_are_no_copies() -> None:
    images = made(("", "cat", "train"), ("", "dog", "train"), ("a", "dog", "test"))
    assert images.files is not None
    images.files.sizes[:2] = 1
    assert duplicates.without_copies(images) is images


def test_a_million_rows_take_seconds() -> None:
    n = 1_300_000
    few = made(("a", "cat", "train")).files
    assert few is not None
    digests = np.random.default_rng(0).integers(0, 256, (n, 32), np.uint8)
    digests[-5:] = digests[:5]
    many = replace(few, sha256=digests, sizes=np.full((n, 2), 9, np.int32))
    start = time.monotonic()
    found = duplicates.find(many, np.full(n, "train"))
    assert time.monotonic() - start < 20
    assert found.rows.tolist() == [*range(n - 5, n)]
    assert found.kept.tolist() == [*range(5)]


def test_copies_are_gone_before_the_cut(tmp_path: Path) -> None:
    """Three files of each picture: no picture is in two parts, and the cut counts pictures."""
    tree(tmp_path, *many("", ("cat", "dog"), 10))
    for path in [p.relative_to(tmp_path) for p in tmp_path.rglob("*.png")]:
        for i in range(2):
            copy(tmp_path, str(path), f"{path.parent}/{path.stem}-{i}.png")
    images = load(tmp_path)
    found = parts(images)
    assert {part: len(rows) for part, rows in found.items()} == {"train": 12, "val": 4, "test": 4}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["val"]
    assert len(images.labels) == 20
    assert images.notes[0].startswith("copies in train, byte for byte, of others there: 40")


def test_a_set_without_copies_is_cut_as_ever(tmp_path: Path) -> None:
    tree(tmp_path, *many("", ("cat", "dog"), 10))
    images = load(tmp_path, seed=3)
    labels, splits = np.repeat([0, 1], 10), np.full(20, "train")
    for part in ("test", "val"):
        files.cut(labels, splits, part, 0.2, 3)
    assert images.splits.tolist() == splits.tolist()
    assert images.notes == ()


def test_a_linked_class_is_two_labels(tmp_path: Path) -> None:
    tree(tmp_path, *many("", ("cat", "dog"), 3))
    (tmp_path / "kitten").symlink_to("cat")
    with pytest.raises(UserError, match=r"cat/0\.png is 'cat', kitten/0\.png is 'kitten'"):
        load(tmp_path)


def test_a_class_whose_training_images_are_all_tested_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, *many("train/", ("cat", "dog"), 3), "test/cat/x.png")
    for i in range(3):
        copy(tmp_path, f"train/dog/{i}.png", f"test/dog/{i}.png")
    with pytest.raises(UserError, match="class 'dog' has no training image that is not in test"):
        load(tmp_path)


def test_a_copy_is_not_reported_as_added(tmp_path: Path) -> None:
    """`data verify` knows the files that were left out as copies; notes are in the summary."""
    tree(tmp_path / "photos", *many("", ("cat", "dog"), 6))
    copy(tmp_path, "photos/cat/0.png", "photos/cat/again.png")
    params = tiny_params()
    params["datasets"]["pets"] = {"kind": "folder", "path": "photos", "stored": 16, "size": 16}
    write_params(tmp_path, params)
    ws = workspace(tmp_path)
    prepare.prepare(ws, "pets", progress=quiet)
    notes = storage.read_json(ws.data("pets").with_suffix(".json"))["notes"]
    assert notes[0].startswith("copies in train, byte for byte, of others there: 1 (cat/")
    assert datasets.verify(ws, "pets", quiet)[1] == []
    (tmp_path / "photos/cat/new.png").write_bytes(encoded(scene(99)))
    assert [line.split("/")[-1] for line in datasets.verify(ws, "pets", quiet)[1]] == [
        "new.png: added"
    ]
