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
