"""The pipeline with weights that were trained elsewhere, with colour, and with both mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from support.foreign_weights import moco_file, torchvision_file
from support.projects import tiny_params, workspace, write_params
from support.stages import run_train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import Interrupted, UserError
from uotft.core.records import Cell, ImageSet
from uotft.data import wordnet
from uotft.models import embedding, model_io
from uotft.models.network import nearest_mean_rows
from uotft.pipeline import (
    compare,
    embed,
    evaluate,
    forecast,
    overlap,
    pretrain as pretrain_stage,
    readers,
    units,
)
from uotft.selection import banks, features
from uotft.selection.classifier import stand_ins
from uotft.training import runtime

QUIET = {"progress": lambda items, label: items}


def paint(root: Path, dataset: str) -> None:
    """Give a prepared grey data set three different channels."""
    ws = workspace(root)
    images = readers.images(ws, dataset)
    grey = images.images
    colour = np.stack([grey, 255 - grey, grey // 2], 3)
    storage.write_images(
        ws.data(dataset), ImageSet(colour, images.labels, images.splits, images.names)
    )


def run(root: Path, backbone: dict, **pretrain: object) -> list[tuple[int, dict]]:
    """Everything from pretrain to train; returns the points that pretrain logs."""
    params, points = tiny_params(), []
    params["backbone"] = backbone
    params["pretrain"] |= pretrain
    write_params(root, params)
    ws = workspace(root)
    pretrain_stage.pretrain(
        ws,
        Context(
            runtime.start(0, 1), log=lambda step, numbers: points.append((step, numbers)), **QUIET
        ),
    )
    for dataset in ("glyphs", "digits"):
        embed.embed(ws, dataset, Context(runtime.start(0, 1), **QUIET))
    units.units(ws)
    run_train(root)
    return points


def test_weights_of_others_are_written_not_trained(fresh: Path, tmp_path: Path) -> None:
    _, path = torchvision_file("resnet18", tmp_path, num_classes=12)
    points = run(fresh, {"name": "resnet18", "weights": str(path)})
    assert [step for step, _ in points] == [0], "validated once, no step"
    network, facts = model_io.read(workspace(fresh).pretrained())
    state = torch.load(path, weights_only=True)
    assert torch.equal(network.backbone.trunk.conv1.weight, state["conv1.weight"])
    assert torch.equal(network.head("target").weight, state["fc.weight"]), "12 source classes"
    assert facts["weights"]["sha256"] == storage.fingerprint(path)
    assert (facts["head"], facts["steps"]) == ("classifier", 0)
    assert set(facts["validation"]) == {"val/top1", "val/mean_per_class"}


def test_a_classifier_of_other_classes_is_replaced_by_means(fresh: Path, tmp_path: Path) -> None:
    _, path = torchvision_file("resnet18", tmp_path, num_classes=9)
    run(fresh, {"name": "resnet18", "weights": str(path)}, head_scale=3.0)
    ws = workspace(fresh)
    network, facts = model_io.read(ws.pretrained())
    assert facts["head"] == "class means"
    means = torch.as_tensor(banks.read(ws.embedding("glyphs")).means).float()
    pool = np.array(features.read(ws.features("glyphs"))["features"])
    head = network.head("target")
    predicted = (torch.as_tensor(pool) @ head.weight.T + head.bias).argmax(1)
    nearest = torch.cdist(torch.as_tensor(pool), means).argmin(1)
    assert (predicted == nearest).float().mean() > 0.95


def test_the_source_goes_through_the_network_once(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pretrain` stops in its pass, goes on, and `embed` joins the features it made."""
    _, path = torchvision_file("resnet18", tmp_path, num_classes=9)
    params = tiny_params() | {"backbone": {"name": "resnet18", "weights": str(path)}}
    params["embed"] = {"batch_size": 8}
    write_params(fresh, params)
    ws, passed = workspace(fresh), []

    real = embedding.shards

    def counted(network, images, wanted, context, **size):  # noqa: ANN001, ANN003, ANN202
        for rows, found in real(network, images, wanted, context, **size):
            passed.append(rows)
            yield rows, found

    monkeypatch.setattr(embedding, "shards", counted)

    def context(shards: float = float("inf")) -> Context:
        return Context(runtime.start(0, 1), log=lambda *_: None, stop=lambda: len(passed) >= shards,
                       **QUIET)  # fmt: skip

    with pytest.raises(Interrupted):
        pretrain_stage.pretrain(ws, context(shards=2))
    pretrain_stage.pretrain(ws, context())
    embed.embed(ws, "glyphs", context())
    every = features.cut(len(ws.rows("glyphs", readers.images(ws, "glyphs"), "train")), 8)
    assert passed == every, "each shard once, in order"
    assert not ws.unfinished(ws.features("glyphs")).exists()
    made, head = features.read(ws.features("glyphs")), model_io.read(ws.pretrained())[0]

    passed.clear()
    shutil.rmtree(ws.features("glyphs"))
    embed.embed(ws, "glyphs", context())
    assert passed == every
    again = features.read(ws.features("glyphs"))
    assert np.array_equal(made["features"], again["features"]), "what embed itself makes"
    means, _ = features.class_means([again["features"]], again["labels"], len(again["names"]))
    wanted = nearest_mean_rows(torch.as_tensor(means).float(), ws.params.pretrain.head_scale)
    assert torch.equal(head.head("target").weight, wanted[0])


