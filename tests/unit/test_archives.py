"""Archives that are hostile or broken: refused, with nothing left behind and nothing outside."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import official
from uotft import archives, registry
from uotft.errors import UserError


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def unpack(content: bytes, name: str, folder: Path, files: int = 100) -> Path:
    path = folder / name
    path.write_bytes(content)
    archives.unpack([(path, "", files)], folder / "cache" / "made", quiet)
    return folder / "cache" / "made"


def refused(content: bytes, name: str, folder: Path, **settings: int) -> str:
    with pytest.raises(UserError) as error:
        unpack(content, name, folder, **settings)
    assert not list((folder / "cache").iterdir())
    assert sorted(p.name for p in folder.iterdir()) == sorted([name, "cache"])
    return str(error.value)


def strange(kind: bytes, name: str, target: str = "") -> bytes:
    """A tar with one member of a kind."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip", "a.tar.xz", "A.TAR"])
def test_plain_files_come_out(tmp_path: Path, name: str) -> None:
    members = {"x/1.txt": b"one", "x/y/2.txt": b"", "._x": b"mac", "__MACOSX/x/._1.txt": b"mac"}
    kinds = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz"}
    mode = kinds.get(name.split(".")[-1], "w")
    content = official.zipped(members) if name == "a.zip" else official.tar(members, mode)
    made = unpack(content, name, tmp_path)
    files = {str(p.relative_to(made)): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert files == {"x/1.txt": b"one", "x/y/2.txt": b""}


@pytest.mark.parametrize("name", ["../evil.txt", "x/../../evil.txt", "/tmp/evil.txt"])
@pytest.mark.parametrize("make", [official.tar, official.zipped])
def test_paths_that_leave(tmp_path: Path, name: str, make) -> None:  # noqa: ANN001
    suffix = "a.tar" if make is official.tar else "a.zip"
    said = refused(make({"fine.txt": b"fine", name: b"evil"}), suffix, tmp_path)
    assert "its path leaves the folder" in said
    assert name in said
    assert not Path("/tmp/evil.txt").exists()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, ".."),
        (tarfile.LNKTYPE, "../../outside"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices(tmp_path: Path, kind: bytes, target: str) -> None:
    said = refused(strange(kind, "link", target), "a.tar", tmp_path)
    assert "it is a link or device" in said


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "it is a link or device" in refused(file.getvalue(), "a.zip", tmp_path)


def test_no_file_becomes_setuid_or_executable(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("tool")
        info.mode = 0o6777
        archive.addfile(info)
    made = unpack(file.getvalue(), "a.tar", tmp_path)
    assert (made / "tool").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("make", [official.tgz, official.zipped])
def test_a_bomb(tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    """A thousandfold: stopped before the member that is too much is written."""
    monkeypatch.setattr(archives, "SLACK", 2**20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**24))
    content = file.getvalue() if make is official.zipped else official.tgz({"zeros": bytes(2**24)})
    assert len(content) * 900 < 2**24
    suffix = "a.zip" if make is official.zipped else "a.tar.gz"
    assert "100 times its own size" in refused(content, suffix, tmp_path)


def test_a_bomb_in_an_archive_in_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SLACK", 2**20)
    inner = official.tgz({"zeros": bytes(2**24)})
    assert "100 times" in refused(official.tar({"inner.tgz": inner}), "a.tar", tmp_path)


def test_a_bomb_of_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SLACK", 0)
    many = official.tgz({f"{i}": b"" for i in range(2000)})
    assert "100 times its own size" in refused(many, "a.tgz", tmp_path, files=2000)


def test_too_many_files(tmp_path: Path) -> None:
    many = official.tar({f"{i}": b"" for i in range(101)})
    assert "more than 100 files" in refused(many, "a.tar", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar.gz", official.tgz({"x": os.urandom(5000)})[:-2000]),
        ("a.tar", official.tar({"x": bytes(5000)})[:3000]),
        ("a.zip", official.zipped({"x": bytes(5000)})[:3000]),
        ("a.tar", b"<html>not found</html>"),
        ("a.zip", b""),
        ("a.tar", official.tar({"x": b"1", "x/y": b"2"})),
    ],
)
def test_broken_ones(tmp_path: Path, name: str, content: bytes) -> None:
    assert "cannot be unpacked" in refused(content, name, tmp_path)


def test_an_inner_archive_gets_a_folder_of_its_name(tmp_path: Path) -> None:
    inner = {"flat.tar": official.tar({"1.jpg": b"1"}), "own.zip": official.zipped({"own/2": b"2"})}
    deep = official.tar({"deep.tar": official.tar({"3": b"3"})})
    made = unpack(official.tar({**inner, "twice.tar": deep}), "a.tar", tmp_path)
    assert (made / "flat/1.jpg").read_bytes() == b"1"
    assert (made / "own/2").read_bytes() == b"2"
    assert (made / "twice/deep.tar").is_file(), "an archive three deep is a file"


def test_a_password(tmp_path: Path) -> None:
    content = bytearray(official.zipped({"x": b"1"}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    assert "password" in refused(bytes(content), "a.zip", tmp_path)


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
