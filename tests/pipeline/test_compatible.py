"""A source and a target that cannot be trained together are refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.commands import answer
from support.image_folders import pictures
from support.projects import tiny_params, workspace, write_params
from uotft.core.errors import UserError
from uotft.pipeline import compatible


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
