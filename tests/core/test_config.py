from pathlib import Path

import pytest

from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import config
from uotft.core.errors import UserError
from uotft.core.settings import Recipe


def test_the_committed_params_are_valid() -> None:
    params = config.load(REPOSITORY)
    assert "uot" in params.strategies
    assert len(params.seeds) >= 5


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    params = tiny_params()
    del params["train"]["recipe"]["learning_rate"]
    write_params(tmp_path, params)
    with pytest.raises(UserError, match=r"train\.recipe\.learning_rate: missing"):
        workspace(tmp_path)


def test_a_training_without_a_length_is_refused(tmp_path: Path) -> None:
    params = tiny_params()
    del params["train"]["recipe"]["steps"]
    write_params(tmp_path, params)
    with pytest.raises(UserError, match=r"recipe\.epochs: got 0: set either steps or epochs"):
        workspace(tmp_path)


def test_drops_are_shares_not_epochs(tmp_path: Path) -> None:
    """The paper says epochs 60 and 80; as shares they would never come."""
    params = tiny_params()
    params["train"]["recipe"]["drops"] = [60, 80]
    write_params(tmp_path, params)
    with pytest.raises(UserError, match=r"(?s)recipe\.drops.*got 60.*less than or equal to 1"):
        workspace(tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_setting_is_infinite_but_tau_target(tmp_path: Path, value: float) -> None:
    params = tiny_params()
    params["train"]["lambda"] = value
    write_params(tmp_path, params)
    with pytest.raises(UserError, match=r"train\.lambda: got (inf|nan): .*finite number"):
        workspace(tmp_path)
    made = config.strategy_settings("uot", {"tau_target": float("inf")})
    assert made.model_dump()["tau_target"] == "inf"


def test_epochs_become_steps() -> None:
    """CUB has 5,994 training images: 100 epochs in batches of 256 are 2,341 steps."""
    recipe = Recipe(epochs=100, warmup=5, learning_rate=0.01)
    counted = recipe.counted(5994, 256)
    assert (counted.steps, counted.warmup, counted.epochs) == (2341, 117, 0)
    assert counted.drops == recipe.drops
    halves = recipe.model_copy(update={"accumulate": 2}).counted(5994, 128)
    assert (halves.steps, halves.warmup) == (2341, 117)
    assert Recipe(epochs=1, learning_rate=0.01).counted(3, 256).steps == 1
    steps = Recipe(steps=7, warmup=2, learning_rate=0.01)
    assert steps.counted(5994, 256) == steps


def test_a_backbone_in_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pth.tar").touch()
    weights = str(tmp_path / "m.pth.tar")
    for text, section in {
        "resnet50": {"name": "resnet50"},
        "resnet18:m.pth.tar": {"name": "resnet18", "weights": weights},
        "timm:vit_small_patch16_224.dino": {"name": "timm", "model": "vit_small_patch16_224.dino"},
        "timm:tf_efficientnet_lite0:m.pth.tar": {
            "name": "timm",
            "model": "tf_efficientnet_lite0",
            "weights": weights,
        },
        "moco:m.pth.tar": {"name": "moco", "weights": weights},
        f"moco:{weights}": {"name": "moco", "weights": weights},
    }.items():
        assert config.backbone_section(text) == section


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet19", "--backbone: got 'resnet19'; known are efficientnet_lite0, moco"),
        ("", "--backbone: got ''; known are"),
        ("moco", "'moco' without its weights: write moco:PATH"),
        ("state_dict", "'state_dict' without its weights"),
        ("timm", "'timm' without a model: write timm:NAME"),
        ("timm:", "'timm' without a model: write timm:NAME"),
        ("moco:no.pth", r"--backbone: no\.pth: no such file of weights"),
        ("my.pth", r"names no network: write NAME:my\.pth .*, such as resnet50:my\.pth"),
        ("files/my.safetensors", "names no network: write NAME:files/my"),
    ],
)
def test_what_names_no_backbone(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.backbone_section(text)
