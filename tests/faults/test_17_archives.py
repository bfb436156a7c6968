"""Fault 17: hostile archives: a tar or zip with ../, an absolute path, links, devices, setuid, 10^6
files, or a bomb of 1,000 times its size; alone or in another archive.

Expected: refused; nothing is written outside the folder, and nothing is left.

docs/data.md states the limits. The cases of torchvision#9517 are among them.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support import dataset_archives as official
from support.repository import REPOSITORY
from support.unpacking import unpack
from uotft.core.errors import UserError
from uotft.data import archives


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


def test_a_password(tmp_path: Path) -> None:
    content = bytearray(official.zipped({"x": b"1"}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    assert "password" in refused(bytes(content), "a.zip", tmp_path)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "a.tar": lambda tar: tar,
    "a.tar.gz": lambda tar: gzip.compress(tar),
    "in.tar": lambda tar: official.tar({"b.tar": tar}),
    "in.tgz": lambda tar: official.tgz({"b.tar.gz": gzip.compress(tar)}),
    "in.zip": lambda tar: official.zipped({"b.tar": tar}),
}


def holding(*members: tuple[str, bytes, str, bytes]) -> bytes:
    """A tar of (name, type, target, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, target, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size, info.mode = kind, target, len(content), 0o7777
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def evils(outside: Path) -> dict[str, bytes]:
    """What each tries to put into the folder ``outside``."""
    file, link, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    up = os.path.relpath(outside, outside.parent / "cache" / "x")
    return {
        "dots": holding((f"{up}/owned", file, "", b"x")),
        "dots inside": holding((f"fine/../../{up}/owned", file, "", b"x")),
        "absolute": holding((f"{outside}/owned", file, "", b"x")),
        "through a link": holding(("sub", link, str(outside), b""), ("sub/owned", file, "", b"x")),
        "through a relative link": holding(("s", link, up, b""), ("s/owned", file, "", b"x")),
        "through two links": holding(
            ("a", link, ".", b""), ("a/b", link, "..", b""), ("a/b/owned", file, "", b"x")
        ),
        "hard link": holding(("h", hard, f"{outside}/there", b""), ("h", file, "", b"x")),
        "link for a file": holding(("f", link, f"{outside}/owned", b""), ("f", file, "", b"x")),
        "folder that leaves": holding((f"{up}/owned", tarfile.DIRTYPE, "", b"")),
        "device": holding(("null", tarfile.CHRTYPE, "", b"")),
        "disk": holding(("sda", tarfile.BLKTYPE, "", b"")),
        "pipe": holding(("pipe", tarfile.FIFOTYPE, "", b"")),
    }


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_written_outside(
    tmp_path: Path, form: str, measured: Callable[[str], None]
) -> None:
    """The old content of what a link names stays too."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "there").write_bytes(b"as it was")
    made = evils(outside)
    for number, (evil, content) in enumerate(made.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = refused(FORMS[form](content), form, folder)
        assert form in said, evil
        assert [p.name for p in outside.iterdir()] == ["there"], evil
        assert (outside / "there").read_bytes() == b"as it was", evil
    assert not list(tmp_path.rglob("owned"))
    measured(f"{len(made)} hostile archives: all refused, 0 files outside")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_called_as_its_folder(tmp_path: Path, form: str) -> None:
    content = FORMS[form](holding((".", tarfile.REGTYPE, "", b"x")))
    if form.startswith("a."):
        assert "cannot be unpacked" in refused(content, form, tmp_path)
    else:
        assert (unpack(content, form, tmp_path) / "b").read_bytes() == b"x"


@pytest.mark.parametrize("make", ["tar", "zip"])
def test_no_mode_is_taken_over(tmp_path: Path, make: str) -> None:
    content = holding(("tool", tarfile.REGTYPE, "", b"x"))
    if make == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            info = zipfile.ZipInfo("tool")
            info.external_attr = 0o106777 << 16
            archive.writestr(info, b"x")
        content = file.getvalue()
    made = unpack(content, f"a.{make}", tmp_path)
    assert (made / "tool").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("kind", [0o120777, 0o020666, 0o060666, 0o010666, 0o140777])
def test_strange_members_of_a_zip(tmp_path: Path, kind: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("strange")
        info.external_attr = kind << 16
        archive.writestr(info, "/etc")
    assert "it is a link or device" in refused(file.getvalue(), "a.zip", tmp_path)


@pytest.mark.parametrize("form", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_million_files(
    tmp_path: Path, form: str, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """One more than the limit, which is a million: empty ones, and of one byte."""
    limit = trials(2_000, archives.FILES)
    path, start = tmp_path / form, time.monotonic()
    if form == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(limit + 1):
                archive.writestr(f"{i % 1000}/{i}", b"")
    else:
        with tarfile.open(path, "w:gz" if form == "a.tar.gz" else "w") as tar:
            for i in range(limit + 1):
                tar.addfile(tarfile.TarInfo(f"{i % 1000}/{i}"))
    size = path.stat().st_size
    with pytest.raises(UserError, match="the archive would unpack to more than .* files and"):
        archives.unpack(
            [(path, "", limit)], tmp_path / "cache" / "made", lambda items, label: items
        )
    assert not list((tmp_path / "cache").iterdir())
    seconds = time.monotonic() - start
    measured(
        f"{form}: {limit + 1:,} files in {size:,} bytes refused, made and all in {seconds:.0f} s"
    )


@pytest.mark.parametrize("form", ["a.tar.gz", "a.zip", "in.tar", "in.zip"])
def test_a_thousandfold_bomb(
    tmp_path: Path, form: str, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """With the limits as they are: gzip makes at most 1,032 of one; memory stays small."""
    size = trials(2**27, 2**32)
    path, inner = tmp_path / form, tmp_path / "inner.tar.gz"
    zeros = tarfile.TarInfo("zeros")
    zeros.size = size
    if form == "a.zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("zeros", "w", force_zip64=True) as member,
        ):
            for _ in range(size // 2**22):
                member.write(bytes(2**22))
    else:
        with tarfile.open(path if form == "a.tar.gz" else inner, "w:gz") as tar:
            tar.addfile(zeros, _Zeros(size))
        content = b"" if form == "a.tar.gz" else inner.read_bytes()
        if form != "a.tar.gz":
            inner.unlink()
            make = official.tar if form == "in.tar" else official.zipped
            path.write_bytes(make({"inner.tar.gz": content}))
    ratio = size / path.stat().st_size
    assert ratio > 900
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="100 times its own size"):
            archives.unpack(
                [(path, "", 10)], tmp_path / "cache" / "made", lambda items, label: items
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not list((tmp_path / "cache").iterdir())
    assert peak < 2**26
    measured(
        f"{form}: a bomb of {size:,} bytes, {ratio:.0f} times its size, refused; "
        f"memory {peak / 2**20:+.0f} MiB"
    )


class _Zeros(io.RawIOBase):
    """A file of zeros."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_bomb_in_a_name(tmp_path: Path, kind: bytes) -> None:
    """A name, and notes in pax headers, are read into memory before anything else is known."""
    file = io.BytesIO()
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, 2**27
    with gzip.GzipFile(fileobj=file, mode="wb") as packed:
        packed.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(2**7):
            packed.write(bytes(2**20))
        packed.write(tarfile.TarInfo("x").tobuf() + bytes(1024))
    tracemalloc.start()
    try:
        said = refused(file.getvalue(), "a.tar.gz", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "a header record of 134,217,728 bytes" in said
    assert peak < 2**25


def test_a_sparse_bomb(tmp_path: Path) -> None:
    """A member of a terabyte of which nothing is in the archive."""
    file = io.BytesIO()
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole",
           "GNU.sparse.realsize": str(2**40)}  # fmt: skip
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.pax_headers, info.size = pax, 512
        archive.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    assert "100 times its own size" in refused(file.getvalue(), "a.tar", tmp_path)


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**20))
    told, lie = (2**20).to_bytes(4, "little"), (10).to_bytes(4, "little")
    content = file.getvalue().replace(told, lie)
    assert "cannot be unpacked" in refused(content, "a.zip", tmp_path)


def test_the_limits_are_stated() -> None:
    words = (REPOSITORY / "docs" / "data.md").read_text()
    assert f"{archives.RATIO} times the archive's size plus {archives.SLACK // 2**20} MiB" in words
    assert f"{archives.BLOCK // 2**10} KiB" in words
    assert f"{archives.FILES:,} files" in words
    assert f"{archives.NAME // 2**20} MiB of name" in words
