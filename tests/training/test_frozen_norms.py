"""``batch_norm: frozen``: training normalises with the pre-trained statistics, which stay."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from support.child_processes import forget_accelerator
from support.projects import tiny_params, workspace, write_params
from support.tiny_training import CELL, left, made, train
from uotft.core.context import Context
from uotft.core.errors import Interrupted, UserError
from uotft.core.records import Cell
from uotft.core.settings import Augment, Recipe
from uotft.models import model_io
from uotft.models.backbones import small_resnet
from uotft.models.network import Network, freeze_norms
from uotft.pipeline import select
from uotft.training import runtime
from uotft.training.loop import Task, fit
from uotft.training.objectives import joint
from uotft.training.streams import Place, Sampling, Stream

IMAGES = np.random.default_rng(0).integers(0, 255, (40, 12, 12), dtype=np.uint8)
STILL = Augment(rotation=0.0, shear=0.0, zoom=0.0, shift=0.0)
STEPS, RATE = 3, 0.05


def network(frozen: bool = True) -> Network:
    """A small network whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    made = Network(small_resnet.build(small_resnet.Settings(widths=[4, 8])), target=4, source=5)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    assert not frozen or freeze_norms(made)
    return made


def streams() -> dict[str, Stream]:
    return {
        name: Stream(IMAGES, np.arange(40) % n, Sampling(name, 8, 0, STILL), Place("cpu", 0, 1))
        for name, n in (("target", 4), ("source", 5))
    }


def fitted(net: Network, **recipe: object) -> Network:
    """Some steps of joint fine-tuning by the loop."""
    forget_accelerator()
    recipe = {"steps": STEPS, "learning_rate": RATE, "head_lr_factor": 1.0, "momentum": 0.0,
              "weight_decay": 0.0, "drops": [], "eval_every": 1} | recipe  # fmt: skip
    terms = lambda outputs, labels: joint.terms(outputs, labels, 0.5)  # noqa: E731
    task = Task(net, streams(), terms, Recipe.model_validate(recipe), joint.ROUTES)

    def validate(kept: Network) -> dict[str, float]:
        kept.eval()
        return {}

    found = fit(task, Context(runtime.start(0, 1)), validate=validate)
    forget_accelerator()
    return found


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in net.named_buffers() if "backbone" in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recipe", [{}, {"ema": 0.5}, {"compile": True}, {"accumulate": 2}])
def test_the_statistics_stay_and_all_weights_learn(
    monkeypatch: pytest.MonkeyPatch, recipe: dict
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    net, start = network(), network().state_dict()
    kept = fitted(net, **recipe)
    for trained in (net, kept):
        assert same(buffers(trained), buffers(network()))
        assert not any(torch.equal(p, start[name]) for name, p in trained.named_parameters())
    moved = fitted(network(frozen=False), **recipe)
    assert not same(buffers(moved), buffers(network())), "red without it"


def test_the_loop_does_what_these_lines_do() -> None:
    """Evaluation mode throughout: here no other layer behaves differently in training."""
    net, by_hand = network(), network(frozen=False).eval()
    fitted(net, channels_last=False)
    order, parts = torch.optim.SGD(by_hand.parameters(), RATE), streams()
    for step in range(STEPS):
        batch = {name: stream[step] for name, stream in parts.items()}
        features = by_hand.backbone(torch.cat([b.images for b in batch.values()])).split(8)
        losses = [
            functional.cross_entropy(by_hand.head(name)(of), batch[name].labels)
            for name, of in zip(batch, features, strict=True)
        ]
        order.zero_grad()
        (losses[0] + 0.5 * losses[1]).backward()
        order.step()
    for name, weights in net.state_dict().items():
        assert torch.allclose(weights, by_hand.state_dict()[name], atol=1e-6), name


def test_a_layer_that_holds_others_freezes_itself_alone() -> None:
    """timm's norms have an activation and a dropout inside, which train."""

    class Held(nn.BatchNorm2d):
        def __init__(self, features: int) -> None:
            super().__init__(features)
            self.drop = nn.Dropout()

    class Backbone(nn.Sequential):
        features, channels = 4, 3

    net = Network(Backbone(Held(3)), target=2)
    assert freeze_norms(net) == 1
    assert net.train().backbone[0].drop.training
    assert not net.backbone[0].training
    assert freeze_norms(Network(Backbone(nn.GroupNorm(1, 3)), target=2)) == 0


def frozen(root: Path, **more: object) -> None:
    """The tiny training with frozen statistics."""
    params = tiny_params()
    params["train"]["recipe"] |= {"steps": 12, "log_every": 1, "checkpoint_every": 5}
    params["train"] |= {"batch_norm": "frozen"} | more
    write_params(root, params)
    select.select(workspace(root), Cell(*CELL))


@pytest.mark.parametrize("more", [{}, {"head_steps": 3}, {"objective": "plain"}])
def test_a_stage_keeps_the_statistics_of_its_network(fresh: Path, more: dict) -> None:
    frozen(fresh, **more)
    train(fresh)
    ws = workspace(fresh)
    ours, _ = model_io.read(ws.cell("models", Cell(*CELL)))
    pretrained, _ = model_io.read(ws.pretrained())
    assert same(buffers(ours), buffers(pretrained))
    assert not torch.equal(*(next(iter(n.backbone.parameters())) for n in (ours, pretrained)))


def stops_at(step: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) >= step


def test_a_resumed_training_is_the_uninterrupted_one(fresh: Path) -> None:
    frozen(fresh, head_steps=2)
    train(fresh)
    whole = made(fresh)
    with pytest.raises(Interrupted):
        train(fresh, stop=stops_at(12))
    assert left(fresh).is_dir()
    train(fresh)
    assert made(fresh) == whole


def test_what_contradicts_it_is_refused_before_anything(fresh: Path) -> None:
    frozen(fresh)
    with pytest.raises(UserError, match="reestimate_norm: .*batch_norm: frozen keeps the stat"):
        workspace(fresh).with_changes(["train.reestimate_norm=true"])


def test_a_network_without_batch_norm_is_told(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("uotft.training.assembly.freeze_norms", lambda network: 0)
    frozen(fresh)
    with caplog.at_level(logging.WARNING):
        train(fresh)
    assert "batch_norm: frozen changes nothing: small_resnet has no batch norm" in caplog.text
