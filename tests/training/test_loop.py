"""The loop on a network without batch norm, where batches can be cut without a difference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from support.child_processes import forget_accelerator, killed, pair
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.settings import Augment, Recipe
from uotft.models.backbones import small_resnet
from uotft.models.network import Network
from uotft.training import runtime
from uotft.training.loop import Task, fit, learning_rate
from uotft.training.objectives import joint
from uotft.training.streams import Place, Sampling, Stream

IMAGES = np.random.default_rng(0).integers(0, 255, (40, 6, 6), dtype=np.uint8)
STILL = Augment(rotation=0.0, shear=0.0, zoom=0.0, shift=0.0)


class Flat(nn.Sequential):
    """A backbone without batch norm."""

    features = 7
    channels = 1

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 7), nn.Tanh())


def network() -> Network:
    torch.manual_seed(0)
    return Network(Flat(), target=4, source=5)


def run(
    accelerator: Accelerator, batch: int = 8, *, net: Network | None = None, **more: object
) -> dict[str, Tensor]:
    """Train a few steps with the words of a recipe; returns the weights that are kept."""
    recipe = {"steps": 9, "learning_rate": 0.1, "head_lr_factor": 1.0}
    words = {k: more.pop(k) for k in [*more] if k in Recipe.model_fields}
    place = Place("cpu", accelerator.process_index, accelerator.num_processes)
    streams = {
        name: Stream(IMAGES, np.arange(40) % n, Sampling(name, batch, 0, STILL), place)
        for name, n in (("target", 4), ("source", 5))
    }
    context = Context(
        accelerator, **{k: more.pop(k) for k in ("log", "stop", "progress") if k in more}
    )
    terms = lambda outputs, labels: joint.terms(outputs, labels, 0.5)  # noqa: E731
    chosen = Recipe.model_validate(recipe | words)
    kept = fit(Task(net or network(), streams, terms, chosen, joint.ROUTES), context, **more)
    return {name: t.detach().clone() for name, t in kept.state_dict().items()}


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield runtime.start(0, 1)
    forget_accelerator()


def same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-6) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_two_half_batches_make_the_step_of_one(accelerator: Accelerator) -> None:
    whole = run(accelerator, 8)
    assert same(run(accelerator, 4, accumulate=2), whole)
    assert not same(run(accelerator, 4), whole, atol=1e-3)


@pytest.mark.parametrize("words", [{}, {"accumulate": 2}])
def test_two_processes_learn_what_one_does(tmp_path: Path, words: dict) -> None:
    def work(rank: int) -> None:
        save_file(run(runtime.start(0, 1), **words), tmp_path / f"{rank}.safetensors")

    assert not any([killed(pid) for pid in pair(work)])
    forget_accelerator()
    alone = run(runtime.start(0, 1), **words)
    for rank in range(2):
        assert same(load_file(tmp_path / f"{rank}.safetensors"), alone)
    forget_accelerator()


@pytest.mark.parametrize(
    ("words", "factors"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "cosine"}, [(1 + np.cos(np.pi * i / 10)) / 2 for i in range(10)]),
        (
            {"schedule": "cosine", "warmup": 2},
            [0.5, 1, *((1 + np.cos(np.pi * i / 8)) / 2 for i in range(8))],
        ),
    ],
)
def test_learning_rates(words: dict, factors: list[float]) -> None:
    recipe = Recipe(steps=10, learning_rate=0.04, **words)
    rates = [learning_rate(recipe, 0.04, step) for step in range(10)]
    assert rates == pytest.approx([0.04 * factor for factor in factors])


def test_the_papers_recipe_drops_at_epochs_60_and_80() -> None:
    recipe = Recipe(epochs=100, warmup=5, learning_rate=0.01).counted(5994, 256)
    rates = [learning_rate(recipe, 0.01, step) for step in range(recipe.steps)]
    drops = [step for step in range(120, recipe.steps) if rates[step] < 0.5 * rates[step - 1]]
    assert [step * 256 / 5994 for step in drops] == pytest.approx([60, 80], abs=0.05)
    assert rates[116] == pytest.approx(0.01) == 117 * rates[0]


def test_the_rates_are_those_the_optimiser_uses(accelerator: Accelerator) -> None:
    logged: dict[int, float] = {}
    words = {"schedule": "cosine", "warmup": 3, "log_every": 1, "eval_every": 0}

    def log(step: int, numbers: dict[str, float]) -> None:
        logged[step] = numbers.get("learning_rate", 0)

    run(accelerator, log=log, **words)
    recipe = Recipe(steps=9, learning_rate=0.1, **words)
    assert [logged[i] for i in range(9)] == [learning_rate(recipe, 0.1, i) for i in range(9)]
    start = network()
    still = run(accelerator, steps=1, warmup=0, learning_rate=1e-12)
    assert same(still, start.state_dict())
    with pytest.raises(ValueError, match="warm-up must be shorter than steps"):
        Recipe(steps=5, learning_rate=0.1, warmup=5)


def test_the_running_mean_is_validated_and_kept(accelerator: Accelerator) -> None:
    net, weights, validated = network(), [], []

    def progress(steps: range, label: str) -> Iterator[int]:
        for step in steps:
            yield step
            weights.append(net.head("target").weight.detach().clone())

    def evaluate(kept: Network) -> dict[str, float]:
        validated.append(kept.head("target").weight.detach().clone())
        return {}

    kept = run(accelerator, net=net, ema=0.8, progress=progress, validate=evaluate, eval_every=0)
    mean = weights[0]
    for now in weights[1:]:
        mean = 0.8 * mean + 0.2 * now
    assert torch.allclose(kept["heads.target.weight"], mean, atol=1e-6)
    assert not torch.allclose(mean, weights[-1], atol=1e-3)
    assert torch.equal(validated[-1], kept["heads.target.weight"])


def test_bf16_learns_nearly_the_same_in_weights_of_float32() -> None:
    forget_accelerator()
    exact = run(runtime.start(0, 1))
    forget_accelerator()
    rough = run(runtime.start(0, 1, "bf16"))
    forget_accelerator()
    assert {t.dtype for t in rough.values()} == {torch.float32}
    assert same(rough, exact, atol=2e-2)
    assert not same(rough, exact, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"precision: got 'fp16', which needs a GPU"):
        runtime.start(0, 1, "fp16")


def test_a_network_in_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="accelerate config: got FSDP, but every process here"):
        runtime.start(0, 1)


def test_what_accelerate_was_told_decides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` puts its settings into the environment; params.yaml has its own."""
    forget_accelerator()
    for name, value in {"MIXED_PRECISION": "bf16", "GRADIENT_ACCUMULATION_STEPS": "4"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    found = runtime.start(0, 1)
    assert (found.mixed_precision, found.gradient_accumulation_steps) == ("no", 1)
    assert found.state.dynamo_plugin.backend == "NO"
    forget_accelerator()


@pytest.mark.parametrize("wanted", [True, False])
def test_the_memory_layout(accelerator: Accelerator, wanted: bool) -> None:
    settings = small_resnet.Settings(widths=[4, 8])
    net = Network(small_resnet.build(settings), target=4, source=5)
    net.to(memory_format=torch.channels_last)
    run(accelerator, net=net, channels_last=wanted, steps=1)
    weight = next(p for p in net.parameters() if p.shape == (8, 8, 3, 3))
    layout = torch.channels_last if wanted else torch.contiguous_format
    assert weight.is_contiguous(memory_format=layout)


def test_every_setting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs, cosine, warm-up, bf16, channels-last, compile, accumulation and the running mean."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    recipe = Recipe(
        epochs=3, warmup=1, schedule="cosine", precision="bf16", channels_last=True, compile=True,
        accumulate=2, ema=0.5, learning_rate=0.1, head_lr_factor=10.0,
    ).counted(40, 8)  # fmt: skip
    assert (recipe.steps, recipe.warmup) == (8, 2)
    settings, kept = small_resnet.Settings(widths=[4, 8]), []
    for _ in range(2):
        forget_accelerator()
        torch.manual_seed(0)
        net = Network(small_resnet.build(settings), target=4, source=5)
        net.to(memory_format=torch.channels_last)
        start = {name: t.detach().clone() for name, t in net.state_dict().items()}
        kept.append(run(runtime.start(0, 1, "bf16"), net=net, **recipe.model_dump()))
    forget_accelerator()
    assert all(bool(t.isfinite().all()) for t in kept[0].values())
    assert {t.dtype for t in kept[0].values() if t.is_floating_point()} == {torch.float32}
    assert same(kept[0], kept[1], atol=0)
    assert not same(kept[0], start, atol=1e-2)


def test_compiled_it_learns_the_same(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is traced, but not turned into C++, which takes a minute here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert same(run(accelerator, compile=True), run(accelerator), atol=1e-5)
