"""A source and a target that cannot be trained together are refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.commands import answer
from support.image_folders import pictures
from support.projects import tiny_params, workspace, write_params
from uotft.core import config
from uotft.core.errors import UserError
from uotft.core.records import ClassBank
from uotft.pipeline import compatible
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks
from uotft.selection.classifier import classifier_bank


def mixed(root: Path, size: int, **train: str):  # noqa: ANN201
    """A project with the grey characters as source, and a folder of photographs as target."""
    params = tiny_params() | {"targets": ["birds"]}
    path = str(pictures(root / "birds", 2, 6, side=40))
    params["datasets"]["birds"] = {"kind": "folder", "path": path, "stored": size, "size": size}
    params["train"] |= train
    root.mkdir(exist_ok=True)
    write_params(root, params)
    return workspace(root)


def test_images_of_two_sizes_are_refused_at_the_first_stage(tmp_path: Path) -> None:
    mixed(tmp_path, 32)
    for arguments in (("prepare", "--dataset", "birds"), ("train", "--dataset", "birds")):
        done = answer("uotft", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert (
            "the source glyphs has images of 16 x 16 pixels, the target birds has images of "
            "32 x 32 pixels in colour: train.objective: joint trains on both"
        ) in done.stderr
        assert "Set datasets.glyphs.size and datasets.birds.size" in done.stderr
    assert not (tmp_path / "data").exists()


def test_what_can_be_trained_is_not_refused(tmp_path: Path) -> None:
    compatible.check(mixed(tmp_path / "same", 16), ["birds"], ["none", "uot"])
    plain = mixed(tmp_path / "plain", 32, objective="plain")
    compatible.check(plain, ["birds"], ["none", "uot"])
    joint = mixed(tmp_path / "joint", 32)
    compatible.check(joint, ["birds"], ["none"])
    with pytest.raises(UserError, match="one size"):
        compatible.check(joint, ["birds"], ["none", "uot"])


def test_a_backbone_that_sees_no_colours_is_said(tmp_path: Path) -> None:
    ws = mixed(tmp_path, 16)
    [note] = compatible.notes(ws)
    assert note.startswith("the backbone sees grey alone and ignores the colours in bi")
    ws.params.backbone["channels"] = 3
    assert not compatible.notes(ws)


def test_norms_that_cannot_be_separated_are_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    from uotft.models.backbones import timm

    ws = mixed(tmp_path, 16)
    ws.params.backbone.clear()
    ws.params.backbone.update({"name": "timm", "model": "test_efficientnet"})
    compatible.check(ws, ["birds"], ["none"])
    made = timm.build

    def build(settings: timm.Settings) -> nn.Module:
        return nn.SyncBatchNorm.convert_sync_batchnorm(made(settings))

    monkeypatch.setattr(timm, "build", build)
    with pytest.raises(UserError, match="has SyncBatchNorm.* layers, .*set it to mixed or frozen"):
        compatible.check(ws, ["birds"], ["none"])
    for other in ("mixed", "frozen"):
        compatible.check(ws.with_changes([f"train.batch_norm={other}"]), ["birds"], ["none"])


@pytest.mark.parametrize("name", sorted(compatible.SEPARABLE))
def test_what_is_not_looked_at_can_be_separated(name: str) -> None:
    from uotft.models import model_io
    from uotft.models.network import separate_norms

    section = {"name": name} | ({"weights": "unread.pth.tar"} if name == "moco" else {})
    separate_norms(model_io.build(section, 2))


def from_imagenet(root: Path, backbone: dict, **train: object) -> Workspace:
    """A project whose source is ImageNet by class, selected from bank.npz."""
    params = tiny_params() | {"source": "imagenet", "source_means": "bank.npz"}
    params["datasets"]["imagenet"] = {"kind": "imagenet_classes", "size": 16, "stored": 16}
    params["backbone"] = backbone
    params["train"] |= {"batch_norm": "frozen", **train}
    return Workspace(root, config.checked(params, "params.yaml"))


MOCO = {"name": "moco", "weights": "unread.pth.tar"}
RESNET = {"name": "resnet18"}


@pytest.mark.parametrize("means", ["classifier", "bank.npz"])
@pytest.mark.parametrize("unit", ["cluster", "image"])
def test_units_other_than_classes_need_the_images(tmp_path: Path, means: str, unit: str) -> None:
    """Whatever the source, and for rows that keep nothing, too: all read the units."""
    raw = tiny_params() | {"source_means": means}
    raw["select"]["unit"] = unit
    ws = Workspace(tmp_path, config.checked(raw, "params.yaml"))
    for strategy in ("uot", "none"):
        with pytest.raises(
            UserError, match=rf"select\.unit: got {unit}, but source_means: {means} "
        ):
            compatible.check(ws, ["digits"], [strategy])
    compatible.check(ws.with_changes(["source_means=images"]), ["digits"], ["uot"])


def test_a_source_head_starts_from_no_rows_of_a_bank(tmp_path: Path) -> None:
    raw = tiny_params() | {"source_means": "rows.npz"}
    raw["train"]["source_head"] = "class_means"
    ws = Workspace(tmp_path, config.checked(raw, "params.yaml"))
    rows, names = np.random.default_rng(0).normal(size=(12, 8)), tuple("abcdefghijkl")
    banks.write(tmp_path / "rows.npz", classifier_bank(rows, names, ""))
    with pytest.raises(UserError, match=r"train\.source_head: got class_means, .*rows\.npz"):
        compatible.check(ws, ["digits"], ["uot"])
    compatible.check(ws, ["digits"], ["none"])
    compatible.check(ws.with_changes(["train.source_head=random"]), ["digits"], ["uot"])
    banks.write(tmp_path / "rows.npz", ClassBank(rows, names, np.ones(12, np.int64)))
    compatible.check(ws, ["digits"], ["uot"])


def test_the_stage_train_refuses_them_too(trainable: Path) -> None:
    """DVC and experiments start it without the check of all settings."""
    from uotft.core.context import Context
    from uotft.core.records import Cell
    from uotft.pipeline import train
    from uotft.training import runtime

    params = tiny_params() | {"source_means": "rows.npz"}
    params["train"]["source_head"] = "class_means"
    write_params(trainable, params)
    rows = np.random.default_rng(0).normal(size=(12, 8))
    banks.write(trainable / "rows.npz", classifier_bank(rows, tuple("abcdefghijkl"), ""))
    with pytest.raises(UserError, match=r"train\.source_head: got class_means, .*rows\.npz"):
        train.train(workspace(trainable), Cell("digits", "uot", 0), Context(runtime.start(0, 1)))


def test_means_of_another_length_than_the_features_start_no_head(tmp_path: Path) -> None:
    ws = from_imagenet(tmp_path, MOCO, source_head="class_means")
    means, count = np.random.default_rng(0).normal(size=(3, 128)), np.ones(3, np.int64)
    bank = ClassBank(means, ("a", "b", "c"), count)
    banks.write(tmp_path / "bank.npz", bank)
    with pytest.raises(UserError, match=r"bank\.npz has 128 numbers a class, .* moco has 2048"):
        compatible.check(ws, ["digits"], ["uot"])
    compatible.check(ws, ["digits"], ["none"])
    compatible.check(ws.with_changes(["train.source_head=random"]), ["digits"], ["uot"])
    trunk = np.zeros((3, 2048))
    banks.write(tmp_path / "bank.npz", ClassBank(means, bank.names, count, trunk=trunk))
    compatible.check(ws, ["digits"], ["uot"])


@pytest.mark.parametrize("backbone", [MOCO, {"name": "state_dict", "weights": "unread.pth"}])
def test_no_head_starts_from_a_classifier_that_no_weights_have(
    tmp_path: Path, backbone: dict
) -> None:
    """Of a source by class, whose classes have no means at pre-training: it would be zero."""
    head = from_imagenet(tmp_path, backbone, source_head="classifier")
    with pytest.raises(UserError, match=r"train\.source_head: got classifier, but backbone "):
        compatible.check(head, ["digits"], ["uot"])
    compatible.check(head, ["digits"], ["none", "equal_compute"])
    for objective in ("co_tuning", "joint_co_tuning"):
        ws = from_imagenet(tmp_path, backbone, source_head="random", objective=objective)
        with pytest.raises(UserError, match=rf"train\.objective: got {objective}, but backbone "):
            compatible.check(ws, ["digits"], ["uot"])
    compatible.check(ws, ["digits"], ["none"])
    for objective, start in (("joint", "random"), ("pseudo_label", "classifier")):
        ws = from_imagenet(tmp_path, backbone, source_head=start, objective=objective)
        compatible.check(ws, ["digits"], ["uot"])
    ours = from_imagenet(tmp_path, RESNET, source_head="classifier", objective="joint_co_tuning")
    compatible.check(ours, ["digits"], ["uot"])
    with pytest.raises(UserError, match="has no classifier of the classes of imagenet"):
        compatible.check_starts(ours, ["uot"], classifier=False)  # a file of other classes


def test_no_temperature_is_fitted_where_no_image_is_fetched(tmp_path: Path) -> None:
    ws = from_imagenet(tmp_path, RESNET, objective="co_tuning")
    with pytest.raises(UserError, match=r"set objectives\.co_tuning\.calibrate: false"):
        compatible.check(ws, ["digits"], ["uot", "none"])
    compatible.check(ws, ["digits"], ["uot", "equal_compute"])
    off = ws.with_changes(["objectives.co_tuning.calibrate=false"])
    compatible.check(off, ["digits"], ["none"])
    joint = from_imagenet(tmp_path, RESNET, objective="joint_co_tuning")
    compatible.check(joint, ["digits"], ["none"])


def unlabelled(root: Path, **changes: dict):  # noqa: ANN201
    """A project whose source has no labels, with weights and clusters."""
    params = tiny_params() | {"source": "dump", "strategies": ["none", "uot"]}
    params["datasets"]["dump"] = {"kind": "folder", "path": "dump", "size": 16, "labels": False}
    params["backbone"] = {"name": "resnet18", "weights": "w.pth"}
    params["select"] |= {"unit": "cluster"}
    params["train"] |= {"objective": "pseudo_label"}
    for section, change in changes.items():
        params[section] = params[section] | change
    write_params(root, params)
    return workspace(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"weights": "none"}}, "to train the backbone resnet18 on: take one with"),
        ({"select": {"unit": "class"}}, "so uot has no classes to select: set select.unit: clust"),
        ({"train": {"objective": "co_tuning"}}, "train.objective: co_tuning learns them: set it"),
        (
            {"select": {"unit": "image"}, "train": {"objective": "joint"}},
            "train.objective: joint learns them: set it to pseudo_label",
        ),
    ],
)
def test_a_source_without_labels_gives_none(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"dump has no labels .*{message}"):
        compatible.check(unlabelled(tmp_path, **changes), ["digits"], ["uot"])


def test_clusters_of_it_can_be_trained_on(tmp_path: Path) -> None:
    for objective in ("pseudo_label", "joint", "plain"):
        ws = unlabelled(tmp_path, train={"objective": objective})
        compatible.check(ws, ["digits"], ["none", "uot"])
    plain = unlabelled(tmp_path, select={"unit": "class"}, train={"objective": "plain"})
    compatible.check(plain, ["digits"], ["none"])
    with pytest.raises(UserError, match="labels: false, but dump is a target, whose images need"):
        compatible.check(ws, ["dump"], ["none"])
