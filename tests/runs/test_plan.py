"""The plan of a training: what is to be fetched, whether there is room, how long it takes."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from support.image_folders import pictures
from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.data import class_downloads, wordnet
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
    found = plan.plan(birds, [Cell("birds", "uot", 0)])
    steps = round(100 * 38 / 256)
    assert f"training, {steps} steps of 512 images" in found.times
    trained = found.times[f"training, {steps} steps of 512 images"]
    assert trained == estimate.seconds(SPEED, trained=512 * steps, evaluated=10)
    assert (
        found.title
        == "uotft-birds/: resnet18 on birds, with the 100 classes of imagenet that uot keeps"
    )
    auto = plan.plan(birds.with_changes(["select.top_k=auto"]), [Cell("birds", "uot", 0)])
    assert auto.title.endswith("on birds, with what uot keeps of imagenet")
    plain = plan.plan(birds.with_changes(["train.objective=plain"]), [Cell("birds", "uot", 0)])
    assert plain.title.endswith("uot keeps; train.objective: plain trains on none of them")
    assert f"training, {steps} steps of 512 images" in auto.times, "nobody knows K yet"
    assert [item.what.split(":")[0] for item in found.items] == ["weights", "ImageNet"]
    assert not Path("uotft-birds").exists()


def test_what_only_the_selection_knows_is_not_stated(birds: Workspace) -> None:
    found = plan.plan(birds.with_changes(["select.top_k=auto"]), [Cell("birds", "uot", 0)])
    assert found.title.endswith("on birds, with what uot keeps of imagenet")
    assert ("ImageNet: up to 137.7 GiB", "not stated") in [row[:2] for row in found.rows()]
    assert found.times["reading the pictures"] == "known once classes are selected"
    assert "to fetch in all: at least 44.7 MiB" in "\n".join(found.lines())


@pytest.mark.parametrize(
    ("strategy", "change", "classes"),
    [
        ("all", "select.top_k=100", 1000),
        ("score_quantile", "selectors.score_quantile.quantiles=3", 334),
        ("label", "selectors.label.classes=['n01440764 *', '*goldfish']", 2),
    ],
)
def test_strategies_that_ignore_k_are_counted_by_names(
    birds: Workspace, strategy: str, change: str, classes: int
) -> None:
    found = plan.plan(birds.with_changes([change]), [Cell("birds", strategy, 0)], measured=False)
    item = found.items[-1]
    assert item.what == f"ImageNet: the {classes} selected classes"
    assert item.size == class_downloads.estimate(classes)
    with pytest.raises(UserError, match=r"make room"):
        replace(found, made=2**60).need()


def test_more_classes_than_imagenet_has(birds: Workspace) -> None:
    many = birds.with_changes(["select.top_k=2000"])
    with pytest.raises(UserError, match="got 2000, but the source has only 1000 classes"):
        plan.plan(many, [Cell("birds", "uot", 0)], measured=False)


@pytest.mark.parametrize(("have", "more"), [(0, 100), (30, 100), (950, 50), (1000, 0)])
def test_classes_that_are_there_are_not_fetched_again(
    birds: Workspace, have: int, more: int
) -> None:
    """Which are selected is not known yet: as many as are not there, K at most."""
    folder = Path("downloads/imagenet")
    folder.mkdir(parents=True)
    every = wordnet.imagenet()
    for wnid in [*every][:have]:
        (folder / f"{wnid}.tar").touch()
    storage.write_json(birds.root / "selected/imagenet.json", {"classes": [*every][: have // 2]})
    found = plan.plan(birds, [Cell("birds", "random", 3)], measured=False)
    sizes = {item.what: item.size for item in found.items if "ImageNet" in item.what}
    which = f"up to {more}" if have else f"the {more} selected"
    expected = {f"ImageNet: {which} classes": class_downloads.estimate(more)} if more else {}
    assert sizes == expected
    assert ("terms" in plan.checks(found, birds, [Cell("birds", "random", 3)])) == bool(more)


def test_all_cells_have_one_plan(birds: Workspace) -> None:
    cells = [Cell("birds", strategy, seed) for strategy in ("none", "uot") for seed in (0, 1)]
    found = plan.plan(birds, cells)
    assert found.title.endswith("on birds, 4 trainings: none, uot")
    assert found.items[-1].what == "ImageNet: the 200 selected classes"
    one = {name: plan.plan(birds, [Cell("birds", name, 0)]).times for name in ("none", "uot")}
    steps = round(100 * 38 / 256)
    images = 2 * steps * (256 + 512)
    took = found.times[f"4 trainings one after the other, {images:,} images"]
    alone = (f"training, {steps} steps of {n} images" for n in (256, 512))
    assert took == pytest.approx(2 * sum(one[k][t] for k, t in zip(one, alone, strict=True)))
    assert "testing on 48" in found.times


def test_a_source_of_ones_own_is_read_embedded_and_trained_on(birds: Workspace) -> None:
    pictures(Path("old"), 4, 25)
    order = whole.order(Cell("birds", "uot", 0), "old", "small", "", ())
    assert order
    ws, cells = order.preview(), [Cell("birds", "uot", 0)]
    found = plan.plan(ws, cells)
    assert "reading 160 pictures" in found.times
    [part] = [name for name in found.times if name.startswith("pre-training")]
    assert re.fullmatch(r"pre-training, [\d,]+ steps of 128 images", part)
    [embedded] = [name for name in found.times if name.startswith("features of")]
    assert int(embedded.removeprefix("features of ")) > 100, "of source and target"
    shutil.rmtree("old")
    gone = plan.plan(ws, cells, measured=False)
    assert [item.what for item in gone.items if not item.urls] == ["old: its images"]
    with pytest.raises(UserError, match="old: its images are not on this machine"):
        plan.checks(gone, ws, cells)["images"]()


def test_archives_are_unpacked_beside_themselves(birds: Workspace) -> None:
    order = whole.order(Cell("dogs", "none", 0), "", "", "", ())
    assert order
    found = plan.plan(order.preview(), [Cell("dogs", "none", 0)], measured=False)
    archives = sum(item.size for item in found.items if item.what.startswith("dogs"))
    assert found.made == archives + 20_580 * 256**2 * 3


def test_a_long_training_is_made_short_by_its_own_kind_of_length(birds: Workspace) -> None:
    changes = ["train.recipe.steps=1000000", "train.recipe.epochs=0"]
    said = "\n".join(plan.plan(birds.with_changes(changes), [Cell("birds", "none", 0)]).lines())
    assert "--subset shots=2 --set train.recipe.steps=10" in said


def test_a_long_tail_has_fewer_images(birds: Workspace) -> None:
    """38 of three classes, the largest of 12 and the smallest of 1."""
    tail = birds.with_changes(["subset.longtail=12", "train.target_batch=16"])
    times = plan.plan(tail, [Cell("birds", "none", 0)]).times
    assert "training, 100 steps of 16 images" in times, "12, 3 and 1"


@pytest.mark.parametrize("every", [0, 5])
def test_validations_take_their_time(birds: Workspace, every: int) -> None:
    changes = [f"train.recipe.eval_every={every}", "train.recipe.steps=20", "train.recipe.epochs=0"]
    found = plan.plan(birds.with_changes(changes), [Cell("birds", "none", 0)])
    trained = found.times["training, 20 steps of 256 images"]
    images = 10 * (1 + (20 // every if every else 0))
    assert trained == estimate.seconds(SPEED, trained=20 * 256, evaluated=images)
    assert [item.what.split(":")[0] for item in found.items] == ["weights"], "nothing of ImageNet"


def test_folders_on_one_disk_share_its_room(birds: Workspace) -> None:
    found = plan.plan(birds, [Cell("birds", "none", 0)])
    huge = [Item(f"part {n}", (), 2**60, Path(f"downloads/{n}")) for n in range(2)]
    with pytest.raises(UserError, match=r"in downloads/0/, .* in downloads/1/, .* work on another"):
        replace(found, items=huge).need()
    assert "make room" in "\n".join(replace(found, items=huge).lines()), "a plan only says so"


def test_fewer_labelled_images_take_fewer_steps(birds: Workspace) -> None:
    """Two of each of the three classes of a folder, which no card counts."""
    few = birds.with_changes(["subset.shots=2", "train.target_batch=6"])
    assert "training, 100 steps of 6 images" in plan.plan(few, [Cell("birds", "none", 0)]).times
    tenth = birds.with_changes(["subset.fraction=0.5", "train.target_batch=19"])
    assert "training, 100 steps of 19 images" in plan.plan(tenth, [Cell("birds", "none", 0)]).times


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
    found = plan.plan(ws, [Cell("digits", "uot", 0)])
    assert found.there[:2] == ["digits, made by code", "glyphs, made by code"]
    assert found.times == {"all of it": UNKNOWN}
    assert (found.items, found.made) == ([], 0)
    lines = [*found.lines()]
    assert lines[1:3] == ["time on this machine:", f"  all of it: {UNKNOWN}"]
    (tmp_path / "data").mkdir()
    shutil.copy(tiny / "data/digits.json", tmp_path / "data")
    found = plan.plan(ws, [Cell("digits", "uot", 0)])
    assert found.times["all of glyphs"] == "known once it is prepared"
    assert "training, 12 steps of 16 images" in found.times
    shutil.copytree(tiny / "data", tmp_path / "data", dirs_exist_ok=True)
    found = plan.plan(ws, [Cell("digits", "uot", 0)])
    assert "training, 12 steps of 16 images" in found.times
    assert found.made == 0, "its pixels are in data/digits.npz"


@pytest.mark.parametrize("kind", registry.names("datasets"))
def test_a_target_of_every_kind_has_a_plan(kind: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.tar").touch()
    (tmp_path / "own.json").write_text('{"classes": ["n01440764"]}')
    paths = {"folder": str(pictures(tmp_path / "photos", 3, 12)), "imagenet_classes": "own.json"}
    ws = own(tmp_path, kind=kind, path=paths.get(kind, "own"))
    found = plan.plan(ws, [Cell("own", "none", 0)], measured=False)
    assert found.items or found.there
    assert list(found.lines())


def test_shards_that_are_to_be_fetched(tmp_path: Path) -> None:
    addresses = "http://x/a-{0..2}.tar"
    ws = own(tmp_path, kind="shards", path="web", urls=addresses, mirrors=["http://y"])
    item = Item("own: 3 tar files", ("http://x/a-0.tar", "http://y/a-0.tar"), 0, tmp_path / "web")
    assert plan.plan(ws, [Cell("own", "none", 0)], measured=False).items == [item]
    (tmp_path / "web").mkdir()
    for number in range(3):
        (tmp_path / f"web/a-{number}.tar").touch()
    assert plan.plan(ws, [Cell("own", "none", 0)], measured=False).items == []
