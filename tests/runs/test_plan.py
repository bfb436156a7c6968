"""The plan of a training: what is to be fetched, whether there is room, how long it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.image_folders import pictures
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline.workspace import Workspace
from uotft.runs import estimate, plan, whole
from uotft.runs.plan import Item

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
    assert [item.what.split(":")[0] for item in found.items] == ["weights", "ImageNet"]
    assert not Path("uotft-birds").exists()


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
