"""Every registered backbone keeps the contract; those of others equal the originals' features."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.foreign_weights import moco_file, torchvision_file
from uotft.core import config, registry
from uotft.core.errors import UserError
from uotft.core.paths import with_files
from uotft.models import model_io, weights
from uotft.models.backbones import efficientnet_lite0, small_resnet
from uotft.models.network import Network, separate_norms
from uotft.models.weights import MEAN, STD
from uotft.training.objectives import joint

SIZE = 32
#: Settings without which a backbone cannot be built; the others are built with their defaults.
NEEDED = {
    "moco": {"weights": "unread.pth.tar"},
    "state_dict": {"weights": "unread.safetensors"},
    "timm": {"model": "test_vit.r160_in1k", "image_size": SIZE},
}


def section(name: str, **settings: object) -> dict:
    return {"name": name, **NEEDED.get(name, {}), **settings}


def normalised(images: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    """[-1, 1] -> what the original networks were trained on."""
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return ((images + 1) / 2 - m) / s


def pictures(channels: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(3, channels, SIZE, SIZE) * 2 - 1


@pytest.mark.parametrize("name", registry.names("backbones"))
def test_the_contract(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = model_io.build(section(name), target=4, source=2)
    images = pictures(network.channels)
    assert network.channels in (1, 3)
    features = network.backbone.eval()(images)
    assert features.shape == (3, network.backbone.features)
    assert features.isfinite().all()
    if hasattr(network.backbone, "project"):
        assert network.backbone.project(features).shape[0] == 3
        assert not any(p.requires_grad for p in network.backbone.project.parameters())

    torch.manual_seed(0)
    again = model_io.build(section(name), target=4, source=2).eval()
    assert torch.equal(again.backbone(images), features), "the seed decides the weights"

    outputs = network.train()(images, {"target": 2, "source": len(images) - 2}, joint.ROUTES)
    (outputs["target"].sum() + outputs["source"].sum()).backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained), "a weight without gradient stops DDP"

    facts = {"backbone": section(name), "classes": list("abcd"), "source_classes": list("ef")}
    model_io.write(tmp_path, network, facts)
    read, _ = model_io.read(tmp_path)
    assert torch.equal(read(images)["target"], network.eval()(images)["target"])


@pytest.mark.parametrize("name", registry.names("backbones"))
def test_a_default_is_no_path_of_the_project(name: str, tmp_path: Path) -> None:
    _, settings = config.backbone(section(name))
    given = NEEDED.get(name, {})
    whole = with_files(settings, tmp_path)
    assert {n: v for n, v in whole if n not in given} == {
        n: v for n, v in settings if n not in given
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_give_torchvision_features(name: str, tmp_path: Path) -> None:
    original, path = torchvision_file(name, tmp_path)
    found = model_io.pretrained(section(name, weights=str(path)))
    images = pictures()
    with torch.no_grad():
        logits = original(normalised(images))
        weight, bias = found.classifier
        features = found.backbone.eval()(images)
        assert features.std() > 0.1
        assert torch.allclose(features @ weight.T + bias, logits, atol=1e-4)
        original.fc = nn.Identity()
        assert torch.allclose(features, original(normalised(images)), atol=1e-4)
    assert weight.shape == (1000, found.backbone.features)
    assert len(found.origin["sha256"]) == 64


def test_old_files_do_not_count_batches(tmp_path: Path) -> None:
    _, path = torchvision_file("resnet18", tmp_path)
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path)
    assert model_io.pretrained(section("resnet18", weights=str(path))) is not None


@pytest.mark.parametrize("name", ["small_resnet", "resnet18"])
def test_without_weights_the_pipeline_trains(name: str) -> None:
    wanted = {} if name == "small_resnet" else {"weights": "none"}
    assert model_io.pretrained(section(name, **wanted)) is None


@pytest.mark.parametrize("model", ["test_vit.r160_in1k", "test_resnet.r160_in1k"])
@pytest.mark.parametrize("classes", [1000, 7])
def test_timm_weights_give_timm_features(model: str, classes: int, tmp_path: Path) -> None:
    import timm

    size = {"img_size": SIZE} if "vit" in model else {}
    torch.manual_seed(3)
    original = timm.create_model(model, num_classes=classes, **size).eval()
    path = tmp_path / "model.safetensors"
    save_file(original.state_dict(), path)
    facts, images = original.pretrained_cfg, pictures()
    found = model_io.pretrained(
        {"name": "timm", "model": model, "weights": str(path), "image_size": SIZE if size else 0}
    )
    weight, bias = found.classifier
    assert weight.shape == (classes, found.backbone.features)
    inputs = normalised(images, facts["mean"], facts["std"])
    with torch.no_grad():
        features = found.backbone.eval()(images)
        assert torch.allclose(features @ weight.T + bias, original(inputs), atol=1e-4)
        wanted = original.forward_head(original.forward_features(inputs), pre_logits=True)
        assert torch.allclose(features, wanted, atol=1e-4)


def test_a_transformer_of_another_size_says_which_setting(tmp_path: Path) -> None:
    backbone = model_io.build({"name": "timm", "model": "test_vit.r160_in1k"}, 2).backbone
    with pytest.raises(UserError, match="160 x 160 pixels.* 32 x 32: set backbone.image_size"):
        backbone(pictures())


def test_a_convolutional_model_takes_no_image_size() -> None:
    with pytest.raises(UserError, match="image_size: test_resnet.* takes images of any size"):
        model_io.build({"name": "timm", "model": "test_resnet", "image_size": 32}, 2)


def test_an_unknown_timm_name_lists_close_ones() -> None:
    with pytest.raises(
        UserError, match=r"got 'resnet19\.tv_in1k'.*did you mean .*resnet18\.tv_in1k"
    ):
        model_io.build({"name": "timm", "model": "resnet19.tv_in1k"}, 2)


def test_timm_says_what_does_not_fit(tmp_path: Path) -> None:
    _, path = torchvision_file("resnet18", tmp_path)
    with pytest.raises(UserError, match=r"resnet18\.pth: not weights of test_vit.*cls_token"):
        model_io.pretrained(section("timm", weights=str(path)))


def test_moco_selects_by_its_projection_and_trains_its_trunk(tmp_path: Path) -> None:
    query, path = moco_file(tmp_path)
    found = model_io.pretrained({"name": "moco", "weights": str(path)})
    images = pictures()
    with torch.no_grad():
        features = found.backbone.eval()(images)
        assert torch.allclose(
            found.backbone.project(features), query(normalised(images)), atol=1e-4
        )
    assert features.shape == (3, 2048)
    assert found.classifier is None


@pytest.mark.parametrize("size", [16, 15])
def test_a_narrow_shortcut_is_the_same_convolution(size: int) -> None:
    """With the stride in the convolution itself, oneDNN in torch 2.15 may write past its memory."""
    torch.manual_seed(0)
    narrow = small_resnet.build(small_resnet.Settings(widths=[4, 8, 16]))
    made = [m for m in narrow.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [(conv.in_channels, conv.stride) for conv in made] == [(4, (1, 1)), (8, (2, 2))]
    images = torch.rand(8, 4, size, size).contiguous(memory_format=torch.channels_last)
    usual = nn.functional.conv2d(images, made[0].weight, stride=2)
    assert torch.allclose(made[0](images), usual, atol=1e-6)


def test_our_own_weights_come_back(tmp_path: Path) -> None:
    small = {"name": "small_resnet", "widths": [4, 8], "channels": 3}
    network = model_io.build(small, target=5)
    model_io.write(tmp_path, network, {})
    found = model_io.pretrained(
        {
            "name": "state_dict",
            "weights": str(tmp_path / "model.safetensors"),
            "architecture": small,
            "prefix": "backbone.",
            "classifier": "heads.target",
        }
    )
    images = pictures()
    again, features = found.backbone.eval()(images), network.eval().backbone(images)
    assert torch.allclose(again, features, atol=1e-6)  # another memory layout
    assert torch.equal(found.classifier[0], network.head("target").weight)


@pytest.fixture(scope="module")
def lite0() -> Path:
    try:
        return efficientnet_lite0.packaged()
    except UserError:
        pytest.skip(f"the package {efficientnet_lite0.PACKAGE} is not installed")


def test_lite0_has_the_logits_of_timms_model_with_the_same_tensors_in_order(lite0: Path) -> None:
    import timm

    found = model_io.pretrained(section("efficientnet_lite0"))
    tensors, images = list(weights.read(lite0).values()), pictures()
    weight, bias = found.classifier
    with torch.no_grad():
        logits = found.backbone.eval()(images) @ weight.T + bias
        for name in ("tf_efficientnet_lite0", "efficientnet_lite0"):
            original = timm.create_model(name).eval()
            original.load_state_dict(dict(zip(original.state_dict(), tensors, strict=True)))
            inputs = normalised(images, (0.5,) * 3, (0.5,) * 3)
            same = torch.allclose(logits, original(inputs), atol=1e-4)
            assert same == (name == "tf_efficientnet_lite0"), "the other one has another padding"
    assert weight.shape == (1000, 1280)
    assert found.origin["file"] == lite0.name
    again = model_io.pretrained(section("efficientnet_lite0", weights=str(lite0)))
    assert torch.equal(again.backbone.eval()(images), found.backbone(images))


def test_lite0_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(UserError, match=r"no-such-package-of-weights.*uotft\[lite\].*PATH"):
        model_io.pretrained(section("efficientnet_lite0"))
    assert model_io.pretrained(section("efficientnet_lite0", weights="none")) is None


def other_names(folder: Path) -> Path:
    """A small network's random weights under the names of a project of its own."""
    torch.manual_seed(5)
    trunk = model_io.build(section("small_resnet", widths=[4, 8]), target=2).backbone
    state = {
        f"net.{k.replace('layers.', 'body_')}": v.contiguous()
        for k, v in trunk.state_dict().items()
    }
    save_file(state, folder / "other.safetensors")
    return folder / "other.safetensors"


