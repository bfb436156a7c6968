"""One setting redirects every address to a mirror; without a network the failure comes at once."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.download_server import Server, serving
from uotft.core import user_settings
from uotft.core.errors import UserError
from uotft.data import downloads
from uotft.data.archives import Archive
from uotft.data.ranges import Ranges
from uotft.models import weights

BYTES = bytes(range(256)) * 6_000
SUM = hashlib.sha256(BYTES).hexdigest()
URL = "https://data.example/sets/a%20b.tar"
QUERY = "https://data.example/files/c.tar?download=1"
WEIGHTS = f"https://download.example/models/net-{SUM[:8]}.pth"


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


@pytest.fixture
def server() -> Iterator[Server]:
    paths = ["data.example/sets/a%20b.tar", "data.example/files/c.tar?download=1"]
    with serving(dict.fromkeys([*paths, WEIGHTS.removeprefix("https://")], BYTES)) as made:
        yield made


@pytest.fixture(params=["address", "folder", "file of settings"])
def mirror(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A mirror in one form, with the files of the three addresses."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = f"{server.address}/good"
    if request.param == "folder":
        place = str(tmp_path / "my mirror 100%")
        for url in (URL.replace("%20", " "), QUERY, WEIGHTS):
            path = Path(place, url.removeprefix("https://"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(BYTES)
    if request.param == "file of settings":
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        user_settings.remember(mirror=place)
    else:
        monkeypatch.setenv("UOTFT_MIRROR", place)
    return place


@pytest.mark.parametrize("url", [URL, QUERY])
def test_an_archive_comes_from_the_mirror_and_resumes(
    mirror: str, tmp_path: Path, url: str
) -> None:
    archive = Archive("a.tar", "", len(BYTES), SUM, (url,))
    assert downloads.sized(archive, tmp_path).bytes == len(BYTES)
    downloads.check_reachable([url])
    for kept in (0, 1_000_000):
        (tmp_path / ".a.tar.part").write_bytes(BYTES[:kept])
        assert downloads.fetch(archive, tmp_path, quiet).read_bytes() == BYTES


def test_weights_and_pieces_come_from_the_mirror(mirror: str) -> None:
    assert weights.download(WEIGHTS).read_bytes() == BYTES
    with Ranges(URL) as remote:
        assert remote.span.total == len(BYTES)
        assert remote.read(300, 512) == BYTES[300:812]
        assert remote.url.startswith(mirror)


def test_a_file_that_the_mirror_lacks_is_named_by_the_address_really_asked(
    mirror: str, tmp_path: Path
) -> None:
    archive = Archive("x.tar", "", 9, SUM, ("https://data.example/x.tar",))
    with pytest.raises(UserError) as error:
        downloads.fetch(archive, tmp_path, quiet)
    assert f"{mirror}/data.example/x.tar: " in str(error.value)


def test_a_folder_without_the_query_in_its_names_serves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.example/files/c.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(BYTES)
    monkeypatch.setenv("UOTFT_MIRROR", str(tmp_path))
    assert downloads.redirected(QUERY) == str(path)


def test_without_a_mirror_addresses_stay() -> None:
    assert downloads.redirected(URL) == URL


# ---- without a network


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/a.tar"


def test_without_a_network_a_download_fails_at_once(closed: str, tmp_path: Path) -> None:
    began = time.monotonic()
    urls = (closed, "http://no-such-host.invalid/a.tar")
    for use in (
        lambda: downloads.fetch(Archive("a.tar", "", 9, SUM, urls), tmp_path, quiet),
        lambda: downloads.sized(Archive("a.tar", "", 0, SUM, urls), tmp_path),
        lambda: downloads.check_reachable(urls),
    ):
        with pytest.raises(UserError) as error:
            use()
        for url in urls:
            assert f"{url}: " in str(error.value)
    assert time.monotonic() - began < 10


def test_a_host_that_lets_nobody_in_is_left_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall that drops what goes out: neither accepted nor refused."""
    monkeypatch.setattr(downloads, "REACH", 0.5)
    with ExitStack() as held:
        full = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # they fill its queue
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        began = time.monotonic()
        url = f"http://127.0.0.1:{full.getsockname()[1]}/a.tar"
        with pytest.raises(UserError, match="timed out"):
            downloads.fetch(Archive("a.tar", "", 9, SUM, (url,)), tmp_path, quiet)
        assert time.monotonic() - began < 10


def test_all_that_cannot_be_reached_is_listed_once_with_what_to_do(
    server: Server, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    good = f"{server.address}/good/data.example/sets/a%20b.tar"
    gone = good.replace("good", "gone")
    downloads.check_reachable([])
    downloads.check_reachable([good, (closed, good)])
    with pytest.raises(UserError) as error:
        downloads.check_reachable([good, closed, gone, (closed, gone)])
    said = str(error.value)
    assert said.startswith("not reachable: 3 of 4 files to download:\n")
    assert f"\n  {gone}: HTTP Error 404: Not Found" in said
    assert f"UOTFT_MIRROR, or mirror: in {tmp_path}/uotft/config.yaml; or fetch" in said
    assert said.endswith("the folders that `uotft train` with --dry-run lists under 'kept in'")
    assert sum(server.sent.values()) < 10, "the first byte is enough"


def test_they_are_asked_together_and_a_silent_one_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "REACH", 0.4)
    slow = f"{server.address}/head/data.example/sets/a%20b.tar"
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer in 0 s"):
        downloads.check_reachable([slow] * 8)
    assert time.monotonic() - began < 3, "one after the other they take 3.2 s"
