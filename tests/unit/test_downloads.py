"""Downloads from a server that misbehaves: what is kept, what is asked again, what is refused."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

from serving import Server, serving
from uotft import downloads
from uotft.archives import Archive
from uotft.errors import UserError

BYTES = bytes(range(256)) * 20_000  # five chunks


@pytest.fixture
def server():  # noqa: ANN201
    with serving({"a.tar": BYTES}) as made:
        yield made


def fetch(server: Server, folder: Path, *manners: str) -> Path:
    digest = hashlib.sha256(BYTES).hexdigest()
    urls = tuple(f"{server.address}/{manner}/a.tar" for manner in manners)
    return downloads.fetch(
        Archive("a.tar", "", len(BYTES), digest, urls), folder, lambda items, label: items
    )


def refused(server: Server, folder: Path, *manners: str) -> str:
    with pytest.raises(UserError) as error:
        fetch(server, folder, *manners)
    assert not (folder / "a.tar").exists(), "the name is only for the right bytes"
    return str(error.value)


@pytest.mark.parametrize("manner", ["good", "whole", "moved"])
def test_a_file_comes_whole(server: Server, tmp_path: Path, manner: str) -> None:
    assert fetch(server, tmp_path / "new", manner).read_bytes() == BYTES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tar"]


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, "cut", "good").read_bytes() == BYTES
    half = len(BYTES) // 2
    assert server.asked[1] == ("/cut/a.tar", f"bytes={half}-")
    assert server.asked[-1][0] == "/good/a.tar", "a byte was left that /cut never sends"


def test_it_goes_on_another_day(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".a.tar.part").write_bytes(BYTES[:1_000_000])
    fetch(server, tmp_path, "good")
    assert server.asked == [("/good/a.tar", "bytes=1000000-")]


def test_a_server_that_starts_anew_is_heard_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".a.tar.part").write_bytes(BYTES[:1_000_000])
    assert fetch(server, tmp_path, "whole").read_bytes() == BYTES


def test_a_server_that_always_breaks_off_is_left_for_the_next(
    server: Server, tmp_path: Path
) -> None:
    assert fetch(server, tmp_path, "cutwhole", "good").read_bytes() == BYTES
    assert [path for path, _ in server.asked] == ["/cutwhole/a.tar"] * 2 + ["/good/a.tar"]


def test_half_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".a.tar.part").write_bytes(b"x" * 1_000_000)
    assert fetch(server, tmp_path, "good").read_bytes() == BYTES
    assert [asked for _, asked in server.asked] == ["bytes=1000000-", ""]


def test_more_than_the_whole_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".a.tar.part").write_bytes(BYTES + b"x")
    assert fetch(server, tmp_path, "good").read_bytes() == BYTES


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, "gone", "page", "other", "good").read_bytes() == BYTES


def test_every_address_and_its_reason_is_named(server: Server, tmp_path: Path) -> None:
    said = refused(server, tmp_path, "gone", "page", "other", "short")
    for manner, why in (
        ("gone", "HTTP Error 404: Not Found"),
        ("page", "a web page came, not the file"),
        ("other", f"is not its SHA-256 {hashlib.sha256(BYTES).hexdigest()}"),
        ("short", f"{len(BYTES) - 1:,} bytes offered, not {len(BYTES):,}"),
    ):
        assert f"{server.address}/{manner}/a.tar: " in said
        assert why in said
    assert f"put it into {tmp_path}" in said


def test_what_came_is_kept_for_the_next_time(server: Server, tmp_path: Path) -> None:
    assert "broke off after" in refused(server, tmp_path, "cutwhole")
    part = (tmp_path / ".a.tar.part").read_bytes()
    assert part == BYTES[: len(part)]
    assert len(part) == len(BYTES) // 2


@pytest.mark.parametrize(("manner", "why"), [("stuck", "timed out"), ("slow", "slower than")])
def test_a_server_that_takes_too_long_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, why: str
) -> None:
    monkeypatch.setattr(downloads, "PATIENCE", 0.3)
    assert why in refused(server, tmp_path, manner)
    assert fetch(server, tmp_path, manner, "good").read_bytes() == BYTES


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert "Connection refused" in refused(server, tmp_path, "good")
