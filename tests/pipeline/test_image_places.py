"""data/NAME.npz on other machines: the same bytes for the same images, found wherever they lie."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from support import dataset_archives as official
from support.image_folders import pictures
from support.projects import tiny_params, workspace, write_params
from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.core.records import silently
from uotft.pipeline import freshness, image_places, prepare, readers


def as_folder(root: Path) -> str:
    pictures(root / "photos", 2, 5)
    return "photos"


def as_list(root: Path) -> str:
    lines = [
        f"{p.relative_to(root)},{p.parent.name}" for p in (root / as_folder(root)).rglob("*.png")
    ]
    (root / "all.csv").write_text("\n".join(["path,label", *sorted(lines)]))
    return "all.csv"


def as_zip(root: Path) -> str:
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for path in sorted((root / as_folder(root)).rglob("*.png")):
            name = zipfile.ZipInfo(f"inside/{path.relative_to(root / 'photos')}")
            archive.writestr(name, path.read_bytes())
    shutil.rmtree(root / "photos")
    return "photos.zip"


def as_shards(root: Path) -> str:
    (root / "tars").mkdir()
    with tarfile.open(root / "tars/a.tar", "w") as tar:
        for number, path in enumerate(sorted((root / as_folder(root)).rglob("*.png"))):
            label = root / f"{number}.cls"
            label.write_text(path.parent.name[-1])
            tar.add(label, f"{number}.cls", filter=dated)
            tar.add(path, f"{number}.png", filter=dated)
            label.unlink()
    return "tars"


def dated(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    return member


def bad_file(root: Path) -> str:
    pictures(root / "photos", 2, 65)  # one bad file of 100 is tolerated
    (root / "photos/class 0/bad.png").write_bytes(b"no image")
    return "photos"


FORMS = [as_folder, as_list, as_zip, as_shards, bad_file]


def project(root: Path, form: Callable[[Path], str], path: str = "") -> Path:
    """A project with the data set birds in one form, there or at ``path``."""
    for folder in (root, root / path):
        folder.mkdir(parents=True, exist_ok=True)
    name = form(root / path)
    params = tiny_params()
    params["datasets"]["birds"] = {
        "kind": "shards" if form is as_shards else "folder", "path": str(Path(path, name)),
        "stored": 16, "size": 16, "unreadable": "skip",
    }  # fmt: skip
    write_params(root, params)
    return root


def prepared(root: Path) -> Path:
    prepare.prepare(workspace(root), "birds", progress=silently)
    return root / "data/birds.npz"


@pytest.mark.parametrize("form", FORMS)
def test_two_machines_make_the_same_bytes(tmp_path: Path, form: Callable[[Path], str]) -> None:
    one, two = (prepared(project(tmp_path / name, form)) for name in ("one", "the other"))
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()
    # outside the project, where each machine has its own disk
    far = prepared(project(tmp_path / "third", form, str(tmp_path / "disk")))
    assert far.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_the_file_alone_is_enough(tmp_path: Path, form: Callable[[Path], str]) -> None:
    """DVC brings data/, not cache/; archives are unpacked again."""
    made = prepared(project(tmp_path / "one", form))
    two = project(tmp_path / "two", form)
    shutil.copytree(made.parent, two / "data")
    images = readers.images(workspace(two), "birds")
    assert images.files is not None
    assert Path(images.files.root).is_relative_to(two)
    rows = images.rows("train")
    there = readers.images(workspace(made.parents[1]), "birds").images[rows]
    assert np.array_equal(images.images[rows], there)


@pytest.mark.parametrize("form", FORMS)
def test_images_that_are_not_there_are_named(tmp_path: Path, form: Callable[[Path], str]) -> None:
    root = project(tmp_path / "one", form)
    prepared(root)
    path = root / yaml.safe_load((root / "params.yaml").read_text())["datasets"]["birds"]["path"]
    path.rename(tmp_path / "away")
    if form is as_list:
        shutil.rmtree(root / "photos")
    assert len(readers.images(workspace(root), "birds").images[[0]]) == 1, "cache/ has the pixels"
    shutil.rmtree(root / "cache")
    with pytest.raises(UserError, match="birds: its images are not on this machine") as error:
        readers.images(workspace(root), "birds")
    assert f"{path} is missing" in str(error.value)
    assert "path in datasets.birds of params.yaml" in str(error.value)
    path.with_name(f"{path.name}.dvc").touch()
    with pytest.raises(UserError, match="dvc pull"):
        readers.images(workspace(root), "birds")


@pytest.mark.parametrize("form", FORMS)
def test_files_of_earlier_versions_are_read(tmp_path: Path, form: Callable[[Path], str]) -> None:
    """They hold the folder as the machine that made them named it."""
    root = project(tmp_path / "one", form)
    prepared(root)
    ws = workspace(root)
    images = image_places.read(ws, "birds")
    assert images.files is not None
    storage.write_images(ws.data("birds"), images)  # as it was written then
    assert image_places.read(ws, "birds").files.root == images.files.root  # type: ignore[union-attr]
    moved = root.rename(tmp_path / "two")
    again = readers.images(workspace(moved), "birds")
    assert again.files is not None
    assert Path(again.files.root) == moved / Path(images.files.root).relative_to(root)


def test_a_public_set_is_found_unpacked_and_as_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = official.dtd()
    card = official.card("dtd", contents)
    monkeypatch.setattr(registry.load("datasets", "dtd", ""), "CARD", card)
    made = []
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "downloads/dtd").mkdir(parents=True)
        for file, content in contents.items():
            (root / "downloads/dtd" / file).write_bytes(content)
        write_params(root, tiny_params())
        if name == "two":
            with tarfile.open(root / "downloads/dtd/dtd-r1.0.1.tar.gz") as tar:
                tar.extractall(root / "downloads/dtd", filter="data")
        prepare.prepare(workspace(root), "dtd", progress=silently)
        made.append((root / "data/dtd.npz").read_bytes())
    assert made[0] == made[1]
    shutil.rmtree(tmp_path / "one/cache")
    images = readers.images(workspace(tmp_path / "one"), "dtd")
    assert len(images.images[[0]]) == 1, "unpacked again"


def test_another_picture_of_that_name_is_refused(tmp_path: Path) -> None:
    root = project(tmp_path / "one", as_folder)
    prepared(root)
    shutil.rmtree(root / "cache")
    shutil.copy(root / "photos/class 0/1.png", root / "photos/class 0/0.png")
    images = readers.images(workspace(root), "birds")
    with pytest.raises(UserError, match="it changed since"):
        images.images[np.arange(len(images.labels))]


def test_a_source_by_class_before_any_class_is_selected(tmp_path: Path) -> None:
    """It needs no place of images; and what comes before its images does not look at them."""
    params = tiny_params()
    section = {"kind": "imagenet_classes", "path": "selected.json", "images": "nowhere"}
    params["datasets"]["imagenet"] = section | {"stored": 32, "size": 32}
    write_params(tmp_path, params | {"source": "imagenet"})
    (tmp_path / "selected.json").write_text('{"classes": []}')
    prepare.prepare(workspace(tmp_path), "imagenet", progress=silently)
    assert not len(readers.images(workspace(tmp_path), "imagenet").labels)
    params["datasets"]["imagenet"]["images"] = "elsewhere"
    write_params(tmp_path, params | {"source": "imagenet"})
    ws = workspace(tmp_path)
    freshness.check_features(ws, "imagenet", ws.embedding("imagenet"), "", "")
    with pytest.raises(UserError, match=r"with other settings .* \(images\)"):
        readers.images(ws, "imagenet")


def test_a_target_of_one_class_is_refused(tmp_path: Path) -> None:
    """Whatever is trained, all of it would be right."""
    pictures(tmp_path / "photos", 1, 6)
    lines = "".join(f"photos/class 0/{i}.png,bird\n" for i in range(6))
    (tmp_path / "birds.csv").write_text(f"path,label\n{lines}")
    params = tiny_params()
    params["datasets"]["birds"] = {"kind": "folder", "path": "birds.csv", "stored": 16, "size": 12}
    params["targets"] = ["birds"]
    write_params(tmp_path, params)
    with pytest.raises(UserError, match=r"birds: all its images are of the class 'bird'"):
        prepare.prepare(workspace(tmp_path), "birds", progress=lambda items, label, **_: items)
    assert not workspace(tmp_path).data("birds").exists()
