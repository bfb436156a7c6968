"""The plan of a training: what is to be fetched, whether there is room, how long it takes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from support.image_folders import pictures
from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import registry
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline.workspace import Workspace
from uotft.runs import estimate, plan, whole
from uotft.runs.plan import Item

UNKNOWN = "known once digits is prepared"
SPEED = estimate.Speed(train=10.0, forward=40.0, decode=1000.0, device="cpu", threads=2)


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project on 60 pictures that is not made yet, on a machine of a known speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(estimate, "measure", lambda *given, **more: SPEED)
    pictures(tmp_path / "birds", 3, 20)
    order = whole.order(Cell("birds", "uot", 0), "", "", "", ())
    assert order
    return order.preview()


def test_times_follow_from_counts_and_the_speed(birds: Workspace) -> None:
    """60 pictures: 12 for tests and, of the 48 left, 10 for validation."""
    found = plan.plan(birds, Cell("birds", "uot", 0))
    steps = round(100 * 38 / 256)
    assert f"training, {steps} steps of 512 images" in found.times
    trained = found.times[f"training, {steps} steps of 512 images"]
    assert trained == estimate.seconds(SPEED, trained=512 * steps, evaluated=10)
    assert (
        found.title
        == "uotft-birds/: resnet18 on birds, with the 100 classes of imagenet that uot keeps"
    )
    auto = plan.plan(birds.with_changes(["select.top_k=auto"]), Cell("birds", "uot", 0))
    assert auto.title.endswith("on birds, with what uot keeps of imagenet")
    plain = plan.plan(birds.with_changes(["train.objective=plain"]), Cell("birds", "uot", 0))
    assert plain.title.endswith("on birds, without source images")
    assert f"training, {steps} steps of 512 images" in auto.times, "nobody knows K yet"
    assert [item.what.split(":")[0] for item in found.items] == ["weights", "ImageNet"]
    assert not Path("uotft-birds").exists()


@pytest.mark.parametrize(
    ("strategy", "change"), [("uot", "select.top_k=auto"), ("all", "select.top_k=100")]
)
def test_what_only_the_selection_knows_is_not_stated(
    birds: Workspace, strategy: str, change: str
) -> None:
    found = plan.plan(birds.with_changes([change]), Cell("birds", strategy, 0))
    assert found.title.endswith(f"on birds, with what {strategy} keeps of imagenet")
    assert ("ImageNet: up to 137.7 GiB", "not stated") in [row[:2] for row in found.rows()]
    assert found.times["reading the pictures"] == "known once classes are selected"
    assert "to fetch in all: at least 44.7 MiB" in "\n".join(found.lines())


@pytest.mark.parametrize("every", [0, 5])
def test_validations_take_their_time(birds: Workspace, every: int) -> None:
    changes = [f"train.recipe.eval_every={every}", "train.recipe.steps=20", "train.recipe.epochs=0"]
    found = plan.plan(birds.with_changes(changes), Cell("birds", "none", 0))
    trained = found.times["training, 20 steps of 256 images"]
    images = 10 * (1 + (20 // every if every else 0))
    assert trained == estimate.seconds(SPEED, trained=20 * 256, evaluated=images)
    assert [item.what.split(":")[0] for item in found.items] == ["weights"], "nothing of ImageNet"


def test_folders_on_one_disk_share_its_room(birds: Workspace) -> None:
    found = plan.plan(birds, Cell("birds", "none", 0))
    huge = [Item(f"part {n}", (), 2**60, Path(f"downloads/{n}")) for n in range(2)]
    with pytest.raises(UserError, match=r"in downloads/0/, .* in downloads/1/, .* work on another"):
        replace(found, items=huge).need()
    assert "make room" in "\n".join(replace(found, items=huge).lines()), "a plan only says so"


def test_fewer_labelled_images_take_fewer_steps(birds: Workspace) -> None:
    """Two of each of the three classes of a folder, which no card counts."""
    few = birds.with_changes(["subset.shots=2", "train.target_batch=6"])
    assert "training, 100 steps of 6 images" in plan.plan(few, Cell("birds", "none", 0)).times
    tenth = birds.with_changes(["subset.fraction=0.5", "train.target_batch=19"])
    assert "training, 100 steps of 19 images" in plan.plan(tenth, Cell("birds", "none", 0)).times


def test_a_file_is_no_folder(birds: Workspace) -> None:
    Path("old.zip").touch()
    assert plan.short(Path("old.zip")) == "old.zip"
    assert plan.short(Path("downloads/../birds")) == "birds/"


def own(root: Path, **section: object) -> Workspace:
    """A project on glyphs whose target, own, has this section; digits is a target as well."""
    params = tiny_params()
    for name in ("glyphs", "digits"):
        params["datasets"][name]["path"] = str(REPOSITORY / params["datasets"][name]["path"])
    params["datasets"]["own"] = section
    write_params(root, params)
    return workspace(root)


def test_a_set_that_is_made_by_code_has_a_plan(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before `prepare` nobody has counted its images; after it the times are known."""
    monkeypatch.setattr(estimate, "measure", lambda *given, **more: SPEED)
    ws = own(tmp_path, kind="digits", path="")
    found = plan.plan(ws, Cell("digits", "uot", 0))
    assert found.there[:2] == ["digits, made by code", "glyphs, made by code"]
    assert found.times == {"all of it": UNKNOWN}
    assert (found.items, found.pixels) == ([], 0)
    lines = [*found.lines()]
    assert lines[1:3] == ["time on this machine:", f"  all of it: {UNKNOWN}"]
    shutil.copytree(tiny / "data", tmp_path / "data")
    found = plan.plan(ws, Cell("digits", "uot", 0))
    assert "training, 12 steps of 16 images" in found.times
    assert found.pixels == 0, "its pixels are in data/digits.npz"


@pytest.mark.parametrize("kind", registry.names("datasets"))
def test_a_target_of_every_kind_has_a_plan(kind: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.tar").touch()
    (tmp_path / "own.json").write_text('{"classes": ["n01440764"]}')
    paths = {"folder": str(pictures(tmp_path / "photos", 3, 12)), "imagenet_classes": "own.json"}
    ws = own(tmp_path, kind=kind, path=paths.get(kind, "own"))
    found = plan.plan(ws, Cell("own", "none", 0), measured=False)
    assert found.items or found.there
    assert list(found.lines())


def test_shards_that_are_to_be_fetched(tmp_path: Path) -> None:
    addresses = "http://x/a-{0..2}.tar"
    ws = own(tmp_path, kind="shards", path="web", urls=addresses, mirrors=["http://y"])
    item = Item("own: 3 tar files", ("http://x/a-0.tar", "http://y/a-0.tar"), 0, tmp_path / "web")
    assert plan.plan(ws, Cell("own", "none", 0), measured=False).items == [item]
    (tmp_path / "web").mkdir()
    for number in range(3):
        (tmp_path / f"web/a-{number}.tar").touch()
    assert plan.plan(ws, Cell("own", "none", 0), measured=False).items == []
