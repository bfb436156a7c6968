"""What `uotft train --dataset NAME` takes a name for, and the project that it makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from support.image_folders import pictures
from uotft.core import config, user_settings
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.pipeline import given, init
from uotft.pipeline.init import Wanted

EIGHT = ["aircraft", "caltech", "cars", "cub", "dogs", "dtd", "pets", "sun"]


@pytest.fixture(autouse=True)
def _own_settings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one test remembers is not there for the next."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


def wanted(home: Path, target: str, source: str = "", preset: str = "", **more: object) -> Wanted:
    return Wanted(preset, source, target, home, **more)


def made(home: Path, target: str, **more: object) -> tuple[dict, dict]:
    """(params.yaml, dvc.yaml) of the project that `uotft train` makes."""
    folder, _ = init.project(wanted(home, target, **more))
    return tuple(yaml.safe_load((folder / f"{n}.yaml").read_text()) for n in ("params", "dvc"))


def test_the_public_targets_are_eight() -> None:
    assert given.public() == EIGHT


@pytest.mark.parametrize("name", EIGHT)
def test_each_public_set_makes_a_project_with_imagenet_by_class(name: str, tmp_path: Path) -> None:
    raw, where = init.settings(wanted(tmp_path, name))
    params = config.checked(raw, where)
    assert (params.source, params.targets) == ("imagenet", [name])
    assert params.source_means == "classifier"
    assert params.datasets[name]["path"] == f"../downloads/{name}"
    assert params.datasets["imagenet"]["images"] == "../downloads/imagenet"
    assert (params.select.top_k, params.backbone["name"]) == (100, "resnet18")
    assert params.selectors["greedy_ot"] == {"metric": "cosine"}
    assert not [*tmp_path.iterdir()], "a preview makes nothing"


def test_the_stages_of_a_source_by_class_come_in_another_order(tmp_path: Path) -> None:
    pictures(tmp_path / "birds", 3, 12)
    params, pipeline = made(tmp_path, str(tmp_path / "birds"))
    stages = pipeline["stages"]
    assert stages["pretrain"].get("deps") is None, "published weights need no image"
    assert stages["units"]["deps"] == ["pretrained/${source}"]
    assert stages["fetch"]["deps"] == ["selections"]
    assert [*stages["fetch"]["outs"][0]] == ["selected/${source}.json"]
    assert params["datasets"]["imagenet"]["path"] == "selected/imagenet.json", "as fetch writes it"
    assert params["tracking"] == "..", "shared with the projects beside it"


def test_a_name_of_two_things_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "dogs", 3, 12)
    with pytest.raises(UserError, match=r"dogs: this is a public set and also .*: write \./dogs"):
        init.settings(wanted(tmp_path, "dogs"))
    raw, _ = init.settings(wanted(tmp_path, "./dogs"))
    assert raw["datasets"]["dogs"]["kind"] == "folder"


def test_a_name_of_nothing_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dgos: no such folder of images, .* set \(aircraft, cal"):
        init.settings(wanted(tmp_path, "dgos"))


def test_imagenet_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="imagenet: ImageNet by class can only be a source"):
        init.settings(wanted(tmp_path, "imagenet"))


def test_a_public_set_can_be_the_source(tmp_path: Path) -> None:
    raw, _ = init.settings(wanted(tmp_path, "dogs", "caltech"))
    assert raw["source"] == "caltech"
    assert raw["source_means"] == "images"
    assert raw["selectors"]["greedy_ot"] == {"metric": "l2"}
    with pytest.raises(UserError, match="the source is the target itself"):
        init.settings(wanted(tmp_path, "dogs", "dogs"))


def test_a_target_alone_compares_no_selection(tmp_path: Path) -> None:
    raw, where = init.settings(wanted(tmp_path, "dogs", alone=True))
    assert config.checked(raw, where).strategies == ["none"]


def test_a_backbone_replaces_the_presets(tmp_path: Path) -> None:
    pictures(tmp_path / "birds", 3, 12)
    birds = str(tmp_path / "birds")
    params, _ = made(tmp_path, birds, backbone="timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert params["backbone"]["model"].startswith("vit_tiny")
    params, _ = made(tmp_path, birds, backbone="resnet50")
    assert params["backbone"] == {"name": "resnet50"}, "nobody has edited the file"


@pytest.mark.parametrize("place", ["", "copy"])
@pytest.mark.parametrize(
    "asked",
    [{"preset": "few", "backbone": "resnet50"}, {"preset": "few"}, {"backbone": "resnet50"}, {}],
)
def test_the_settings_stated_before_are_those_that_the_project_gets(
    asked: dict[str, str], place: str, tmp_path: Path
) -> None:
    """In a project that is there; ``place`` is where ImageNet has been named to lie since."""
    birds = str(pictures(tmp_path / "birds", 3, 12))
    folder, _ = init.project(wanted(tmp_path, birds))
    if place:
        user_settings.remember(imagenet=str(tmp_path / place))
    wished = wanted(tmp_path, birds, **asked)
    before = (folder / "params.yaml").read_text()
    raw, _ = init.settings(wished)
    assert (folder / "params.yaml").read_text() == before, "nothing is written"
    init.project(wished)
    assert raw == yaml.safe_load((folder / "params.yaml").read_text())
    assert raw["backbone"]["name"] == asked.get("backbone", "resnet18")
    assert (raw["train"]["recipe"].get("steps") == 100) == ("preset" in asked)


def test_what_a_project_refuses_is_refused_before(tmp_path: Path) -> None:
    birds = str(pictures(tmp_path / "birds", 3, 12))
    folder, _ = init.project(wanted(tmp_path, birds))
    with pytest.raises(UserError, match="is the project of other images: .*old is not the path"):
        init.settings(wanted(tmp_path, birds, str(pictures(tmp_path / "old", 4, 12))))
    params = folder / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    with pytest.raises(UserError, match="has been edited and differs from --preset paper --back"):
        init.settings(wanted(tmp_path, birds, backbone="resnet50"))


def test_where_imagenet_lies_is_remembered(tmp_path: Path) -> None:
    user_settings.remember(imagenet=str(tmp_path / "copy"))
    raw, _ = init.settings(wanted(tmp_path, "dogs"))
    assert raw["datasets"]["imagenet"]["images"] == str(tmp_path / "copy")


def test_another_place_of_imagenet_is_written_into_a_project(tmp_path: Path) -> None:
    pictures(tmp_path / "birds", 3, 12)
    folder, _ = init.project(wanted(tmp_path, str(tmp_path / "birds")))
    user_settings.remember(imagenet=str(tmp_path / "elsewhere"))
    init.name_imagenet(folder)
    images = config.load(folder).datasets["imagenet"]["images"]
    assert images == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("style", ["", "'", '"'])
def test_so_it_is_where_somebody_has_edited_params_yaml(tmp_path: Path, style: str) -> None:
    """Quoted or not; the plan of what is to be fetched knows the new place, too."""
    pictures(tmp_path / "birds", 3, 12)
    wished = wanted(tmp_path, str(tmp_path / "birds"))
    folder, _ = init.project(wished)
    file = folder / "params.yaml"
    file.write_text(
        file.read_text().replace('"../downloads/imagenet"', f"{style}../downloads/imagenet{style}")
    )
    user_settings.remember(imagenet=str(tmp_path / "else, where"))
    raw, _ = init.settings(wished)
    assert raw["datasets"]["imagenet"]["images"] == str(tmp_path / "else, where")
    assert raw["datasets"]["imagenet"]["size"] == 224
    init.name_imagenet(folder)
    assert config.load(folder).datasets == raw["datasets"]


def test_a_place_of_imagenet_that_is_not_found_in_params_yaml(tmp_path: Path) -> None:
    pictures(tmp_path / "birds", 3, 12)
    folder, _ = init.project(wanted(tmp_path, str(tmp_path / "birds")))
    file = folder / "params.yaml"
    text = file.read_text().replace('"../downloads/imagenet"', '"../downloads/\\x69magenet"')
    file.write_text(text)
    assert config.load(folder).datasets["imagenet"]["images"] == "../downloads/imagenet"
    user_settings.remember(imagenet=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="write .*elsewhere.* as images in datasets.imagenet"):
        init.name_imagenet(folder)
    assert file.read_text() == text


def test_the_place_that_it_has_already_changes_nothing(tmp_path: Path) -> None:
    pictures(tmp_path / "birds", 3, 12)
    folder, _ = init.project(wanted(tmp_path, str(tmp_path / "birds")))
    before = (folder / "params.yaml").stat().st_mtime_ns
    user_settings.remember(imagenet=str(tmp_path / "downloads" / "imagenet"))
    init.name_imagenet(folder)
    assert (folder / "params.yaml").stat().st_mtime_ns == before


def test_what_lies_beside_a_project_is_found_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "downloads" / "dogs").mkdir(parents=True)
    raw, file = init.settings(wanted(tmp_path, "dogs"))
    root = Path(file).parent
    assert not root.exists()
    assert located(root, raw["datasets"]["dogs"]["path"]).is_dir()
