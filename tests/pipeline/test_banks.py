"""Banks that travel, beside a project: taken for its network, refused for another, made of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.foreign_weights import moco_file, torchvision_file
from support.projects import workspace
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, silently
from uotft.models import model_io, weights
from uotft.pipeline import bank_weights, banks as travelling
from uotft.pipeline.select import Extras, bank_request
from uotft.selection import banks


def test_a_project_publishes_what_it_has_embedded(fresh: Path, tmp_path: Path) -> None:
    ws = workspace(fresh)
    line = travelling.make_of_dataset(ws, "glyphs", tmp_path / "g.safetensors")
    own, bank = banks.read(ws.embedding("glyphs")), banks.read(tmp_path / "g.safetensors")
    assert f"means of {len(own.names)} classes of {own.means.shape[1]} features" in line
    assert np.allclose(bank.means, own.means, rtol=1e-6)
    assert (bank.names, bank.counts.tolist()) == (own.names, own.counts.tolist())
    assert (bank.backbone, own.weights) == ("", ""), "the pipeline's own banks are as they were"
    assert "training images of glyphs, by small_resnet" in bank.origin
    network, facts = model_io.read(ws.pretrained())
    assert bank.weights == weights.fingerprint(network.backbone)

    taken = bank_weights.for_network(tmp_path / "g.safetensors", ws.pretrained())
    assert taken.backbone == facts["sha256"] == own.backbone


def test_a_bank_of_other_weights_is_refused(
    fresh: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ws, path = workspace(fresh), tmp_path / "g.safetensors"
    travelling.make_of_dataset(ws, "glyphs", path)
    network, facts = model_io.read(ws.pretrained())
    with torch.no_grad():
        next(network.backbone.parameters()).add_(1e-3)
    model_io.write(ws.pretrained(), network, facts)
    with pytest.raises(banks.BadBank, match=r"g\.safetensors was made with other weights .* than"):
        bank_weights.for_network(path, ws.pretrained())
    banks.write(path, replace(banks.read(path), weights=""))
    with caplog.at_level(logging.WARNING):
        bank_weights.for_network(path, ws.pretrained())
    assert "g.safetensors does not name the weights that made it" in caplog.text


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes in train/, and a test/ whose pictures are no pictures."""
    rng = np.random.default_rng(0)
    for part, kind in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        folder = tmp_path / "photos" / part / kind
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            if part == "test":  # its header alone
                content = (folder / f"{number}.png").read_bytes()
                (folder / f"{number}.png").write_bytes(content[:60])
    return tmp_path / "photos"


@pytest.mark.slow
def test_moco_compares_one_space_and_gives_heads_another(photos: Path, tmp_path: Path) -> None:
    backbone = f"moco:{moco_file(tmp_path)[1]}"
    path = tmp_path / "m.safetensors"
    travelling.make(str(photos), backbone, 32, path, silently)
    bank = banks.read(path)
    assert (bank.means.shape, bank.trunk.shape) == ((2, 128), (2, 2048))
    assert bank.counts.tolist() == [3, 3], "no picture of test/ was opened"
    assert "by moco (moco.pth.tar)" in bank.origin
    for ask in (
        lambda: travelling.make_of_classifier(backbone, tmp_path / "c.npz"),
        lambda: select(f"imagenet:{backbone}", photos),
    ):
        with pytest.raises(UserError, match="it has no classifier, .* `uotft bank make --images`"):
            ask()
    chosen, _ = select(str(path), photos, backbone)
    assert sorted(chosen.names) == ["a", "b"]


def select(source: str, target: Path, backbone: str = ""):  # noqa: ANN201
    sides = travelling.Sides(source, str(target), backbone=backbone, size=32)
    return travelling.select(sides, "", bank_request("uot", {}, {}), Extras(), silently)


def test_a_picture_that_cannot_be_read_is_named(photos: Path, tmp_path: Path) -> None:
    """And no bank is written."""
    (photos / "train" / "b" / "1.png").write_bytes(b"words")
    _, weights_file = torchvision_file("resnet18", tmp_path)
    backbone = f"resnet18:{weights_file}"
    with pytest.raises(UserError, match=r"b/1\.png: not an image that Pillow can read"):
        travelling.make(str(photos), backbone, 32, tmp_path / "o.npz", silently)
    assert not (tmp_path / "o.npz").exists()


def test_rows_of_a_classifier_are_named_and_counted() -> None:
    rows = torch.arange(2000.0).view(1000, 2), torch.zeros(1000)
    bank = bank_weights.classifier_rows(rows, "ab" * 32, "resnet18")
    assert isinstance(bank, ClassBank)
    assert bank.names[-1] == "n15075141 toilet tissue"
    assert bank.means[999].tolist() == [1998.0, 1999.0]
    for classifier in (None, (torch.zeros(12, 2), torch.zeros(12))):
        with pytest.raises(UserError, match="backbone mine: its? "):
            bank_weights.classifier_rows(classifier, "", "mine")


def test_a_bank_says_nothing_of_this_machine(fresh: Path, tmp_path: Path) -> None:
    travelling.make_of_dataset(workspace(fresh), "glyphs", tmp_path / "g.safetensors")
    content = (tmp_path / "g.safetensors").read_bytes()
    assert str(fresh).encode() not in content