def test_class_means_do_not_depend_on_how_features_are_kept(fresh: Path, tmp_path: Path) -> None:
    """DVC's stage pretrain does not know embed.dtype; its shards are float32."""
    _, path = torchvision_file("resnet18", tmp_path, num_classes=9)
    heads = []
    for dtype in ("float32", "float16"):
        params = tiny_params() | {"backbone": {"name": "resnet18", "weights": str(path)}}
        write_params(fresh, params | {"embed": {"dtype": dtype}})
        ws = workspace(fresh)
        for made in (
            pretrain_stage.pretrain,
            lambda *words: embed.embed(words[0], "glyphs", words[1]),
        ):
            made(ws, Context(runtime.start(0, 1), log=lambda *_: None, **QUIET))
        heads.append(model_io.read(ws.pretrained())[0].head("target").weight)
        assert features.read(ws.features("glyphs"))["features"].dtype == dtype
        assert not ws.unfinished(ws.features("glyphs")).exists()
    assert torch.equal(*heads)
    pretrain_stage.pretrain(ws, Context(runtime.start(0, 1), log=lambda *_: None, **QUIET))
    assert not ws.unfinished(ws.features("glyphs")).exists(), "the same network: they are there"


def test_shards_that_another_machine_kept_for_itself_are_missed(tmp_path: Path) -> None:
    shards = features.cut(8, 1)
    features.keep(tmp_path, shards[0], {"features": np.zeros((4, 2), np.float32)}, "float32")
    labels = np.zeros(8, np.int64)
    with pytest.raises(UserError, match=r"lacks 1 of 2 shards .* must share the folder"):
        features.class_means_of_shards(tmp_path, shards, labels, 1)
    with pytest.raises(UserError, match=r"lacks 1 of 2 shards"):
        features.join(tmp_path, shards, tmp_path / "pool", labels, "float32", names=np.array(["a"]))


