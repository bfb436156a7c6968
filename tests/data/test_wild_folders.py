"""Folders as people and tools leave them: what each is read as, what is said, what is refused."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from support.folder_datasets import load, many
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.data import files, folders, walk
from uotft.data.pixel_cache import Store

Found = dict[str, dict[str, int]]  # {part: {class: images}}


def place(root: Path, *names: str) -> Path:
    """Files that all differ; no test here looks into them."""
    return pictures.write(root, {name: f"{root}/{name}".encode() for name in names})


def counts(images: ImageSet) -> Found:
    found: Found = {}
    pairs = zip(images.splits.tolist(), images.labels.tolist(), strict=True)
    for (part, label), n in sorted(Counter(pairs).items()):
        found.setdefault(part, {})[images.names[label]] = n
    return found


def read(root: Path) -> tuple[Found, str]:
    """The images of each part and class, nothing cut; and the lines for the user."""
    images = load(root, test=0.0, val=0.0)
    return counts(images), "\n".join(images.notes)


def refused(root: Path) -> str:
    with pytest.raises(UserError) as error:
        folders.scan(root)
    with pytest.raises(UserError):
        load(root)
    return str(error.value)


CATS = {"a": 3, "b": 3}
BOTH = {"train": CATS, "test": {"a": 2, "b": 2}}


def both(train: str, test: str) -> list[str]:
    return [*many(train, "ab", 3), *many(test, "ab", 2)]


# ---- names of parts


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"), ("Train", "Test"), ("train", "Test"), ("TRAIN", "TEST"),
        ("trainset", "testset"), ("training_set", "test_set"), ("Training Data", "Testing Data"),
        ("trainImages", "testImages"), ("train-images", "testing"), (" train", "test "),
        ("1_train", "2_test"), ("seg_train", "seg_test"), ("train2017", "test2017"),
        ("birds.train", "birds.test"), ("brain-data/train", "brain-data/test"),
        ("a/b/c/Train", "a/b/c/Test"), ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"), ("train/images", "test/images"),
        ("train", "test1"),
    ],
)  # fmt: skip
def test_parts_in_every_spelling(tmp_path: Path, train: str, test: str) -> None:
    place(tmp_path, *both(f"{train}/", f"{test}/"))
    found, notes = read(tmp_path)
    assert found == BOTH
    assert ("the only folder there that has images" in notes) == (train.count("/") > 0)


@pytest.mark.parametrize(
    "name", ["val", "Valid", "VALIDATION", "dev", "validation_set", "val_data"]
)
def test_names_of_the_validation_part(tmp_path: Path, name: str) -> None:
    place(tmp_path, *both("train/", f"{name}/"))
    assert read(tmp_path)[0] == {"train": CATS, "val": {"a": 2, "b": 2}}


def test_a_class_may_hold_its_parts(tmp_path: Path) -> None:
    names = [*many("a/", ["train"], 3), *many("b/", ["train"], 3)]
    names += [*many("a/", ["Test"], 2), *many("b/", ["Test"], 2)]
    found, notes = read(place(tmp_path, *names))
    assert found == BOTH
    assert "each class holds its own parts" in notes


@pytest.mark.parametrize(
    "name", ["prevalence", "contest", "trained", "device", "a train", "testimony"]
)
def test_a_name_that_only_contains_such_a_word_is_a_class(tmp_path: Path, name: str) -> None:
    found, notes = read(place(tmp_path, *many(f"{name}/", "xy", 2), *many("", "b", 2)))
    assert found == {"train": {name: 4, "b": 2}}
    assert not notes


def test_folders_beside_the_parts_are_counted(tmp_path: Path) -> None:
    names = [*both("seg_train/", "seg_test/"), *many("seg_pred/", "p", 4), "extra/x/1.jpg"]
    found, notes = read(place(tmp_path, *names))
    assert found == BOTH
    assert "left out 5 images beside the parts seg_test, seg_train: 4 in seg_pred/, 1 in" in notes


def test_a_test_part_without_classes_is_counted(tmp_path: Path) -> None:
    names = [*many("train/", "ab", 3), *(f"test/{i}.jpg" for i in range(7))]
    found, notes = read(place(tmp_path, *names))
    assert found == {"train": CATS}
    assert "left out 7 images outside all class folders: 7 in test/" in notes


def test_a_part_without_an_image_is_named(tmp_path: Path) -> None:
    names = [*many("train/", "ab", 3), *many("val/", "a", 2), "val/b/x.txt", "Test/a/1.heic"]
    found, notes = read(place(tmp_path, *names))
    assert found == {"train": CATS, "val": {"a": 2}}
    assert "no image in the folders Test, val/b" in notes
    assert "left out 2 non-image files: 1 .heic, 1 .txt" in notes
    assert ".heic (convert to .jpg)" in notes


DAY = [
    f"{c}/{t}/{i}.png" for c in ("bus", "car", "train") for t in ("day", "night") for i in (1, 2)
]
AB = many("", "ab", 3)
LOOKED = (
    "no image in a folder named after its class; looked for CLASS/image and train/CLASS/image. "
    "Make a folder for each class, or list the images in manifest.csv, with the columns path and "
    "label. For a source without labels set labels: false in its section of params.yaml"
)
AMBIGUOUS = {
    "a part that is there twice": (
        [*both("Train/", "test/"), *many("training/", "ab", 1)],
        "2 folders are named like the part train (Train, training); merge them into one",
    ),
    "valid and val": ([*both("train/", "val/"), "valid/a/1.jpg"], "the part val (val, valid)"),
    "a class named train, with folders": (
        DAY,
        "train holds folders, like a part, beside other folders (8 images: 4 bus, 4 car). If it is "
        "a part, move the others elsewhere; if it is a class, put the folders of the classes into "
        "a folder named train",
    ),
    "an unknown name of a part": (both("train/", "holdout/"), "(4 images: 4 holdout)"),
    "classes beside a test part": ([*AB, *many("test/", "ab", 1)], "test holds folders, like a"),
    "no training part": (
        many("Testing/", "ab", 3),
        "it holds Testing and no folder of training images",
    ),
    "parts of several sets": (
        [*both("trainA/", "testA/"), *both("trainB/", "testB/")],
        "it holds parts of 2 data sets (testA, trainA, testB, trainB); keep one",
    ),
    "sets beside each other": (
        [*both("jar/train/", "jar/test/"), *both("nut/train/", "nut/test/")],
        "jar, nut hold parts (test, train), as if each were a data set of its own: name one of",
    ),
    "parts inside a part": (
        [*both("train/train/", "train/val/"), *many("test/", "ab", 1)],
        "train is a part, but holds parts itself (train, val)",
    ),
    "unknown names of all parts": (
        both("Entrainement/", "Probe/"),
        "the folders Entrainement, Probe all hold folders of the same names (a, b). If those are "
        "the classes, name one of the folders around them",
    ),
    "domains, one without a class": (
        [*many("Art/", "bcd", 1), *many("Clipart/", "abcd", 1), *many("Real/", "abcd", 1)],
        "Art, Clipart, Real all hold folders of the same names (b, c, d)",
    ),
    "a second copy of the set": (
        [*AB, *many("all/", "ab", 3)],
        "all holds folders named like those beside it (a, b), as if it were a second copy",
    ),
    "the training part once more": (
        [*both("train/", "test/"), *many("train/copy/", "ab", 3)],
        "copy holds folders named like those beside it",
    ),
    "parts without classes": (
        ["train/1.jpg", "train/2.jpg", "test/1.jpg"],
        f"{LOOKED}\n  left out 3 images outside all class folders: 2 in train/, 1 in test/",
    ),
    "parts without classes, as Kaggle has them": (
        ["train/cat.0.jpg", "train/dog.0.jpg", "test1/1.jpg"],
        f"{LOOKED}\n  left out 3 images outside all class folders: 2 in train/, 1 in test1/",
    ),
    "other parts without classes": (
        ["A_train/1.jpg", "A_test/1.jpg"],
        "left out 2 images outside all",
    ),
    "loose images": (
        ["1.jpg", "2.jpg", "a.txt"],
        f"{LOOKED}\n  left out 2 images outside all class folders: 2 in ./\n"
        "  left out 1 non-image file: 1 .txt",
    ),
    "one class": (
        ["cat/1.jpg", "cat/2.jpg"],
        "all images (2) are of one class, 'cat'; at least two classes are needed: name",
    ),
    "one class in parts": (["train/cat/1.jpg", "test/cat/2.jpg"], "of one class, 'cat'"),
    "one class that Pillow reads": (
        ["cat/1.jpg", "dog/1.heic"],
        "name the folder that holds the folders of the classes\n  no image in the folder dog\n",
    ),
    "archives": (["set.zip", "readme.txt"], "left out 2 non-image files: 1 .txt, 1 .zip"),
    "a class that is only tested": (
        [*many("train/", "ab", 3), *many("test/", "abc", 1)],
        "class 'c' has no training image (test/c/0.png); such classes: 1 of 3; classes "
        "with training images: a, b",
    ),
    "a class in another case": (
        [*many("train/", "ab", 3), *many("test/", "aB", 1)],
        "class 'B' has no training image (test/B/0.png); such classes: 1 of 3; classes "
        "with training images: a, b\n  classes whose names differ in case only: 'B' and 'b'",
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, case: str) -> None:
    names, why = AMBIGUOUS[case]
    assert why in refused(place(tmp_path, *names))


def test_the_advice_for_a_class_named_train_works(tmp_path: Path) -> None:
    classes = "bus", "car", "train"
    names = [f"train/{c}/{t}/1.png" for c in classes for t in ("day", "night")]
    found, notes = read(place(tmp_path, *names))
    assert found == {"train": dict.fromkeys(classes, 2)}
    assert "the classes bus, car, train hold images in folders only (day, night)" in notes


def test_a_class_named_train_without_folders_is_one(tmp_path: Path) -> None:
    found, notes = read(
        place(tmp_path, *(f"{c}/{i}.jpg" for c in ("bus", "train") for i in (1, 2)))
    )
    assert found == {"train": {"bus": 2, "train": 2}}
    assert "train is read as a class, like the folders beside it, not as a part" in notes


def test_folders_inside_a_class_are_of_that_class(tmp_path: Path) -> None:
    found, notes = read(place(tmp_path, "a/1.jpg", "a/x/2.jpg", "a/x/y/3.jpg", "b/z/1.jpg"))
    assert found == {"train": {"a": 3, "b": 1}}
    assert not notes


# ---- files


def test_an_ordinary_folder_needs_no_word(tmp_path: Path) -> None:
    place(tmp_path / "whole", *many("", "ab", 3))
    place(tmp_path / "parts", *both("train/", "test/"))
    assert [*map(read, (tmp_path / "whole", tmp_path / "parts"))] == [
        ({"train": CATS}, ""),
        (BOTH, ""),
    ]


def test_what_pillow_reads_is_an_image(tmp_path: Path) -> None:
    forms = {
        ".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000",
        ".pgm": "PPM", ".mpo": "MPO", ".webp": "WEBP", ".tga": "TGA", ".PNG": "PNG",
    }  # fmt: skip
    contents = {
        f"{c}/{end[1:]}{end}": pictures.encoded(pictures.scene(i + 40 * (c == "b")), form)
        for c in "ab" for i, (end, form) in enumerate(forms.items())
    }  # fmt: skip
    images = load(pictures.write(tmp_path / "set", contents), test=0.0, val=0.0)
    assert counts(images) == {"train": {"a": 10, "b": 10}}
    assert not images.notes
    bad = Store(images.files, tmp_path / "store").fill(np.arange(20))
    assert not bad


@pytest.mark.parametrize("end", sorted(files.suffixes()))
def test_every_ending_is_of_a_format_that_pillow_opens(end: str) -> None:
    form = Image.registered_extensions()[end]
    assert form in Image.OPEN or form == "MPO"


@pytest.mark.parametrize("end", [".pdf", ".ps", ".eps", ".mpg", ".h5", ".wmf", ".grib", ".txt", ""])
def test_what_pillow_does_not_read_alone_is_no_image(end: str) -> None:
    assert not files.is_image(f"a{end}")
    assert end not in files.SUFFIXES


def test_other_files_are_counted_by_ending(tmp_path: Path) -> None:
    names = [
        *many("", "ab", 3),
        "a/photo",
        "README.TXT",
        *(f"b/{i}.txt" for i in range(5)),
        "c/1.mat",
    ]
    found, notes = read(place(tmp_path, *names))
    assert found == {"train": CATS}
    assert "left out 8 non-image files: 6 .txt, 1 .mat, 1 without an ending" in notes
    assert "no image in the folder c" in notes


def test_many_endings_are_one_short_line(tmp_path: Path) -> None:
    place(tmp_path, *many("", "ab", 3), *(f"a/x.{i}" for i in range(10, 30)))
    assert "left out 20 non-image files: " in read(tmp_path)[1]
    assert read(tmp_path)[1].endswith(" and 15 more")


def test_images_in_no_folder_of_a_class_are_counted(tmp_path: Path) -> None:
    found, notes = read(place(tmp_path, *both("train/", "test/"), "cover.jpg", "train/x.png"))
    assert found == BOTH
    assert "left out 2 images outside all class folders: 1 in ./, 1 in train/" in notes


SYSTEM = [
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "a/@eaDir/1.jpg", "$RECYCLE.BIN/S-1/x.jpg",
    "__MACOSX/a/._0.jpg", ".ipynb_checkpoints/1.jpg", "System Volume Information/x.png",
    "a/.thumbnails/x.jpg", "a/Thumbs.db", "a/.DS_Store", "a/._1.jpg", "Desktop.ini", ".git/HEAD",
    "lost+found/x.jpg", "#recycle/x.jpg", "@Recycle/x.jpg", ".@__thumb/x.jpg", "b/.hidden.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_what_systems_leave_is_no_class_and_no_image(tmp_path: Path, name: str) -> None:
    found, notes = read(place(tmp_path, *many("", "ab", 3), name))
    assert found == {"train": CATS}
    assert notes.startswith("left out 1 hidden or system file: 1 ")
    assert "\n" not in notes


def test_what_systems_leave_is_one_line(tmp_path: Path) -> None:
    place(tmp_path, *many("", "ab", 3), *SYSTEM)
    (tmp_path / "lost+found").chmod(0)
    assert read(tmp_path)[1].startswith("left out 1")
    assert "hidden or system files: 2 @eaDir, " in read(tmp_path)[1]
    assert "\n" not in read(tmp_path)[1]


# ---- names of classes


def test_names_that_look_the_same_are_one_class(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    names = [f"{name}/{i}.jpg" for i, name in enumerate([*forms, "cat", "cat ", " cat", "dog"])]
    found, notes = read(place(tmp_path, *names))
    assert found == {"train": {"Käse": 2, "cat": 3, "dog": 1}}
    assert "are one class: 'Käse', 'cat'" in notes or "are one class: 'cat', 'Käse'" in notes


def test_forms_may_differ_between_parts(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    names = f"train/{forms[0]}/1.jpg", f"test/{forms[1]}/1.jpg", "train/b/1.jpg", "test/b/2.jpg"
    assert read(place(tmp_path, *names))[0] == {p: {"Käse": 1, "b": 1} for p in ("train", "test")}


def test_case_alone_is_said(tmp_path: Path) -> None:
    found, notes = read(place(tmp_path, "Cat/1.jpg", "cat/2.jpg", "dog/1.jpg"))
    assert found == {"train": {"Cat": 1, "cat": 1, "dog": 1}}
    assert notes == "classes whose names differ in case only: 'Cat' and 'cat'"


# ---- links


def link(root: Path, name: str, to: str | Path) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(to, root / name)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("a/up", ".."), ("a/x/up", "../.."), ("kitten", "a"), ("0-first", "b"), ("a/self", "."),
        ("b/far", "../.."), ("b/root", "/"), ("c/a", "../a"),
    ],
)  # fmt: skip
def test_no_folder_is_read_twice_through_a_link(tmp_path: Path, name: str, to: str) -> None:
    root = place(tmp_path / "set", *many("", "ab", 3))
    place(tmp_path, "other/1.jpg")
    link(root, name, to)
    found, notes = read(root)
    assert found == {"train": CATS}
    assert f"left out 1 link to folders that were read already: {name}" in notes


def test_links_to_folders_elsewhere_are_followed_in_order(tmp_path: Path) -> None:
    """The rows, and so the cut into parts, are those of a copy of the folders."""
    place(tmp_path / "pool", *many("x/", "ac", 3))
    link(tmp_path / "set", "a", tmp_path / "pool/x/a")
    link(tmp_path / "set", "c", tmp_path / "pool/x/c")
    link(tmp_path / "pool", "x/c/loop", "../..")
    place(tmp_path / "set", *many("", "bd", 3))
    found, notes = read(tmp_path / "set")
    assert found == {"train": dict.fromkeys("abcd", 3)}
    assert notes == "left out 1 link to folders that were read already: c/loop"
    paths = [*walk.below(tmp_path / "set")]
    assert paths == sorted(paths)


def test_broken_links_and_pipes_are_counted(tmp_path: Path) -> None:
    place(tmp_path, *many("", "ab", 3))
    link(tmp_path, "a/gone.jpg", "nowhere.jpg")
    link(tmp_path, "a/round.jpg", "round.jpg")
    os.mkfifo(tmp_path / "b/pipe.jpg")
    found, notes = read(tmp_path)
    assert found == {"train": CATS}
    assert "left out 3 broken links or special files: a/gone.jpg, a/round.jpg, b/pipe.jpg" in notes


def test_a_folder_that_is_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, *many("", "ab", 3))
    real = os.scandir

    def closed(path: bytes) -> object:
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert refused(tmp_path) == f"{tmp_path}/b: Permission denied"


# ---- what lies beside the folders of the classes


@pytest.mark.parametrize("name", ["sports.csv", "train/metadata.jsonl", "a/labels.TSV"])
def test_a_list_that_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    """It may say other labels, or which pictures are tests."""
    place(tmp_path, *(many("train/", "ab", 3) if "train" in name else many("", "ab", 3)), name)
    found, notes = read(tmp_path)
    assert found == {"train": CATS}
    assert f"lists that are not read, because the folders give classes and parts: {name};" in notes


def test_a_flat_folder_with_its_list_names_the_list(tmp_path: Path) -> None:
    place(tmp_path, *(f"train/{i}.jpg" for i in range(4)), "labels.csv")
    notes = refused(tmp_path)
    assert "give classes and parts: labels.csv; to read one, set path to it: a CSV or" in notes


@pytest.mark.parametrize("names", [("images", "masks"), ("Images", "Annotations"), ("a", "labels")])
def test_folders_that_are_seldom_classes_are_said(tmp_path: Path, names: tuple[str, ...]) -> None:
    found, notes = read(place(tmp_path, *many("", names, 3)))
    assert found == {"train": dict.fromkeys(names, 3)}
    some = ", ".join(name for name in sorted(names) if name != "a")
    assert notes.startswith(f"folders read as classes, though such names seldom mean one: {some};")


@pytest.mark.parametrize("names", [[], ["cat_1.jpg", "dog_1.jpg"], ["cats.zip", "dogs.zip"]])
def test_without_a_folder_for_each_class_it_says_what_to_make(
    tmp_path: Path, names: list[str]
) -> None:
    notes = refused(place(tmp_path, *names))
    assert "Make a folder for each class, or list the images in manifest.csv, with the" in notes
