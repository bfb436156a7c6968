from pathlib import Path

import pytest

from conftest import REPOSITORY, tiny_params, workspace, write_params
from uotft import config
from uotft.errors import UserError


def test_the_committed_params_are_valid() -> None:
    params = config.load(REPOSITORY)
    assert "uot" in params.strategies
    assert len(params.seeds) >= 5


def change(root: Path, path: str, value: object) -> None:
    params = section = tiny_params()
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent]
    section[last] = value
    write_params(root, params)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("train.batch_norm", False, "train.batch_norm: got False.*'target' or 'mixed'"),
        ("pretrain.recipe.steps", "False", "pretrain.recipe.steps: got 'False'.*integer"),
        ("pretrain.recipe.learning_rate", "1e-4", "got '1e-4'.*write 1.0e-4"),
        ("train.recipe.epochs", 3, "recipe.epochs: got 3: steps or epochs, one of the two"),
        ("train.recipe.warmup", 12, "recipe.warmup: got 12: the warm-up must be shorter than st"),
        ("train.labda", 0.3, "train.labda: no such setting; known are.*lambda"),
        ("train.recipe.step", 3, "train.recipe.step: no such setting; known are.*steps"),
        ("train.lambda", -1.0, "train.lambda: got -1.0.*greater than or equal to 0"),
        ("strategies", ["uot", "uto"], "got 'uto'; known are.*greedy_ot.*uot"),
        ("strategies", ["uot", "uot"], "strategies: got.*stands there twice"),
        (
            "targets",
            ["dogz"],
            "data set 'dogz' has no section under datasets: .*there are digits, glyphs",
        ),
        ("backbone.name", "resnet19", "backbone.name: got 'resnet19'; known are moco, resnet18"),
        ("selectors.uot", {"cost_scale": 0.0}, "selectors.uot:\n.*cost_scale: got 0.0"),
        ("objectives", {"jiont": {}}, "objectives: got 'jiont'; known are.*joint, .*l2_sp, plain"),
        ("datasets.digits.size", 1.5, "datasets.digits:\n.*size: got 1.5"),
        (
            "train.objective",
            "jiont",
            "train.objective: got 'jiont'; known are.*joint, .*l2_sp, plain",
        ),
    ],
)
def test_bad_values_are_named(tmp_path: Path, setting: str, value: object, message: str) -> None:
    change(tmp_path, setting, value)
    with pytest.raises(UserError, match=f"(?s){message}"):
        workspace(tmp_path)


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
    with pytest.raises(UserError, match=r"recipe\.epochs: got 0: steps or epochs, one of the two"):
        workspace(tmp_path)


def test_epochs_become_steps() -> None:
    """CUB has 5,994 training images: 100 epochs in batches of 256 are 2,341 steps."""
    recipe = config.Recipe(epochs=100, warmup=5, learning_rate=0.01)
    counted = recipe.counted(5994, 256)
    assert (counted.steps, counted.warmup, counted.epochs) == (2341, 117, 0)
    assert counted.drops == recipe.drops
    halves = recipe.model_copy(update={"accumulate": 2}).counted(5994, 128)
    assert (halves.steps, halves.warmup) == (2341, 117)
    assert config.Recipe(epochs=1, learning_rate=0.01).counted(3, 256).steps == 1
    steps = config.Recipe(steps=7, warmup=2, learning_rate=0.01)
    assert steps.counted(5994, 256) == steps


@pytest.mark.parametrize("text", ["a: [", "\xff", "just words"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"params\.yaml"):
        workspace(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a b", "a;b", "a.b", "-a", ""])
def test_names_of_data_sets_are_plain_words(tmp_path: Path, name: str) -> None:
    params = tiny_params()
    params["datasets"][name] = {"kind": "folder", "path": "x"}
    write_params(tmp_path, params)
    with pytest.raises(UserError, match="datasets: the name '.*' has not letters, digits"):
        config.load(tmp_path)
