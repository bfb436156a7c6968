"""ImageNet's classes: a copy in any form is read in place; those that are missing are fetched."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support import dataset_archives as official
from support.commands import call, users_environment
from support.download_server import Server, serving
from support.patched_modules import Source, patched, tiny_imagenet
from support.projects import tiny_params, workspace, write_params
from uotft.core import locks, user_settings
from uotft.core.errors import UserError
from uotft.core.records import silently
from uotft.data import class_downloads, class_images, wordnet
from uotft.data.datasets import imagenet_classes
from uotft.pipeline import datasets, fetch as fetch_stage, image_places, prepare, readers

TAR = "image-net.org/data/ILSVRC/2012/ILSVRC2012_img_train.tar"
WHOLE = "image-net.org/data/winter21_whole/{}.tar"
WNIDS = [*wordnet.imagenet()]
THREE = ["n01440764", "n01443537", "n02085620"]


# ---- a copy, in each form


def unpacked(root: Path, wnids: list[str], tar: bytes | None = None) -> Path:
    """Folders of some classes of the tiny archive."""
    for wnid in wnids:
        with tarfile.open(fileobj=io.BytesIO(official.class_tar(wnid))) as inner:
            inner.extractall(root / wnid, filter="data")
    return root


def tars(root: Path, wnids: list[str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for wnid in wnids:
        (root / f"{wnid}.tar").write_bytes(official.class_tar(wnid))
    return root


def big(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(official.imagenet_tar())
    return path


FORMS = {
    "folders": lambda root: unpacked(root / "images", THREE),
    "train": lambda root: unpacked(root / "images/train", THREE).parent,
    "kaggle": lambda root: unpacked(root / "images/ILSVRC/Data/CLS-LOC/train", THREE).parents[3],
    "tars": lambda root: tars(root / "images", THREE),
    "tar": lambda root: big(root / "images/ILSVRC2012_img_train.tar"),
    "tar in a folder": lambda root: big(root / "images/ILSVRC2012_img_train.tar").parent,
}


def section(root: Path, images: Path | str, wnids: list[str], **settings: object) -> Path:
    """A project whose data set imagenet is some classes; returns its root."""
    params = tiny_params()
    params["datasets"]["imagenet"] = {
        "kind": "imagenet_classes", "path": "selected/imagenet.json", "images": str(images),
        "stored": 16, "size": 16, "val": 0.5, **settings,
    }  # fmt: skip
    root.mkdir(exist_ok=True)
    write_params(root, params)
    listed(root, wnids)
    return root


def listed(root: Path, wnids: object) -> None:
    (root / "selected").mkdir(exist_ok=True)
    (root / "selected/imagenet.json").write_text(json.dumps({"classes": wnids}))


def colours(root: Path) -> dict[str, list[int]]:
    """{class: the mean colour of its images}, read as training reads them."""
    images = readers.images(workspace(root), "imagenet")
    means = {
        name: np.asarray(images.images[np.flatnonzero(images.labels == label)])
        for label, name in enumerate(images.names)
    }
    return {name: np.round(m.mean((0, 1, 2))).astype(int).tolist() for name, m in means.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_in_any_form_is_read_in_place(tmp_path: Path, form: str) -> None:
    images = FORMS[form](tmp_path)
    before = sorted(path for path in (tmp_path / "images").rglob("*"))
    place = class_images.place(images)
    assert set(THREE) <= {*place.classes()}
    assert place.missing([*THREE, "n99999999"]) == ["n99999999"]
    root = section(tmp_path, images, THREE[::-1])
    prepare.prepare(workspace(root), "imagenet", progress=silently)
    found = readers.images(workspace(root), "imagenet")
    assert found.names == ("n01440764 tench", "n01443537 goldfish", "n02085620 Chihuahua")
    assert np.bincount(found.labels).tolist() == [2, 2, 2]
    assert np.bincount(found.labels[found.rows("val")]).tolist() == [1, 1, 1]
    for wnid, mean in zip(THREE, colours(root).values(), strict=True):
        row = WNIDS.index(wnid)
        wanted = np.array([row % 10 * 25, row // 10 % 10 * 25, row // 100 * 25])
        assert np.abs(mean - wanted).max() <= 4, wnid
    assert sorted(path for path in (tmp_path / "images").rglob("*")) == before
    assert datasets.verify(workspace(root), "imagenet", silently)[1] == []


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_of_a_class_do_not_depend_on_the_other_classes(tmp_path: Path, form: str) -> None:
    images = FORMS[form](tmp_path)
    settings = imagenet_classes.Settings(images=str(images), val=0.5, stored=16, size=16)

    def goldfish(wnids: list[str]) -> list[tuple[bytes, str, bytes]]:
        root = tmp_path / "lists"
        root.mkdir(exist_ok=True)
        listed(root, wnids)
        found = imagenet_classes.load(settings, silently, root)
        assert found.files is not None
        rows = np.flatnonzero(found.labels == sorted(wnids).index("n01443537"))
        files = found.files
        return [(bytes(files.paths[i]), str(found.splits[i]), files.content(i)) for i in rows]

    alone = goldfish(["n01443537"])
    assert alone == goldfish(THREE)
    assert [os.path.basename(name) for name, _, _ in alone] == [
        b"n01443537_0.JPEG", b"n01443537_1.JPEG"
    ]  # fmt: skip


def test_an_empty_or_missing_folder_is_a_place_to_fetch_into(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.lock").touch()
    for name in ("empty", "missing"):
        place = class_images.place(tmp_path / name)
        assert (place.classes(), place.missing(THREE), place.can_grow()) == ([], THREE, True)


@pytest.mark.parametrize("name", ["photos", "photos/a.jpg", "other.tar", "missing.tar"])
def test_another_folder_or_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    (tmp_path / "other.tar").write_bytes(official.class_tar(THREE[0]))
    with pytest.raises(UserError, match=r"expected a folder with a folder for each WordNet id"):
        class_images.place(tmp_path / name)


@pytest.mark.parametrize("cut", [100, 5_000_000, -600, -1024])
def test_a_cut_published_archive_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / class_images.TRAIN_TAR
    path.write_bytes(official.imagenet_tar().rstrip(b"\0")[:cut])
    with pytest.raises(UserError, match=rf"{path}: not a whole tar file"):
        class_images.place(path)


def test_a_damaged_class_tar_is_named(tmp_path: Path) -> None:
    tar = bytearray(official.class_tar(THREE[0]))
    tar[tar.index(b"ustar", 600)] = 0  # in the second header
    (tmp_path / f"{THREE[0]}.tar").write_bytes(tar)
    with pytest.raises(UserError, match=rf"{THREE[0]}.tar: not a whole tar file"):
        class_images.place(tmp_path).rows(THREE[:1])


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_that_lacks_a_class_says_which_and_what_to_do(tmp_path: Path, form: str) -> None:
    images = FORMS[form](tmp_path)
    whole = form in ("tar", "tar in a folder")  # which has all of the 1,000
    wnid = "n15075142" if whole else "n02096294"
    root = section(tmp_path, images, [*THREE, wnid])
    with pytest.raises(UserError) as error:
        prepare.prepare(workspace(root), "imagenet", progress=silently)
    assert f"1 of the classes wanted are missing: {wnid}" in str(error.value)
    way = "uotft data prepare" if form == "tars" else "name an empty folder"
    assert way in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is missing"),
        ("[", "not valid JSON"),
        ('["n01440764"]', "write"),
        ('{"classes": [1]}', "got 1; it must be"),
        ('{"classes": ["tench"]}', "got 'tench'; it must be"),
    ],
)
def test_a_bad_list_of_classes_is_named(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "list.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        class_images.listed(path)
    assert str(path) in str(error.value)
    assert why in str(error.value)


def test_no_class_is_an_empty_set(tmp_path: Path) -> None:
    listed(tmp_path, [])
    settings = imagenet_classes.Settings(images=str(tmp_path / "none"))
    found = imagenet_classes.load(settings, silently, tmp_path)
    assert (len(found.labels), found.names, found.files is not None) == (0, (), True)
    root = section(tmp_path / "p", tmp_path / "none", [])
    image_places.write(workspace(root), "imagenet", found)
    assert image_places.read(workspace(root), "imagenet").names == ()


def test_images_lie_elsewhere_on_another_machine(tmp_path: Path) -> None:
    here = tmp_path / "here"
    root = section(tmp_path / "a", here, THREE)
    here.symlink_to(tars(tmp_path / "one", THREE))
    prepare.prepare(workspace(root), "imagenet", progress=silently)
    before = workspace(root).data("imagenet").read_bytes()
    here.unlink()
    with pytest.raises(UserError, match=r"set images in datasets\.imagenet of params\.yaml"):
        image_places.must_be_there(workspace(root), "imagenet")
    (tmp_path / "one").rename(tmp_path / "two")
    here.symlink_to(tmp_path / "two")
    assert len(colours(root)) == 3
    assert workspace(root).data("imagenet").read_bytes() == before
    # and in another form
    shutil.rmtree(root / "cache")
    here.unlink()
    here.symlink_to(unpacked(tmp_path / "three", THREE))
    with pytest.raises(UserError, match=r"`uotft prepare --dataset imagenet` makes it of what is"):
        colours(root)
    (tmp_path / "three" / THREE[0]).rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"are missing: n01440764"):
        colours(root)


# ---- fetching


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror with the tiny published archive; the terms are accepted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    class_downloads.accept("imagenet")
    for module, values in tiny_imagenet(official.imagenet_tar()).items():
        for name, value in values.items():
            monkeypatch.setattr(f"{module}.{name}", value)
    with serving({TAR: official.imagenet_tar()}) as made:
        made.tags[TAR] = '"one"'
        monkeypatch.setenv("UOTFT_MIRROR", f"{made.address}/good")
        yield made


def fetched(folder: Path, wnids: list[str]) -> list[str]:
    return [*class_downloads.fetch(folder, wnids, silently)]


def refused(folder: Path, wnids: list[str]) -> str:
    with pytest.raises(UserError) as error:
        fetched(folder, wnids)
    return str(error.value)


def are_whole(folder: Path, wnids: list[str]) -> bool:
    """Those classes and no others are there, and no leftovers but the index."""
    found = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith("index.json")}
    return found == {f"{wnid}.tar": official.class_tar(wnid) for wnid in wnids}


def test_twenty_classes_cost_a_small_part_of_the_published_archive(
    server: Server, tmp_path: Path
) -> None:
    folder, wnids = tmp_path / "images", WNIDS[10::50]
    lines = fetched(folder, wnids)
    assert are_whole(folder, wnids)
    assert server.sent[TAR] < 0.15 * len(official.imagenet_tar())
    assert {path for path, _ in server.asked} == {f"/good/{TAR}"}
    assert server.connections <= 2 + len(wnids), "the index comes over one connection"
    assert f"{class_images.TRAIN_TAR}: found 20 classes by 961 requests" in lines
    total = sum(len(official.class_tar(wnid)) for wnid in wnids)
    assert lines[-1].startswith(f"{folder}: 20 classes from {server.address}/good/{TAR}, ")
    assert class_downloads.estimate(20) == pytest.approx(total, rel=0.1)
    # those, and others that the index knows, need no further search
    server.asked.clear()
    assert fetched(folder, wnids) == []
    assert not server.asked, "what is there needs no network"
    fetched(folder, WNIDS[5:6])
    assert len(server.asked) == 2, "the first byte, and the class"


def test_the_project_reads_what_was_fetched(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path, tmp_path / "images", THREE)
    ws = workspace(root)
    states = {row[0]: row[-1] for row in datasets.listing(ws)}
    assert states["imagenet"] == "3 of 3 classes to be downloaded"
    lines = [*fetch_stage.fetch(ws, "imagenet", None, silently)]
    assert lines[0] == f"imagenet: 0 of 3 classes are in {tmp_path}/images"
    assert " to download (about); " in lines[1]
    assert {row[0]: row[-1] for row in datasets.listing(ws)}["imagenet"] == "there"
    prepare.prepare(ws, "imagenet", progress=silently)
    assert [*colours(root)] == ["n01440764 tench", "n01443537 goldfish", "n02085620 Chihuahua"]
    assert [*fetch_stage.fetch(ws, "imagenet", None, silently)] == [
        f"imagenet: 3 of 3 classes are in {tmp_path}/images"
    ]


def test_too_little_room_is_said_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = workspace(section(tmp_path, tmp_path / "images", THREE))
    monkeypatch.setattr(class_downloads, "TRAIN_BYTES", 10**18)
    with pytest.raises(UserError, match=r"or name another folder as datasets\.imagenet\.images"):
        [*fetch_stage.fetch(ws, "imagenet", None, silently)]
    assert not server.asked


@pytest.mark.parametrize("after", [300, 40_000, 100_000, 170_000, 205_000])
def test_a_cut_connection_is_resumed_by_the_same_call(
    server: Server, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wnids = tmp_path / "images", WNIDS[:300:15]
    server.left = after
    assert "ILSVRC2012_img_train.tar" in refused(folder, wnids) or after == 300
    came, server.left = server.sent[TAR], None
    fetched(folder, wnids)
    assert are_whole(folder, wnids)
    assert server.sent[TAR] - came < 320 * 512 + 20 * 10_240 + 4_096 - max(0, after - 45_000)


def test_a_killed_command_is_resumed_by_the_same_command(server: Server, tmp_path: Path) -> None:
    root = section(tmp_path / "p", tmp_path / "images", WNIDS[:200:10])
    environment = patched(tmp_path / "patch", tiny_imagenet(official.imagenet_tar()))
    environment |= {"UOTFT_MIRROR": f"{server.address}/good", "UOTFT_LOG_LEVEL": "DEBUG"}
    words = [sys.executable, "-m", "uotft", "-q", "data", "prepare", "imagenet"]
    process = subprocess.Popen(
        words, cwd=root, env=users_environment() | environment, stdout=subprocess.DEVNULL
    )
    while not [*(tmp_path / "images").glob("n*.tar")]:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len([*(tmp_path / "images").glob("n*.tar")])
    server.asked.clear()
    done = call(*words[:3], *words[4:], cwd=root, **environment)
    assert done.returncode == 0, done.stderr
    assert f"imagenet: {there} of 20 classes are in" in done.stdout
    assert len(server.asked) <= 21 - there + 50, "the index was kept"
    assert "imagenet: 20 classes, " in done.stdout
    assert are_whole(tmp_path / "images", WNIDS[:200:10])


def test_a_class_that_is_half_there_goes_on(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    fetched(folder, THREE[:1])
    whole = official.class_tar(THREE[0])
    (folder / f"{THREE[0]}.tar").unlink()
    (folder / f".{THREE[0]}.tar.part").write_bytes(whole[:3000])
    server.asked.clear()
    fetched(folder, THREE[:1])
    assert server.asked[-1][1] == f"bytes={512 + 3000}-{512 + len(whole) - 1}"
    assert are_whole(folder, THREE[:1])


def damaged(where: str) -> bytes:
    """The published archive with a fault in its second class, the goldfish."""
    wnid, tar = THREE[1], bytearray(official.imagenet_tar())
    start = tar.index(f"{wnid}.tar".encode()) + 512
    if where == "picture":  # a marker of the JPEG's first lines
        at = tar.index(b"\xff\xd8", start)
        tar[at + 2 : at + 300] = bytes(298)
    if where == "header":
        tar[start + 257] = 0
    if where == "names":
        at = tar.index(wnid.encode(), start)
        header = tarfile.TarInfo.frombuf(bytes(tar[at : at + 512]), "utf-8", "strict")
        header.name = "n02085620_1.JPEG"
        tar[at : at + 512] = header.tobuf(tarfile.USTAR_FORMAT)
    return bytes(tar)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("picture", "1 of 2 images cannot be read:\n  n01443537_0.JPEG: "),
        ("header", "not a whole tar file"),
        ("names", "n02085620_1.JPEG is no image of n01443537"),
    ],
)
def test_a_damaged_class_gets_no_name(server: Server, tmp_path: Path, where: str, why: str) -> None:
    server.contents[TAR] = damaged(where)
    folder = tmp_path / "images"
    said = refused(folder, THREE)
    assert "n01443537.tar could not be downloaded:\n" in said
    assert f"{server.address}/good/{TAR}: " in said
    assert why in said
    assert are_whole(folder, THREE[:1]), "the one before stays"
    server.contents[TAR] = official.imagenet_tar()
    fetched(folder, THREE)
    assert are_whole(folder, THREE)


def test_a_class_with_too_few_images_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_downloads, "IMAGES", (732, 1300))
    said = refused(tmp_path / "images", THREE)
    assert "it has 2 images; a class has 732 to 1,300" in said


def test_an_archive_that_changed_since_its_index_was_made(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    fetched(folder, THREE[:1])
    server.tags[TAR] = '"two"'
    index = folder / ".ILSVRC2012_img_train.tar.index.json"
    said = refused(folder, THREE)
    assert f"/good/{TAR} has changed since {index} was made" in said
    assert f"delete {index}" in said
    index.unlink()
    (folder / f".{THREE[1]}.tar.part").write_bytes(b"of the old one")
    fetched(folder, THREE)
    assert are_whole(folder, THREE)


def test_an_archive_of_another_size_is_not_the_published_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_downloads, "TRAIN_BYTES", 147_897_477_120)
    assert "it is not the published archive" in refused(tmp_path / "images", THREE)


def test_another_mirror_of_the_same_archive_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    fetched(folder, THREE[:1])
    mirror = big(tmp_path / "mirror" / TAR).parents[4]
    monkeypatch.setenv("UOTFT_MIRROR", str(mirror))
    server.asked.clear()
    fetched(folder, THREE)
    assert are_whole(folder, THREE)
    assert not server.asked


def test_a_damaged_index_is_made_anew(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    fetched(folder, THREE[:1])
    index = folder / ".ILSVRC2012_img_train.tar.index.json"
    index.write_bytes(index.read_bytes().replace(b"512", b"513"))
    fetched(folder, THREE)
    assert are_whole(folder, THREE)


def test_a_class_that_the_archive_lacks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = official.tar({f"{w}.tar": official.class_tar(w) for w in WNIDS if w != THREE[1]})
    server.contents[TAR] = content
    monkeypatch.setattr(class_downloads, "TRAIN_BYTES", len(content))
    said = refused(tmp_path / "images", THREE)
    assert f"/good/{TAR}: it holds no n01443537, but 999 classes of others" in said
    assert "--imagenet PATH" in said


def test_a_file_that_is_no_tar_of_class_tars(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, why in (
        (b"x" * 50_000, "its bytes at 0 are no header"),
        (official.tar({"a.txt": b"a"}), "'a.txt' in it is no class tar"),
    ):
        server.contents[TAR] = content
        monkeypatch.setattr(class_downloads, "TRAIN_BYTES", len(content))
        assert why in refused(tmp_path / "images", THREE)


@pytest.mark.parametrize("manner", ["gone", "whole", "page"])
def test_without_the_published_archive_classes_come_by_their_id(
    server: Server, tmp_path: Path, manner: str
) -> None:
    server.instead[TAR] = manner
    for wnid, images in zip(THREE, (2, 2, 5), strict=True):
        server.contents[WHOLE.format(wnid)] = official.class_tar(wnid, images)
    folder = tmp_path / "images"
    lines = fetched(folder, THREE)
    assert f"{server.address}/good/{TAR}: " in lines[0]
    assert "these hold ImageNet-21k's images" in lines[0]
    assert lines[1].startswith("n02085620: 5 images (ImageNet-1k has 2 to 2 of a class), 0 of")
    assert lines[2].startswith(f"{folder}: 3 classes, ")
    assert len(lines) == 3
    assert class_images.place(folder).classes() == THREE
    assert sorted(p.name for p in folder.iterdir()) == [f"{wnid}.tar" for wnid in THREE]


def test_where_neither_can_be_had_both_are_named(server: Server, tmp_path: Path) -> None:
    server.instead[TAR] = "whole"
    said = refused(tmp_path / "images", THREE)
    assert f"{server.address}/good/{TAR}: the server sends only whole files" in said
    assert f"{server.address}/good/{WHOLE.format(THREE[0])}: HTTP Error 404: Not Found" in said


def test_without_a_network_other_archives_are_not_tried(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("UOTFT_MIRROR", f"http://127.0.0.1:{free.getsockname()[1]}")
    said = refused(tmp_path / "images", THREE)
    assert "Connection refused" in said
    assert "winter21" not in said
    assert "UOTFT_MIRROR" in said
    assert "--imagenet PATH" in said


def test_ids_outside_the_thousand_are_not_asked_for(server: Server, tmp_path: Path) -> None:
    assert "n00001740: not among the 1,000" in refused(tmp_path / "images", ["n00001740"])
    assert not server.asked


def test_a_copy_is_never_fetched_into(server: Server, tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "images", THREE[:1])
    assert "add them to your copy" in refused(folder, THREE)
    assert not server.asked


def test_real_processes_take_the_constants_of_tiny_files(tmp_path: Path) -> None:
    card = official.card("dogs", official.dogs(), "http://127.0.0.1:1")
    changes = {
        "uotft.data.datasets.dogs": {"CARD": card},
        "uotft.data.class_downloads": {"IMAGES": (2, 2), "TERMS": Source("SITE + 'terms'")},
    }
    code = (
        "from uotft.data import class_downloads as c; from uotft.data.datasets import dogs; "
        "print(dogs.CARD, c.IMAGES, c.TERMS, sep='\\n')"
    )
    done = call(sys.executable, "-c", code, cwd=tmp_path, **patched(tmp_path / "patch", changes))
    assert done.stdout == f"{card}\n(2, 2)\nhttps://image-net.org/data/terms\n", done.stderr


def test_one_process_at_a_time_fetches_into_a_folder(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    with locks.exclusive(folder / ".lock", "held"):
        assert f"{folder}: another process is fetching classes: process " in refused(folder, THREE)
    assert not server.asked


def test_no_class_is_begun_on_a_disk_without_room(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=20_000))
    said = refused(tmp_path / "images", THREE)
    assert "30.0 KiB to download (about); 19.5 KiB are free in" in said
    assert "name another folder than" in said
    assert [path.name for path in (tmp_path / "images").iterdir()] == [
        ".ILSVRC2012_img_train.tar.index.json"
    ]


@pytest.mark.parametrize("text", ["[", '{"classes": ["tench"]}'])
def test_a_bad_list_stops_no_other_line_of_data_list(tmp_path: Path, text: str) -> None:
    root = section(tmp_path, tmp_path / "images", THREE)
    (root / "selected/imagenet.json").write_text(text)
    states = {row[0]: row[-1] for row in datasets.listing(workspace(root))}
    assert "selected/imagenet.json: " in states["imagenet"]
    assert "dogs" in states


# ---- terms


def test_nothing_is_fetched_before_terms_are_accepted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_settings.remember(accepted=[])
    root = section(tmp_path / "p", tmp_path / "images", THREE)
    environment = patched(tmp_path / "patch", tiny_imagenet(official.imagenet_tar()))
    environment["UOTFT_MIRROR"] = f"{server.address}/good"
    done = call("uotft", "data", "prepare", "imagenet", cwd=root, **environment)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    for part in (
        "https://image-net.org/download.php", "`uotft data accept imagenet`", "--imagenet PATH",
        "--strategy none", "--source FOLDER",
    ):  # fmt: skip
        assert part in done.stderr
    assert not server.asked
    assert not (tmp_path / "images").exists()
    done = call("uotft", "data", "accept", "imagenet", cwd=tmp_path)
    assert done.returncode == 0
    assert "https://image-net.org/download.php" in done.stdout
    assert user_settings.load().accepted == ["imagenet"]
    done = call("uotft", "data", "prepare", "imagenet", cwd=root, **environment)
    assert done.returncode == 0, done.stderr
    assert are_whole(tmp_path / "images", THREE)


def test_only_imagenet_has_terms(server: Server, tmp_path: Path) -> None:
    done = call("uotft", "data", "accept", "dogs", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "uotft: got 'dogs'; only imagenet has terms to accept\n"
    )  # fmt: skip


def test_data_list_outside_a_project_names_the_place_that_is_remembered(
    server: Server, tmp_path: Path
) -> None:
    tars(tmp_path / "images", THREE)
    user_settings.remember(imagenet=str(tmp_path / "images"))
    done = call("uotft", "data", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dogs" in done.stdout
    assert f"ImageNet's training images: 3 of 1,000 classes in {tmp_path}/images" in done.stdout
