"""Archives and lists as tools of Windows and macOS write them: read, or refused with the reason."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from support import dataset_archives as official
from support.folder_datasets import SMALL, many, quiet
from uotft.core.errors import UserError
from uotft.data.datasets import folder
from uotft.data.lists import Found

Members = list[tuple[str, bytes]]


def members(*names: str) -> Members:
    return [(name, name.encode()) for name in names]


def zipped(contents: Members) -> bytes:
    """A zip whose names are exactly these, one after the other."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i, (name, content) in enumerate(contents):
            info = zipfile.ZipInfo(str(i))
            info.filename, info.create_system = name, 0
            archive.writestr(info, content)
    return file.getvalue()


def found(root: Path, path: str) -> Found:
    return folder.found(folder.Settings(path=path, **SMALL), quiet, root)


def read(root: Path, path: str, content: bytes) -> tuple[set[str], str]:
    """{part/class: content}, and the lines for the user; the same again, not unpacked anew."""
    (root / path).write_bytes(content)
    known = found(root, path)
    assert found(root, path) == known
    inside = {f"{p}/{c}: {(known.folder / n.decode()).read_text()}" for n, c, p in known.rows}
    return inside, "\n".join(known.notes)


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    contents = [("photos\\", b""), *members("photos\\cat\\0.png", "photos\\dog\\0.png")]
    inside, notes = read(tmp_path, "windows.zip", zipped(contents))
    assert inside == {"train/cat: photos\\cat\\0.png", "train/dog: photos\\dog\\0.png"}
    assert not notes


@pytest.mark.parametrize("name", ["..\\evil.jpg", "a\\..\\..\\evil.jpg", "\\evil.jpg"])
def test_backslashes_leave_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(members("cat/0.png", name)))
    with pytest.raises(UserError, match=r"refused because of .*: its path leaves the folder"):
        found(tmp_path, "a.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_that_is_there_twice_the_later_file_counts(tmp_path: Path) -> None:
    twice = [*members("cat/0.png", "dog/0.png", "dog/1.png"), ("cat/0.png", b"later")]
    inside, notes = read(tmp_path, "a.zip", zipped(twice))
    assert {name for name in inside if "cat" in name} == {"train/cat: later"}
    assert notes == "names that the archive has twice (1); the later file is kept: cat/0.png"


def test_names_that_differ_in_case_are_two_classes(tmp_path: Path) -> None:
    inside, notes = read(tmp_path, "a.zip", zipped(members("Cat/0.png", "cat/0.png")))
    assert inside == {"train/Cat: Cat/0.png", "train/cat: cat/0.png"}
    assert "differ in case only: 'Cat' and 'cat'" in notes


@pytest.mark.parametrize("name", ["A.ZIP", "A.Tar", "A.TAR.GZ", "A.Tgz"])
def test_endings_of_archives_in_any_case(tmp_path: Path, name: str) -> None:
    contents = dict(members("a/1.jpg", "b/1.jpg"))
    make = {"zip": official.zipped, "tar": official.tar}.get(name[2:].lower(), official.tgz)
    assert len(read(tmp_path, name, make(contents))[0]) == 2


@pytest.mark.parametrize(
    "name", ["LIST.PARQUET", "LIST.CSV", "photos/Manifest.Parquet", "photos/MANIFEST.CSV"]
)
def test_endings_of_lists_in_any_case(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    listed = pd.DataFrame([("1.jpg", "a"), ("2.jpg", "b")], columns=["path", "label"])
    if name.endswith("CSV"):
        listed.to_csv(tmp_path / name, index=False)
    else:
        listed.to_parquet(tmp_path / name)
    known = found(tmp_path, name if "/" not in name else "photos")
    assert known.folder == (tmp_path / name).parent
    assert known.rows == [(b"1.jpg", "a", "train"), (b"2.jpg", "b", "train")]


def test_two_manifests_are_refused(tmp_path: Path) -> None:
    for name in ("manifest.csv", "Manifest.CSV"):
        (tmp_path / name).write_text("path,label\n1.jpg,a\n")
    with pytest.raises(UserError, match=r"2 lists \(Manifest.CSV, manifest.csv\); keep one"):
        found(tmp_path, ".")


@pytest.mark.parametrize("top", ["", "brain-data/", "Training/"])
def test_the_folder_around_the_parts_of_an_archive(tmp_path: Path, top: str) -> None:
    names = [*many(f"{top}Train/", "ab", 2), *many(f"{top}Test/", "ab", 1), "Thumbs.db"]
    inside, notes = read(tmp_path, "a.zip", zipped(members(*names)))
    assert sorted({name.partition(":")[0] for name in inside}) == [
        "test/a", "test/b", "train/a", "train/b"
    ]  # fmt: skip
    assert ("reading Training/" in notes) == (top == "Training/")


def test_inner_archives_that_are_the_parts(tmp_path: Path) -> None:
    inner = [
        (f"{part}.zip", zipped(members(*many(f"{part}/", "ab", 1)))) for part in ("Train", "Test")
    ]
    inside, _ = read(tmp_path, "a.zip", zipped(inner))
    assert len(inside) == 4


def test_a_compression_that_is_not_known_is_said(tmp_path: Path) -> None:
    """Explorer writes Deflate64, kind 9, where there are more than 2 GB."""
    content = bytearray(zipped(members("a/1.jpg", "b/1.jpg")))
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        start = content.index(mark) + at
        content[start : start + 2] = b"\x09\x00"
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: cannot be unpacked .*compression"):
        found(tmp_path, "a.zip")


@pytest.mark.parametrize("name", ["a.rar", "a.7z", "a.jpg"])
def test_what_is_no_archive_names_the_endings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"Rar!")
    with pytest.raises(UserError, match=r"neither a folder nor a file that ends in \.tar,.*\.csv"):
        found(tmp_path, name)


def test_names_that_macos_does_not_mark_as_utf_8(tmp_path: Path) -> None:
    """The zip is made by hand: zipfile marks them. Names in an old code page stay as they are."""
    right = zipped([("Café/0.png", b"1"), ("Häher/0.png", b"2")])
    marked = [i for i in range(len(right)) if right[i : i + 4] in (b"PK\x01\x02", b"PK\x03\x04")]
    made = bytearray(right)
    for at in marked:
        made[at + (9 if made[at + 2] == 1 else 7)] &= ~0x08
    assert bytes(made) != right
    inside, notes = read(tmp_path, "mac.zip", bytes(made))
    assert inside == {"train/Café: 1", "train/Häher: 2"}
    assert not notes
    old = bytes(made).replace("é".encode(), b"e\x82").replace("ä".encode(), b"a\x84")
    inside, _ = read(tmp_path, "dos.zip", old)
    assert inside == {"train/Cafeé: 1", "train/Haäher: 2"}