def state_dict(path: Path, **settings: object) -> dict:
    small = {"name": "small_resnet", "widths": [4, 8]}
    return section("state_dict", weights=str(path), architecture=small, prefix="net.", **settings)


def test_keys_of_another_project_are_renamed(tmp_path: Path) -> None:
    path = other_names(tmp_path)
    with pytest.raises(UserError, match="unexpected: body_0.weight"):
        model_io.pretrained(state_dict(path))
    found = model_io.pretrained(state_dict(path, rename={r"^body_(\d+)": r"layers.\1"}))
    first = weights.read(path)["net.body_0.weight"]
    assert torch.equal(found.backbone.state_dict()["layers.0.weight"], first)


@pytest.mark.parametrize("name", ["heads.target.weight", "heads", "net.layers.0"])
def test_a_classifier_that_the_file_lacks_is_refused(name: str, tmp_path: Path) -> None:
    """With the names of the file's linear layers: class means would take its place silently."""
    trunk = model_io.build(section("small_resnet", widths=[4, 8]), target=2).backbone
    state = {f"net.{k}": v.contiguous() for k, v in trunk.state_dict().items()}
    save_file(state | {"heads.target.weight": torch.zeros(2, 8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as caught:
        model_io.pretrained(state_dict(tmp_path / "a.safetensors", classifier=name))
    assert f"backbone.classifier: got {name!r}, which is no linear layer of " in str(caught.value)
    assert "(those are: heads.target): name one of them, or leave" in str(caught.value)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({r"^body_\d+": "layers"}, r"rename: .*other\.safetensors: two keys become 'layers\."),
        ({"^body_(": "layers."}, r"rename: '\^body_\(': 'layers\.': .*subpattern"),
        ({"^body_": r"layers\1"}, r"rename: '\^body_': .*group"),
    ],
)
def test_a_wrong_renaming_says_so(rename: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        model_io.pretrained(state_dict(other_names(tmp_path), rename=rename))


def test_norms_with_an_activation_are_separated_as_two_passes() -> None:
    """timm's BatchNormAct2d, alone and through a network of it: outputs, statistics, gradients."""
    _, settings = config.backbone({"name": "timm", "model": "test_efficientnet"})
    module = registry.load("backbones", "timm", "")
    torch.manual_seed(0)
    alone = Network(module.build(settings), target=3, source=4)
    joint = copy.deepcopy(alone)
    for network in (alone, joint):
        separate_norms(network)
    target, source = torch.randn(5, 3, 32, 32), 3 + 2 * torch.randn(4, 3, 32, 32)
    sizes, routes = (
        {"target": 5, "source": 4},
        {"target": ("target",) * 2, "source": ("source",) * 2},
    )
    outputs = joint.train()(torch.cat([target, source]), sizes, routes)
    first = alone.train()(target)["target"]
    kept = {name: b.clone() for name, b in alone.named_buffers()}
    second = alone.head("source")(alone.backbone(source))
    assert torch.allclose(outputs["target"], first, atol=1e-6)
    assert torch.allclose(outputs["source"], second, atol=1e-6)
    for name, buffer in joint.named_buffers():
        assert torch.allclose(buffer.double(), kept[name].double(), atol=1e-6), name
    sum(x.square().sum() for x in outputs.values()).backward()
    (first.square().sum() + second.square().sum()).backward()
    for one, other in zip(joint.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_a_separated_norm_keeps_its_activation_and_dropout() -> None:
    from timm.layers import BatchNormAct2d

    layer = BatchNormAct2d(3, act_layer=nn.GELU, drop_layer=nn.Dropout2d)
    holder = nn.Sequential(layer)
    holder(torch.randn(4, 3, 5, 5))
    images = torch.randn(4, 3, 5, 5)
    before = holder.eval()(images)
    separate_norms(holder)
    assert torch.equal(holder.eval()(images), before)
    assert (type(layer.act), type(layer.drop)) == (nn.GELU, nn.Dropout2d)
    assert "running_mean" in layer.state_dict()


class Abn(nn.Module):
    """A norm that does not say so by its class, as InplaceAbn."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.ones(3))


@pytest.mark.parametrize(
    "norm",
    [nn.SyncBatchNorm(3), nn.BatchNorm1d(3), Abn(), nn.InstanceNorm2d(3, track_running_stats=True)],
)
def test_norm_layers_that_cannot_be_separated_are_refused(norm: nn.Module) -> None:
    name = type(norm).__name__
    with pytest.raises(UserError, match=f"has {name} layers, .*set it to mixed or frozen"):
        separate_norms(nn.Sequential(nn.Sequential(norm)))


def test_norms_of_single_images_need_no_separation() -> None:
    norms = nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3)
    separate_norms(nn.Sequential(*norms))
    assert [type(norm) for norm in norms] == [nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d]
