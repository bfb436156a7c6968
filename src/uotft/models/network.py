"""A backbone with two heads, and batch norm that can separate two domains.

Equation (6) of Liu et al. (2022) trains one backbone with a target head and a source head. One
forward pass takes the concatenated batch, target images first; the objective's routes say which
head sees which part. With ``batch_norm: target`` each norm layer treats the target rows and all
other rows as two batches. Its running statistics, used at test time, come from the target rows
alone (docs/decisions/0003-batch-norm.md). With ``batch_norm: frozen`` training normalises with the
pre-trained running statistics, as tests do, and these stay as they are.
"""

from __future__ import annotations

from math import sqrt
from typing import Self
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from uotft.core.errors import UserError
from uotft.core.records import Floats

HEAD_STD = sqrt(2 / 2048)  # as in the paper's scripts, for every backbone

# {output: (part of the batch, head)}
# Parts: target; source, the kept source images; strong, the same images with strong distortions.
# Heads: target; source, over the kept source classes. If the objective reads no source images, the
# source head is over all classes of the pre-trained classifier.
Routes = dict[str, tuple[str, str]]
TARGET: Routes = {"target": ("target", "target")}


class TargetBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises target and other rows separately, with running statistics of the
    target rows alone. ``n_target`` is the number of target rows in the next batch."""

    n_target: int = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, C, H, W), whose first ``n_target`` rows are the target's."""
        if not self.training or self.n_target >= len(x):
            return super().forward(x)
        target = super().forward(x[: self.n_target])
        source = functional.batch_norm(
            x[self.n_target :], None, None, self.weight, self.bias, training=True, eps=self.eps
        )
        return torch.cat([target, source])


class TargetBatchNormAct2d(TargetBatchNorm2d):
    """The same for timm's BatchNormAct2d, which ends with a dropout and an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, C, H, W), whose first ``n_target`` rows are the target's; then act."""
        acted: Tensor = self.act(self.drop(super().forward(x)))
        return acted


# {class: what separates its rows}, by name, since timm may not be installed
SEPARATED: dict[str, type[TargetBatchNorm2d]] = {
    "torch.nn.modules.batchnorm.BatchNorm2d": TargetBatchNorm2d,
    "timm.layers.norm_act.BatchNormAct2d": TargetBatchNormAct2d,
}


def separate_norms(module: nn.Module) -> None:
    """Make every batch norm of ``module`` separate the rows of target and source, in place.

    Raises `UserError` if one is of a class that cannot.
    """
    for norm in _norms(module):
        kind = type(norm)
        if separated := SEPARATED.get(f"{kind.__module__}.{kind.__qualname__}"):
            # the layer keeps its weights, its statistics and all that it was built with
            norm.__class__ = separated
        elif not isinstance(norm, TargetBatchNorm2d):
            raise UserError(
                f"train.batch_norm: got 'target', but this backbone has {kind.__name__} layers, "
                "which cannot separate two domains: set it to mixed or frozen"
            )


def freeze_norms(network: Network) -> int:
    """Keep the running statistics of every norm in training; returns how many norms have some.

    Their weights and biases still learn.
    """
    network.norms_are_frozen = True
    network.train(network.training)
    return len([norm for norm in _norms(network) if _has_statistics(norm)])


def _norms(module: nn.Module) -> list[nn.Module]:
    """The layers whose output depends on the other images of a batch, or on earlier batches."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) or _has_statistics(m)]


def _has_statistics(module: nn.Module) -> bool:
    return any(getattr(module, f"running_{name}", None) is not None for name in ("mean", "var"))


class Network(nn.Module):
    """A backbone and its heads: images (n, C, H, W) -> {output: logits}.

    With ``norms_are_frozen`` batch norms stay in evaluation mode; see `freeze_norms`.
    """

    norms_are_frozen: bool = False

    def __init__(self, backbone: nn.Module, *, target: int, source: int = 0) -> None:
        super().__init__()
        features: int = backbone.features  # type: ignore[assignment]
        self.channels: int = backbone.channels  # type: ignore[assignment]
        self.backbone = backbone
        self.heads = nn.ModuleDict({"target": nn.Linear(features, target)})
        if source:
            self.heads["source"] = nn.Linear(features, source)

    def forward(
        self, images: Tensor, sizes: dict[str, int] | None = None, routes: Routes = TARGET
    ) -> dict[str, Tensor]:
        """Images (n, C, H, W) -> {output: logits (rows of its part, classes of its head)}.

        ``sizes`` are the numbers of rows of each part, target first; by default all rows are the
        target's. ``routes`` names the part and the head of each output.
        """
        sizes = sizes or {"target": len(images)}
        for module in self.modules():
            if isinstance(module, TargetBatchNorm2d):
                module.n_target = sizes["target"]
        features = self.backbone(images).split(list(sizes.values()))
        parts = dict(zip(sizes, features, strict=True))
        return {name: self.heads[head](parts[part]) for name, (part, head) in routes.items()}

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen norms are always in evaluation mode.

        Every way to training mode comes here: the loop's own call, and those of the wrappers of
        Accelerate, torch.compile and the running mean.
        """
        super().train(mode)
        if self.norms_are_frozen:
            for norm in _norms(self):
                norm.training = False  # not eval(), which also reaches a dropout inside the layer
        return self

    @torch.no_grad()
    def start_head(self, head: str, weight: Tensor, bias: Tensor) -> None:
        """Set a head's weights: ``weight`` (classes, D), ``bias`` (classes,)."""
        linear = self.head(head)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)

    def head(self, name: str) -> nn.Linear:
        """The linear head ``target`` or ``source``."""
        linear = self.heads[name]
        assert isinstance(linear, nn.Linear)
        return linear


def random_rows(head: str, shape: torch.Size, seed: int) -> tuple[Tensor, Tensor]:
    """Weights from N(0, HEAD_STD^2) and zero bias, as in the paper's scripts.

    ``shape`` is (classes, D). The numbers depend on ``head``, ``seed`` and the shape alone.
    """
    rng = np.random.default_rng((seed, crc32(f"{head} head".encode())))
    weight = torch.as_tensor(rng.normal(0, HEAD_STD, shape), dtype=torch.float32)
    return weight, torch.zeros(len(weight))


def as_head(weight: Floats, bias: Floats) -> tuple[Tensor, Tensor]:
    """Weight (T, D) and bias (T,) of a linear probe in the precision of a head."""
    return torch.as_tensor(weight).float(), torch.as_tensor(bias).float()


def nearest_mean_rows(means: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A linear head that ranks classes by distance to their means (T, D): weight and bias.

    scale * (m.f - |m|^2 / 2) orders classes as -|f - m|^2 does. These are the imprinted weights of
    Qi et al. (2018) without their normalisation. The common mean is subtracted first, which changes
    no ranking. ``scale`` is in units of 1 / (mean squared distance of a class mean to the common
    mean).
    """
    centred = means - means.mean(0)
    # the clamp is for a single class, whose mean is the common mean
    unit = scale / centred.square().sum(1).mean().clamp(min=1e-12)
    return unit * centred, -unit * (centred * (means + means.mean(0))).sum(1) / 2
