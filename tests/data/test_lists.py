"""Lists of images as spreadsheets and label tools write them: read as meant, or refused."""

from __future__ import annotations

import unicodedata
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from support.folder_datasets import load
from support.pictures import encoded, scene
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.data import lists

ROWS = [
    (f"images/{name}{i}.png", name, "train" if i < 4 else "val" if i < 6 else "test")
    for name in ("cat", "dog")
    for i in range(9)
]
PARTS = {"train": 8, "val": 4, "test": 6}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    for i, (path, _, _) in enumerate(ROWS):
        (root / path).write_bytes(encoded(scene(i, (12, 9))))
    return root


def written(
    folder: Path,
    head: tuple[str, ...] = ("path", "label", "split"),
    rows: list[tuple[str, ...]] = ROWS,
    *,
    separator: str = ",",
    end: str = "\n",
    encoding: str = "utf-8",
    name: str = "list.csv",
) -> Path:
    lines = [separator.join(head), *(separator.join(row) for row in rows), ""]
    (folder / name).write_bytes(end.join(lines).encode(encoding))
    return folder / name


def as_meant(images: ImageSet) -> None:
    """Every picture has the label and the part of ROWS."""
    assert images.files is not None
    assert images.names == ("cat", "dog")
    found = {
        (Path(images.files.path(row)).name, images.names[images.labels[row]], images.splits[row])
        for row in range(len(images.labels))
    }
    assert found == {(Path(path).name, label, part) for path, label, part in ROWS}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "train") for name in ("train", "TRAIN", " Training", "train set", "train-set")),
        *((name, "val") for name in ("val", "Valid", "validation", "val_set", "dev ")),
        *((name, "test") for name in ("Test", "testing", "TEST_SET", "tst")),
        *((name, None) for name in ("", "tests", "trained", "0", "contest", "detest")),
    ],
)
def test_the_names_of_parts(name: str, part: str | None) -> None:
    assert lists.part_of(name) == part


@pytest.mark.parametrize("head", ["path,label, split", "path, label, split", "Path,LABEL,Split"])
def test_columns_in_any_case_and_with_spaces(photos: Path, head: str) -> None:
    images = load(written(photos, tuple(head.split(","))))
    as_meant(images)
    assert images.notes == ()


@pytest.mark.parametrize(
    "options",
    [
        {"separator": ";"},
        {"separator": "\t"},
        {"encoding": "utf-16", "end": "\r\n"},
        {"encoding": "utf-8-sig", "end": "\r\n"},
        {"encoding": "utf-16", "separator": "\t"},  # "Unicode text" of a spreadsheet
        {"end": "\r"},
        {"name": "list.CSV"},
        {"rows": [(f'"{path}"', f' "{label}"', part) for path, label, part in ROWS]},
        {"rows": [(path.replace("/", "\\"), *rest) for path, *rest in ROWS], "end": "\r\n"},
        {"rows": [(f" {path} ", f"{label} ", f" {part.upper()}") for path, label, part in ROWS]},
        {"rows": [*ROWS, ("", "", ""), (" ",)]},
    ],
    ids="; tab utf-16 bom utf-16-tab cr CSV quoted backslashes spaces blank".split(),  # noqa: SIM905
)
def test_other_ways_to_write_the_same_list(photos: Path, options: dict) -> None:
    as_meant(load(written(photos, **options)))


def test_a_manifest_in_capitals_is_found(tmp_path: Path) -> None:
    for i, (path, _, _) in enumerate(ROWS):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(encoded(scene(i, (12, 9))))
    written(tmp_path, name="Manifest.CSV")
    as_meant(load(tmp_path))


@pytest.mark.parametrize("head", ["set", "Subset", "partition", "usage", "what I chose"])
def test_a_column_of_parts_under_another_name(photos: Path, head: str) -> None:
    images = load(written(photos, ("path", "label", head)))
    as_meant(images)
    assert images.notes == (f"the column {head!r} of the list gives the parts",)