@pytest.mark.slow
def test_moco_selects_in_one_space_and_trains_in_another(fresh: Path, tmp_path: Path) -> None:
    _, path = moco_file(tmp_path, dimensions=16)
    run(fresh, {"name": "moco", "weights": str(path), "dimensions": 16})
    ws = workspace(fresh)
    for bank in (banks.read(ws.embedding("glyphs")), readers.target_bank(ws, "digits", 0)):
        assert bank.means.shape[1] == 16
        assert bank.trunk.shape == (len(bank.names), 2048)
        assert bank.head_means() is bank.trunk
    pool = features.read(ws.features("glyphs"))
    bank = banks.read(ws.embedding("glyphs"))
    rows = pool["labels"] == 3
    assert np.allclose(bank.trunk[3], pool["trunk"][rows].mean(0), atol=1e-4)
    before, _ = model_io.read(ws.pretrained())
    after, _ = model_io.read(ws.cell("models", Cell("digits", "uot", 0)))
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before.backbone.parameters(), after.backbone.parameters(), strict=True)
    ]
    assert any(moved), "the trunk is trained"
    for a, b in zip(
        before.backbone.project.parameters(), after.backbone.project.parameters(), strict=True
    ):
        assert torch.equal(a, b), "the projection is not"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("painted", [["glyphs"], ["glyphs", "digits"]])
def test_colour_goes_through_the_pipeline(fresh: Path, channels: int, painted: list[str]) -> None:
    for dataset in painted:
        paint(fresh, dataset)
    run(fresh, {"name": "small_resnet", "widths": [4, 8], "channels": channels})
    ws = workspace(fresh)
    params = tiny_params() | {"strategies": ["uot"], "seeds": [0]}
    params["backbone"] = {"name": "small_resnet", "widths": [4, 8], "channels": channels}
    write_params(fresh, params)
    ws = workspace(fresh)
    result = evaluate.evaluate(ws, "digits", "uot", **QUIET)
    assert result["0"]["images"] == 1000
    forecast.forecast(ws, "digits", **QUIET)
    assert json.loads(ws.forecast("digits").read_text())["uot"]["0"]["selected"]["delta2"] > 0
    compare.compare(ws)
    assert (fresh / "reports/pictures/classes-digits.png").stat().st_size > 1000
    _, facts = model_io.read(ws.cell("models", Cell("digits", "uot", 0)))
    assert facts["image_size"] == ([16, 16, 3] if "digits" in painted else [16, 16])


def test_overlap_finds_a_coloured_copy(fresh: Path) -> None:
    paint(fresh, "glyphs")
    paint(fresh, "digits")
    ws = workspace(fresh)
    source, target = readers.images(ws, "glyphs"), readers.images(ws, "digits")
    row, copy = int(source.rows("train")[0]), int(target.rows("test")[0])
    target.images[copy] = source.images[row]
    storage.write_images(ws.data("digits"), target)
    found = overlap.overlap("glyphs", "digits", workspace=lambda: ws, **QUIET)
    assert found["counts"]["bytes"] == 1
    assert (found["matches"][0]["target"], found["matches"][0]["source"]) == (copy, row)


def test_a_part_of_imagenet_finds_its_rows_of_the_classifier(fresh: Path, tmp_path: Path) -> None:
    """Classes that carry WordNet ids; the same rows then stand for the classes in selection."""
    network, path = torchvision_file("resnet18", tmp_path)
    ws, ids = workspace(fresh), [*wordnet.imagenet()]
    images = readers.images(ws, "glyphs")
    rows = list(range(900, 900 - 3 * len(images.names), -3))
    names = tuple(f"{ids[row]} {wordnet.imagenet()[ids[row]]}" for row in rows)
    storage.write_images(
        ws.data("glyphs"), ImageSet(images.images, images.labels, images.splits, names)
    )
    params = tiny_params() | {"source_means": "classifier"}
    params["backbone"] = {"name": "resnet18", "weights": str(path)}
    write_params(fresh, params)
    ws = workspace(fresh)
    pretrain_stage.pretrain(ws, Context(runtime.start(0, 1), **QUIET))
    made, facts = model_io.read(ws.pretrained())
    assert facts["head"] == "classifier"
    assert torch.equal(made.head("target").weight, network.fc.weight[rows])
    units.units(ws)
    bank = banks.read(ws.embedding("glyphs"))
    assert bank.names == names
    every = stand_ins(network.fc.weight.detach().numpy())
    np.testing.assert_array_equal(bank.means, every[rows], "of all 1,000 rows, not of these alone")
    assert bank.counts.sum() == len(images.rows("train")) == len(bank.members)
