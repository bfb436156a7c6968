"""Shards at addresses: fetched from a server that misbehaves, and held to what they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.commands import call
from support.dataset_archives import picture, tar
from support.download_server import Server, serving
from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.data import archives
from uotft.pipeline import datasets, fetch as fetch_stage, prepare, readers

NAMES = ["web-00.tar", "web-01.tar", "web-02.tar"]
CONTENTS = {
    name: tar({
        f"{i}{kind}": picture(i % 2, "train", i) if kind == ".jpg" else b"%d" % (i % 2)
        for i in range(10 * n, 10 * n + 10) for kind in (".jpg", ".cls")
    })
    for n, name in enumerate(NAMES)
}  # fmt: skip
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


@pytest.fixture
def server():  # noqa: ANN201
    with serving(dict(CONTENTS)) as made:
        yield made


def section(root: Path, urls: object, **settings: object) -> Path:
    """A project with the data set web at addresses."""
    params = tiny_params()
    view = {"stored": 16, "size": 16, "test": 0.0}
    web = {"kind": "shards", "path": "downloads/web", "urls": urls, **view, **settings}
    params["datasets"]["web"] = web
    write_params(root, params)
    return root


def fetch(root: Path, given: Path | None = None) -> list[str]:
    return [*fetch_stage.fetch(workspace(root), "web", given, quiet)]


def refused(root: Path, given: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        fetch(root, given)
    return str(error.value)


def listed(root: Path) -> dict[str, str]:
    return archives.read_sums(root / "downloads/web/SHA256SUMS")


def whole(root: Path) -> bool:
    """All three are there under their names, and nothing else but their sums."""
    found = {p.name: p.read_bytes() for p in (root / "downloads/web").iterdir()}
    return found.pop("SHA256SUMS", b"") is not None and found == CONTENTS


def test_shards_come_from_their_addresses_once(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar")
    lines = fetch(root)
    size = sum(map(len, CONTENTS.values())) / 2**20
    assert lines[0].startswith(f"web: {size:.1f} MiB to download (about); ")
    assert "web: 3 shards, 3 downloaded; their SHA-256 are in" in lines[1]
    assert whole(root)
    assert listed(root) == SUMS
    prepare.prepare(workspace(root), "web", progress=quiet)
    images = readers.images(workspace(root), "web")
    assert np.bincount(images.labels).tolist() == [15, 15]
    server.asked.clear()
    assert "0 downloaded" in fetch(root)[1]
    assert not server.asked, "what is there needs no network"


def test_the_command_and_what_list_and_verify_say(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar")
    states = {row[0]: row[-1] for row in datasets.listing(workspace(root))}
    assert states["web"] == "to be downloaded"
    done = call("uotft", "prepare", "--dataset", "web", cwd=root)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "missing web-00.tar and 2 more, of the files that urls names;" in done.stderr
    done = call("uotft", "data", "prepare", "web", cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[2].startswith("web: 2 classes, ")
    assert datasets.verify(workspace(root), "web", quiet) == (
        "web: 30 files hashed, web-00.tar, web-01.tar, web-02.tar", []
    )  # fmt: skip
    path = root / "downloads/web/web-01.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # behind the last picture
    assert f", not SHA-256 {SUMS['web-01.tar']}" in datasets.verify(
        workspace(root), "web", quiet
    )[1][0]  # fmt: skip


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path, f"{server.address}/cutwhole/web-{{00..02}}.tar")
    assert "connection lost after" in refused(root)
    half = len(CONTENTS[NAMES[0]]) // 2
    assert (root / f"downloads/web/.{NAMES[0]}.part").stat().st_size == half
    server.asked.clear()
    fetch(section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar"))
    assert (f"/good/{NAMES[0]}", f"bytes={half}-") in server.asked
    assert whole(root)


def test_halves_of_two_versions_are_not_put_together(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path, f"{server.address}/dated/{NAMES[0]}")
    part = root / f"downloads/web/.{NAMES[0]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENTS[NAMES[1]][:1536])  # as good a start of a tar file
    fetch(root)
    assert (part.parent / NAMES[0]).read_bytes() == CONTENTS[NAMES[0]]


def test_mirrors_take_the_place_of_what_fails(server: Server, tmp_path: Path) -> None:
    mirrors = [f"{server.address}/{manner}/" for manner in ("page", "untold", "good")]
    root = section(tmp_path, f"{server.address}/gone/web-{{00..02}}.tar", mirrors=mirrors)
    fetch(root)
    assert whole(root)


def test_every_address_and_its_reason_is_named(server: Server, tmp_path: Path) -> None:
    mirrors = [f"{server.address}/{manner}" for manner in ("page", "untold")]
    message = refused(section(tmp_path, f"{server.address}/gone/{NAMES[0]}", mirrors=mirrors))
    for manner, why in (
        ("gone", "HTTP Error 404: Not Found"),
        ("page", "got a web page"),
        ("untold", "the server does not state the file's size"),
    ):
        assert f"{server.address}/{manner}/{NAMES[0]}: {why}" in message
    assert not (tmp_path / "downloads").exists()


def test_stated_sums_refuse_other_bytes_from_the_first_day(server: Server, tmp_path: Path) -> None:
    lines = "".join(f"{digest} *{name}\n" for name, digest in SUMS.items())
    (tmp_path / "web.sha256").write_text(lines, encoding="utf-8-sig")  # with a byte order mark
    root = section(tmp_path, f"{server.address}/other/{NAMES[0]}", sums="web.sha256")
    assert f", not SHA-256 {SUMS[NAMES[0]]}" in refused(root)
    assert not list((root / "downloads/web").iterdir())
    fetch(section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar", sums="web.sha256"))
    assert whole(root)
    assert not (root / "downloads/web/SHA256SUMS").exists()


def test_without_sums_the_first_bytes_must_be_a_tar_file(server: Server, tmp_path: Path) -> None:
    server.contents[NAMES[0]] = b"no such key" * 200
    root = section(tmp_path, f"{server.address}/good/{NAMES[0]}")
    assert f"/good/{NAMES[0]}: not a tar file" in refused(root)
    assert not list((root / "downloads/web").iterdir())


def test_recorded_sums_hold_from_then_on(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar")
    fetch(root)
    path = root / "downloads/web" / NAMES[1]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert (
        "delete it to fetch it again\nif its publisher has changed it, delete its line"
        in refused(root)
    )
    path.unlink()
    server.contents[NAMES[1]] = tar({"0.jpg": picture(0, "train"), "0.cls": b"0"})
    message = refused(root)
    assert f", not SHA-256 {SUMS[NAMES[1]]}" in message
    assert message.endswith(f"delete its line in {path.with_name('SHA256SUMS')}")
    assert not path.exists()
    server.contents[NAMES[1]] = CONTENTS[NAMES[1]]
    assert "1 downloaded" in fetch(root)[1]
    assert whole(root)


def test_from_a_folder_without_a_network(tmp_path: Path) -> None:
    given = tmp_path / "given"
    for name, content in CONTENTS.items():
        storage.write_bytes(given / name, content)
    root = section(tmp_path, "http://127.0.0.1:1/web-{00..02}.tar")
    assert "3 shards, 0 downloaded" in fetch(root, given)[1]
    assert whole(root)
    assert listed(root) == SUMS


def test_only_the_named_shards_are_read(server: Server, tmp_path: Path) -> None:
    """Others lie in the folder too, perhaps of a section that named more."""
    root = section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar")
    fetch(root)
    section(tmp_path, f"{server.address}/good/web-{{01..02}}.tar")
    prepare.prepare(workspace(root), "web", progress=quiet)
    files = readers.images(workspace(root), "web").files
    assert files is not None
    assert set(files.archives.tolist()) == {b"web-01.tar", b"web-02.tar"}
    assert listed(root) == SUMS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": "ftp://x/a.tar"}, "'ftp://x/a.tar' is not the http"),
        ({"urls": "https://x/a.tgz"}, "is not the http"),
        ({"urls": "https://x/%2e%2e%2f.tar"}, "is not the http"),
        ({"urls": ["https://x/a.tar", "https://y/a.tar"]}, "two addresses end in one file name"),
        ({"urls": "https://x/{9..0}.tar"}, "the list names no file"),
        ({"urls": "https://x/a.tar", "mirrors": ["x.org"]}, "'x.org/a.tar' is not the http"),
    ],
)
def test_addresses_that_are_none(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.dataset_section({"kind": "shards", "path": "x", **settings}, "test")


def test_verify_lists_an_added_and_a_missing_shard(tmp_path: Path) -> None:
    root = section(tmp_path, "")
    for name in NAMES[:2]:
        storage.write_bytes(root / "downloads/web" / name, CONTENTS[name])
    prepare.prepare(workspace(root), "web", progress=quiet)
    assert datasets.verify(workspace(root), "web", quiet)[1] == []
    (root / "downloads/web" / NAMES[0]).rename(root / "downloads/web" / NAMES[2])
    bad = datasets.verify(workspace(root), "web", quiet)[1]
    assert f"{root}/downloads/web/{NAMES[2]}: added" in bad
    assert f"{root}/downloads/web/{NAMES[0]}/0.jpg: missing" in bad


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"abc  web-00.tar\n", r"web.sha256: line 1: got 'abc"),
        (b"\xff", r"web.sha256: the list of checksums cannot be read"),
        (b"", r"web.sha256: no checksum of web-00.tar"),
    ],
)
def test_lists_of_sums_that_are_none(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "web.sha256").write_bytes(text)
    section(tmp_path, "http://127.0.0.1:1/web-{00..02}.tar", sums="web.sha256")
    with pytest.raises(UserError, match=message):
        fetch(tmp_path)


@pytest.mark.slow
def test_dvc_repro_on_fetched_shards(server: Server, tmp_path: Path) -> None:
    """path, the folder on the disk, is what DVC watches: fetched once, a changed shard is seen."""
    root = section(tmp_path, f"{server.address}/good/web-{{00..02}}.tar", names="")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params |= {"source": "web", "targets": ["web"], "datasets": {"web": params["datasets"]["web"]}}
    write_params(root, params)
    committed = yaml.safe_load((REPOSITORY / "src/uotft/presets/project/pipeline.yaml").read_text())
    stage = {"stages": {"prepare": committed["stages"]["prepare"]}}
    (root / "dvc.yaml").write_text(yaml.safe_dump(stage))
    assert call("dvc", "init", "-q", "--no-scm", cwd=root).returncode == 0
    assert "downloads/web" in call("dvc", "repro", cwd=root).stderr
    fetch(root)
    server.shutdown()
    done = call("dvc", "repro", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "Running stage 'prepare@web'" in done.stdout
    assert "Running stage" not in call("dvc", "repro", cwd=root).stdout
    path = root / "downloads/web" / NAMES[1]
    path.write_bytes(CONTENTS[NAMES[0]])
    assert "prepare@web" in call("dvc", "status", cwd=root).stdout
