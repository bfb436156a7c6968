"""The public data sets, from tiny archives in their layout: fetched, unpacked, read, cut."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support import dataset_archives as official
from support.dataset_archives import EACH, PARTS
from support.download_server import serving
from support.projects import tiny_params, workspace, write_params
from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.pipeline import fetch, given, prepare as prepare_stage, readers

BY_HAND = {"cars", "imagenet"}
SMALL = {"stored": 16, "size": 16}


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


@pytest.fixture
def root(tmp_path: Path) -> Path:
    params = tiny_params()
    params["datasets"] |= {name: dict(SMALL) for name in official.NAMES}
    write_params(tmp_path, params)
    return tmp_path


def prepare(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]
) -> tuple[ImageSet, list[str]]:
    """As `uotft data prepare`, from a server or, where there is none, from a folder."""
    given = root / "given"
    given.mkdir(exist_ok=True)
    for file, content in contents.items():
        (given / file).write_bytes(content)
    with serving(contents) as server:
        card = official.card(name, contents, f"{server.address}/good")
        monkeypatch.setattr(registry.load("datasets", name, "test"), "CARD", card)
        ws = workspace(root)
        lines = [*fetch.fetch(ws, name, given if name in BY_HAND else None, quiet)]
    prepare_stage.prepare(ws, name, progress=quiet)
    return readers.images(ws, name), lines


@pytest.mark.parametrize("name", official.NAMES)
def test_a_public_set_from_its_archives(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, lines = prepare(root, name, monkeypatch, getattr(official, name)())
    assert images.names == official.NAMES[name]
    parts = {part: len(images.rows(part)) for part in ("train", "val", "test")}
    if name == "caltech":
        assert parts == {"train": 3 * 27, "val": 3 * 3, "test": 3 * 4}
    elif name == "imagenet":
        assert parts == {"train": 3 * EACH["train"], "val": 3 * EACH["val"], "test": 0}
    elif name in ("aircraft", "dtd"):
        assert parts == {part: 3 * n for part, n in EACH.items()}
    else:
        assert parts == {"train": 3 * 3, "val": 3 * 1, "test": 3 * EACH["test"]}
    pixels = images.images[np.arange(len(images.labels))][:, 8, 8].astype(int)
    assert np.abs(pixels[:, 0] - (20 + 40 * images.labels)).max() < 8, "an image has its label"
    official_val = name in ("aircraft", "dtd", "imagenet")
    for part in ("train", "val", "test"):
        blue = PARTS["train" if part == "val" and not official_val else part]
        if name != "caltech":
            assert np.abs(pixels[images.splits == part, 2] - blue).max(initial=0) < 8, part
    assert lines[0].startswith(f"{name}: ")
    assert "are free in" in lines[0]
    assert len(lines) == 1 + len(registry.load("datasets", name, "test").CARD.archives)


@pytest.mark.parametrize("name", ["dogs", "imagenet"])
def test_without_a_network_archives_that_are_there_are_enough(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = getattr(official, name)()
    folder = root / "downloads" / name
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    monkeypatch.setattr(registry.load("datasets", name, ""), "CARD", official.card(name, contents))
    prepare_stage.prepare(workspace(root), name, progress=quiet)
    first = storage.fingerprint(root / "data" / f"{name}.npz")
    for file in contents:
        (folder / file).unlink()
    prepare_stage.prepare(workspace(root), name, progress=quiet)
    assert storage.fingerprint(root / "data" / f"{name}.npz") == first, "unpacked once is enough"


def test_a_folder_that_somebody_unpacked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = prepare(root, "cars", monkeypatch, official.cars())
    unpacked = root / "mine"
    next((root / "cache" / "unpacked").iterdir()).rename(unpacked)
    params = tiny_params()
    params["datasets"]["cars"] = {**SMALL, "path": str(unpacked)}
    write_params(root, params)
    assert [*fetch.fetch(workspace(root), "cars", None, quiet)] == [f"cars: unpacked in {unpacked}"]
    prepare_stage.prepare(workspace(root), "cars", progress=quiet)
    assert np.array_equal(readers.images(workspace(root), "cars").splits, images.splits)
    assert not list((root / "cache" / "unpacked").iterdir())


def test_sets_that_the_docs_name_as_a_source_are_public() -> None:
    """docs/choosing.md names sets for --source, which fetches them."""
    text = Path(__file__).parents[2].joinpath("docs/choosing.md").read_text("utf-8")
    named = re.findall(r"^\|.*\| `(\w+)` \([\d,]+ classes, ([^)]+)\) \|$", text, re.MULTILINE)
    assert len(named) >= 4
    for name, size in named:
        assert name in given.public()
        card = registry.load("datasets", name, "test").CARD
        stated = float(size.split()[0]) * {"MiB": 2**20, "GiB": 2**30}[size.split()[1]]
        assert stated == pytest.approx(sum(a.bytes for a in card.archives), rel=0.05), name


def test_imagenet_from_a_folder_of_classes(root: Path) -> None:
    folder = root / "downloads" / "imagenet"
    for part in ("train", "val"):
        for label, wnid in enumerate(("n01440764", "n02012849")):
            for i in range(2):
                path = folder / part / wnid / f"{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(official.picture(label, part))
    prepare_stage.prepare(workspace(root), "imagenet", progress=quiet)
    images = readers.images(workspace(root), "imagenet")
    assert images.names == ("n01440764", "n02012849"), "nothing here says their words"
    assert images.labels.tolist() == [0, 0, 1, 1] * 2


def test_flat_validation_images_need_the_kit(root: Path) -> None:
    folder = root / "downloads" / "imagenet"
    for path in ("train/n01440764/1.JPEG", "val/ILSVRC2012_val_00000001.JPEG"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(official.picture(0, "train"))
    with pytest.raises(UserError, match=r"val_00000001\.JPEG is of an unknown class"):
        prepare_stage.prepare(workspace(root), "imagenet", progress=quiet)


def test_the_thirty_of_caltech_are_those_that_their_file_says(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = prepare(root, "caltech", monkeypatch, official.caltech())
    assert images.files is not None
    tested = {p.decode() for p in images.files.paths[images.rows("test")].tolist()}
    every = [f"accordion/image_{i:04d}.jpg" for i in range(1, 35)]
    every.sort(key=lambda path: hashlib.sha256(f"0/{path}".encode()).hexdigest())
    assert {path for path in tested if path.startswith("accordion")} == set(every[30:])


def test_another_partition(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params()
    params["datasets"]["sun"] = {**SMALL, "partition": 2}
    write_params(root, params)
    images, _ = prepare(root, "sun", monkeypatch, official.sun())
    assert images.files is not None
    assert images.files.paths.tolist() == [b"SUN397/a/abbey/sun_unlisted.jpg"] * 2
    assert images.splits.tolist() == ["train", "test"]


def test_what_must_be_fetched_by_hand_is_named_with_its_place(root: Path) -> None:
    with pytest.raises(UserError) as error:
        [*fetch.fetch(workspace(root), "cars", None, quiet)]
    message = str(error.value)
    assert "cars_train.tgz, 979,269,282 bytes, SHA-256 512b227b30e2f0a8aab9e09485786ab4" in message
    assert (
        f"put them into {root / 'downloads' / 'cars'}, or name their folder with --from DIR"
        in message
    )
    assert "kaggle" in message.lower()
    assert not (root / "downloads").exists()


def test_a_wrong_file_of_the_users_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = official.cars()
    card = official.card("cars", contents)
    monkeypatch.setattr(registry.load("datasets", "cars", "test"), "CARD", card)
    given = root / "given"
    given.mkdir()
    for file, content in contents.items():
        (given / file).write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=r"cars_train\.tgz: its checksum is [0-9a-f]{64}, not"):
        [*fetch.fetch(workspace(root), "cars", given, quiet)]
    assert not (root / "downloads").exists()


def test_a_wrong_archive_in_its_place_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = official.dtd()
    monkeypatch.setattr(
        registry.load("datasets", "dtd", "test"), "CARD", official.card("dtd", contents)
    )
    path = root / "downloads" / "dtd" / "dtd-r1.0.1.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(contents[path.name] + b"x")
    with pytest.raises(UserError, match=r"dtd-r1.0.1.tar.gz: it has .* bytes, not"):
        prepare_stage.prepare(workspace(root), "dtd", progress=quiet)
    assert not (root / "data").exists()


def test_no_room_on_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry.load("datasets", "dtd", "test")
    archive = replace(module.CARD.archives[0], bytes=2**60)
    monkeypatch.setattr(module, "CARD", replace(module.CARD, archives=(archive,)))
    with pytest.raises(UserError, match=r"1073741824.0 GiB to download, .* are free in .*: make"):
        [*fetch.fetch(workspace(root), "dtd", None, quiet)]
    assert not (root / "downloads").exists()


def test_a_failed_download_says_what_else_may_help(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = official.sun()
    with serving({}) as server:
        card = official.card("sun", contents, f"{server.address}/good")
        monkeypatch.setattr(registry.load("datasets", "sun", "test"), "CARD", card)
        with pytest.raises(UserError, match=r"(?s)404.*put it into .*opendatalab"):
            [*fetch.fetch(workspace(root), "sun", None, quiet)]


def test_from_makes_no_sense_for_a_folder(root: Path) -> None:
    with pytest.raises(UserError, match="--from: digits has no archives"):
        [*fetch.fetch(workspace(root), "digits", root, quiet)]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("lists.tar", {"train_list.mat": b"no mat", "test_list.mat": b""}, "train_list.mat"),
        ("lists.tar", {"train_list.mat": official.matlab(other=1)}, r"KeyError\('file_list'"),
        ("images.tar", {"Images/x.jpg": b""}, "No such file"),
    ],
)
def test_lists_and_images_that_do_not_go_together(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    content: dict[str, bytes],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(root, "dogs", monkeypatch, {**official.dogs(), file: official.tar(content)})
    assert not (root / "data").exists()