@pytest.mark.parametrize(
    ("head", "cells"),
    [("fold", "01234"), ("Usage", ("public", "private")), ("is_valid", ("True", "False")),
     ("test", "01"), ("set", ("train", "A"))],
)  # fmt: skip
def test_a_column_that_may_say_the_parts_is_refused(
    photos: Path, head: str, cells: tuple[str, ...]
) -> None:
    rows = [(path, label, cells[i % len(cells)]) for i, (path, label, _) in enumerate(ROWS)]
    message = refused(written(photos, ("path", "label", head), rows))
    assert f"the column {head!r} with '" in message
    assert "may say which rows are tests: write a column split with train, val and test" in message


def test_two_columns_of_parts_are_refused(photos: Path) -> None:
    rows = [(*row, row[2]) for row in ROWS]
    assert "the column 'b' may say" in refused(written(photos, ("path", "label", "a", "b"), rows))


def test_columns_that_are_not_used_are_said(photos: Path) -> None:
    rows = [(str(i), *row, "me", "7") for i, row in enumerate(ROWS)]
    images = load(written(photos, ("", "path", "label", "split", "annotator", "fold"), rows))
    as_meant(images)
    assert images.notes == ("columns of the list that are not used: 'annotator', 'fold'",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\ncat0,cat\n", "no column path; a list needs the columns path"),
        ("image,id,choice,annotator\na,1,cat,2\n", "got 'image', 'id', 'choice', 'annotator'"),
        ("images/cat0.png,cat\n", "'cat'; the first line must name the columns"),
        ("path,Label,label\na,b,c\n", "two columns are called label"),
        ("path,label\nimages/cat0.png,cat,tabby\n", "row 1 has 3 cells, the header 2: write names"),
        ('path,label\n"images/cat0.png,cat\nimages/cat1.png,cat\n', "unexpected end of data"),
        ('path,label\n"images/cat0.png,cat\nimages/cat1.png",cat\n', "row 1: needs a path and a"),
        ("path,label\nimages/cat0,cat\n", "cat0.png is there: names need their ending"),
        ("path,label\nx.png,cat\nimages/cat0.png,cat\ny.png,cat\n",
         "2 of 3 files that the list names are absent, first x.png"),
        ("path,label\nimages/cat0.png,cat\n./images/cat0.png,dog\n", "is dog here, but cat in row"),
        ("path,label,split\nimages/cat0.png,cat,train\n./images/cat0.png,cat,test\n",
         "row 2: ./images/cat0.png is test here, but train in row 1"),
        ("", "no column path"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused(photos: Path, text: str, message: str) -> None:
    (photos / "list.csv").write_text(text)
    assert message in refused(photos / "list.csv")


def test_the_same_file_by_its_absolute_path_is_no_second_picture(photos: Path) -> None:
    rows = [*ROWS, *((str(photos / path), label, part) for path, label, part in ROWS)]
    images = load(written(photos, rows=rows))
    as_meant(images)
    assert images.notes == ("rows of the list that repeat an earlier one: 18; one of each is kept",)


def test_a_row_for_each_annotation_is_one_row_for_each_picture(photos: Path) -> None:
    rows = [row[:2] for row in ROWS for _ in range(3)]
    images = load(written(photos, ("path", "label"), rows))
    assert len(images.labels) == len(ROWS)
    assert images.notes == ("rows of the list that repeat an earlier one: 36; one of each is kept",)


def test_labels_are_one_class_whatever_their_form_of_unicode(photos: Path) -> None:
    forms = ("NFC", "NFD")
    rows = [
        (path, unicodedata.normalize(forms[i % 2], "Käse") if label == "cat" else label, part)
        for i, (path, label, part) in enumerate(ROWS)
    ]
    images = load(written(photos, rows=rows))
    assert images.names == (unicodedata.normalize("NFC", "Käse"), "dog")
    assert images.notes[0].startswith("labels with spaces around them or another form of Unicode:")


def test_labels_that_differ_in_case_are_said(photos: Path) -> None:
    rows = [(p, "Cat" if i == 0 else label, part) for i, (p, label, part) in enumerate(ROWS)]
    images = load(written(photos, rows=rows))
    assert images.names == ("Cat", "cat", "dog")
    assert images.notes == ("classes whose names differ in case only: 'Cat' and 'cat'",)


def test_an_empty_split_is_said(photos: Path) -> None:
    rows = [(path, label, "" if part == "train" else part) for path, label, part in ROWS]
    images = load(written(photos, rows=rows))
    as_meant(images)
    assert images.notes == ("rows of the list with an empty split: 8; they are in train",)


def test_absent_files_up_to_a_share_can_be_left_out(photos: Path) -> None:
    """`unreadable: skip` counts them with the files that cannot be read."""
    images = load(written(photos, rows=[*ROWS, ("gone.png", "cat", "train")]), unreadable="skip")
    assert len(images.labels) == len(ROWS) + 1


def test_parquet_cells_that_are_no_text_are_refused(photos: Path) -> None:
    table = pd.DataFrame(ROWS, columns=["path", "label", "split"])
    table.assign(Label=table.pop("label")).to_parquet(photos / "list.parquet")
    as_meant(load(photos / "list.parquet"))
    table["label"] = [float("nan")] * len(ROWS)
    table.to_parquet(photos / "list.parquet")
    assert "row 1: needs a path and a label" in refused(photos / "list.parquet")
    table["label"] = [b"cat"] * len(ROWS)
    table.to_parquet(photos / "list.parquet")
    assert "row 1: got a cell of type bytes; path, label and split must be text" in refused(
        photos / "list.parquet"
    )


TAGS = [*combinations(("clear", "road", "water", "field", "town"), 2)]
TAGS += combinations(("clear", "road", "water", "field", "town"), 4)


@pytest.mark.parametrize(
    ("given", "first", "count"),
    [
        (["scab", "frog_eye", "scab frog_eye"], "scab frog_eye", "1 of 3"),
        (["cat", "dog", "cat|dog"], "cat|dog", "1 of 3"),
        (["cat", "dog", "cat; dog"], "cat; dog", "1 of 3"),
        (["cat", "dog", "['cat', 'dog']"], "['cat', 'dog']", "1 of 3"),
        # tags of satellite pictures, none of which stands alone
        ([" ".join(tags) for tags in TAGS], "clear field", "15 of 15"),
        ([",".join(tags) for tags in TAGS], "clear,field", "15 of 15"),
    ],
)
def test_labels_that_are_several_in_one_are_said(
    photos: Path, given: list[str], first: str, count: str
) -> None:
    """Each becomes a class of its own: fifteen classes of five tags."""
    rows = [(path, f'"{given[i % len(given)]}"') for i, (path, _, _) in enumerate(ROWS)]
    images = load(written(photos, ("path", "label"), rows), val=0.0, test=0.0)
    assert len(images.names) == len(given)
    assert images.notes == (
        f"labels that look like several in one: {count}, such as {first!r}; each is read as one "
        "class, since a picture has one class here",
    )


@pytest.mark.parametrize(
    "names",
    [
        ("black footed albatross", "laysan albatross", "sooty albatross", "indigo bunting"),
        ("tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark"),
        ("Audi S4 Sedan 2012", "Audi S4 Sedan 2007", "BMW M3 Coupe 2012"),
        ("New York", "York"),
    ],
)
def test_names_of_several_words_are_one_label(photos: Path, names: tuple[str, ...]) -> None:
    rows = [(path, f'"{names[i % len(names)]}"') for i, (path, _, _) in enumerate(ROWS)]
    assert load(written(photos, ("path", "label"), rows), val=0.0, test=0.0).notes == ()


@pytest.mark.parametrize("none", ["nan", "None", "NULL", "N/A"])
def test_a_label_that_stands_for_none_is_said(photos: Path, none: str) -> None:
    rows = [(p, none if i % 9 < 2 else label, part) for i, (p, label, part) in enumerate(ROWS)]
    images = load(written(photos, rows=rows))
    assert images.names == tuple(sorted(("cat", "dog", none)))
    assert images.notes == (
        f"rows of the list with the label {none!r}: 4; it is read as a class: remove the rows if "
        "it means that there is no label",
    )


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        ("/content/drive/MyDrive/photos/", "images/cat0.png is there: write paths relative to"),
        ("C:\\Users\\me\\photos\\", "images/cat0.png is there: write paths relative to"),
        ("https://example.org/", "it is an address: fetch the files"),
    ],
)
def test_paths_of_elsewhere_say_what_helps(photos: Path, start: str, hint: str) -> None:
    rows = [(start + path, label, part) for path, label, part in ROWS]
    assert hint in refused(written(photos, rows=rows))
