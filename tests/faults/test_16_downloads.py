"""Fault 16: a download server that cuts, sends other bytes, 404, a page or a redirect to one,
hangs, or sends byte by byte.

Expected: what came is kept and continued by Range; the next address is tried; a file gets its name
only when size and SHA-256 are right; an error names every address with its reason.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.download_server import Server, serving
from uotft.core.errors import UserError
from uotft.data import downloads
from uotft.data.archives import Archive
from uotft.models import weights

BYTES = bytes(range(256)) * 20_000  # five chunks
IMPATIENT = 0.7  # s: less than a slow server takes, and more than a busy machine stalls


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


def test_another_part_than_the_one_that_was_asked_for_is_not_taken(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / ".a.tar.part").write_bytes(BYTES[:1_000_000])
    assert "sent another range than from byte 1000000 on" in refused(server, tmp_path, "aside")
    assert (tmp_path / ".a.tar.part").read_bytes() == BYTES[:1_000_000]


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
        ("page", "got a web page"),
        ("other", f", not SHA-256 {hashlib.sha256(BYTES).hexdigest()}"),
        ("short", f"offers {len(BYTES) - 1:,} bytes, not {len(BYTES):,}"),
    ):
        assert f"{server.address}/{manner}/a.tar: " in said
        assert why in said
    assert f"put it into {tmp_path}" in said


def test_what_came_is_kept_for_the_next_time(server: Server, tmp_path: Path) -> None:
    assert "connection lost after" in refused(server, tmp_path, "cutwhole")
    part = (tmp_path / ".a.tar.part").read_bytes()
    assert part == BYTES[: len(part)]
    assert len(part) == len(BYTES) // 2


@pytest.mark.parametrize(
    ("manner", "why"), [("stuck", "timed out"), ("slow", "slower than"), ("head", "no answer in")]
)
def test_a_server_that_takes_too_long_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, why: str
) -> None:
    monkeypatch.setattr(downloads, "PATIENCE", IMPATIENT)
    assert why in refused(server, tmp_path, manner)
    assert fetch(server, tmp_path, manner, "good").read_bytes() == BYTES


@pytest.mark.parametrize("manner", ["virus", "lying", "drip"])
def test_what_is_not_the_file_is_left_after_two_tries(
    server: Server, tmp_path: Path, manner: str
) -> None:
    """A redirect to a web page, a page that calls itself a tar, a byte for each try."""
    said = refused(server, tmp_path, manner)
    assert f"{server.address}/{manner}/a.tar: " in said
    assert len(server.asked) <= 4
    assert fetch(server, tmp_path, manner, "good").read_bytes() == BYTES


FAULTS = (
    "cut",
    "other",
    "gone",
    "page",
    "virus",
    "lying",
    "slow",
    "head",
    "stuck",
    "drip",
    "short",
)


def test_a_download_survives_any_of_its_mirrors(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    trials: Callable[[int, int], int], measured: Callable[[str], None],
) -> None:  # fmt: skip
    """Mirrors fail in a drawn order, and the download is cut anywhere before it begins."""
    rng, bytes_again, count = np.random.default_rng(0), 0, trials(6, 60)
    for trial in range(count):
        folder, kept = tmp_path / str(trial), int(rng.integers(1, len(BYTES)))
        folder.mkdir()
        (folder / ".a.tar.part").write_bytes(BYTES[:kept])
        manners = rng.permutation(FAULTS)[:3].tolist()
        with monkeypatch.context() as patch:
            patch.setattr(downloads, "PATIENCE", IMPATIENT)
            said = refused(server, folder, *manners)
        assert all(f"{server.address}/{manner}/a.tar: " in said for manner in manners)
        server.asked.clear()
        assert fetch(server, folder, "good").read_bytes() == BYTES
        assert [path.name for path in folder.iterdir()] == ["a.tar"]
        [(_, asked)] = server.asked
        bytes_again += not asked
    measured(
        f"{count} of {count} downloads right behind {3 * count} failing mirrors of {len(FAULTS)} "
        f"kinds, {count - bytes_again} went on by Range"
    )


# ---- weights


@pytest.fixture
def published(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A file whose name tells the beginning of its SHA-256, as torchvision does; where it goes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    name = f"net-{hashlib.sha256(BYTES).hexdigest()[:8]}.pth"
    server.contents[name] = BYTES
    return name, tmp_path / "home/hub/checkpoints" / name


@pytest.mark.parametrize("manner", ["cutwhole", *FAULTS])
def test_weights_that_do_not_come_are_asked_for_again_by_range(
    server: Server, published: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    name, path = published
    monkeypatch.setattr(downloads, "PATIENCE", IMPATIENT)
    with pytest.raises(UserError) as error:
        weights.download(f"{server.address}/{manner}/{name}")
    assert f"{server.address}/{manner}/{name}: " in str(error.value)
    assert "put it into" in str(error.value)
    assert not path.exists()
    server.asked.clear()
    assert weights.download(f"{server.address}/good/{name}") == path
    assert path.read_bytes() == BYTES
    if manner in ("cut", "cutwhole"):
        assert server.asked[-1][1].startswith("bytes=")
    server.asked.clear()
    assert weights.download(f"{server.address}/good/{name}") == path
    assert not server.asked, "what is there needs no network"


def test_weights_whose_name_tells_no_sum_are_refused(server: Server) -> None:
    with pytest.raises(UserError, match=r"net\.pth: the file name has no SHA-256 to check"):
        weights.download(f"{server.address}/good/net.pth")


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert "Connection refused" in refused(server, tmp_path, "good")
