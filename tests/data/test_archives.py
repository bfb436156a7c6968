"""What comes out of archives; those that are hostile are fault 17."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import dataset_archives as official
from support.unpacking import unpack
from uotft.core import registry


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip", "a.tar.xz", "A.TAR"])
def test_plain_files_come_out(tmp_path: Path, name: str) -> None:
    members = {"x/1.txt": b"one", "x/y/2.txt": b"", "._x": b"mac", "__MACOSX/x/._1.txt": b"mac"}
    kinds = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz"}
    mode = kinds.get(name.split(".")[-1], "w")
    content = official.zipped(members) if name == "a.zip" else official.tar(members, mode)
    made = unpack(content, name, tmp_path)
    files = {str(p.relative_to(made)): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert files == {"x/1.txt": b"one", "x/y/2.txt": b""}


def test_an_inner_archive_gets_a_folder_of_its_name(tmp_path: Path) -> None:
    inner = {"flat.tar": official.tar({"1.jpg": b"1"}), "own.zip": official.zipped({"own/2": b"2"})}
    deep = official.tar({"deep.tar": official.tar({"3": b"3"})})
    made = unpack(official.tar({**inner, "twice.tar": deep}), "a.tar", tmp_path)
    assert (made / "flat/1.jpg").read_bytes() == b"1"
    assert (made / "own/2").read_bytes() == b"2"
    assert (made / "twice/deep.tar").is_file(), "an archive three deep is a file"


@pytest.mark.parametrize("name", [n for n in registry.names("datasets") if n in official.NAMES])
def test_every_official_archive_is_known_by_its_sum(name: str) -> None:
    card = registry.load("datasets", name, "test").CARD
    assert card.name == name
    for archive in card.archives:
        assert archive.bytes > 0 or not archive.urls
        sums = (archive.sha256, 64) if archive.sha256 else (archive.md5, 32)
        assert len(sums[0]) == sums[1]
        assert set(sums[0]) <= set("0123456789abcdef")
        assert all(url.startswith(("https://", "http://vision.stanford")) for url in archive.urls)
        assert archive.urls or card.by_hand
        assert archive.sha256 or name == "imagenet"
