"""Gradients at the pre-trained weights -> delta^2, the forecast of theorem 1 (Liu et al. 2022).

    delta^2 = max over theta_t and xi of E |grad F(theta_t) - grad h(theta_t; xi)|^2       (eq. 4)

F is the loss over one seed's target images, h the loss of one source image xi. Both gradients are
taken at the pre-trained weights, before any step, with respect to the weights that both tasks
share: those of the backbone. Batch norm is in evaluation mode and images are not distorted, so the
numbers depend on the weights and the images alone.

For an image of class c, E |grad F - grad h|^2 = |grad F|^2 - 2 <grad F, g_c> + E |grad h|^2, where
g_c is the class's mean gradient. So products of mean gradients give delta^2 of any selection,
without a second pass over the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from uotft.core.records import Floats, Pixels
from uotft.models.inputs import to_input


@dataclass(frozen=True)
class Gradients:
    """Gradients of S classes or clusters in P weights.

    ``means`` (S, P) are the mean gradients g_c, ``squares`` (S,) the means of |gradient|^2 over a
    class's images, ``counts`` (S,) the numbers of images.
    """

    means: NDArray[np.float32]
    squares: Floats
    counts: NDArray[np.int64]

    def mean(self) -> Floats:
        """The mean gradient over all images, (P,)."""
        mean: Floats = self.counts / self.counts.sum() @ self.means.astype(np.float64)
        return mean


@dataclass(frozen=True)
class Products:
    """The inner products from which delta^2 of one target follows.

    ``target`` is |grad F|^2, ``across`` (S,) <grad F, g_c>, ``source`` (S, S) <g_c, g_d>.
    ``squares`` and ``counts`` (S,) are those of Gradients.
    """

    target: float
    across: Floats
    source: Floats
    squares: Floats
    counts: NDArray[np.int64]


def gradients(
    backbone: nn.Module,
    head: nn.Linear,
    images: Pixels,
    labels: NDArray[np.int64],
    *,
    groups: NDArray[np.int64] | None = None,
    batch_size: int = 64,
    progress: Callable[..., Iterable[int]] = lambda classes, label: classes,
) -> Gradients:
    """Per-image gradients of the cross-entropy in the P weights of ``backbone``, averaged by group.

    ``images`` are uint8 (n, H, W) or (n, H, W, 3); ``labels`` (n,) are those of the loss.
    ``groups`` (n,) are by default the labels; each number from 0 to the largest must occur.
    """
    groups = labels if groups is None else groups
    backbone = backbone.eval()
    weights = {name: p.detach() for name, p in backbone.named_parameters()}
    buffers = dict(backbone.named_buffers())
    channels: int = backbone.channels  # type: ignore[assignment]
    weight, bias, device = head.weight.detach(), head.bias.detach(), head.weight.device

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        features = functional_call(backbone, (weights, buffers), (image[None],))
        return functional.cross_entropy(functional.linear(features, weight, bias), label[None])

    of_each = vmap(grad(loss), (None, 0, 0))
    means, squares, counts = [], [], np.bincount(groups)
    for c in progress(range(len(counts)), "gradients"):
        rows = np.flatnonzero(groups == c)
        total, square = torch.zeros((), device=device), 0.0
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            pixels, classes = (
                torch.as_tensor(x, device=device) for x in (images[part], labels[part])
            )
            named = of_each(weights, to_input(pixels, channels), classes)
            flat = torch.cat([named[name].flatten(1) for name in weights], 1)
            total, square = total + flat.sum(0), square + float(flat.square().sum())
        means.append((total / len(rows)).cpu().numpy())
        squares.append(square / len(rows))
    return Gradients(np.stack(means), np.array(squares), counts)


def products(targets: list[Floats], source: Gradients) -> list[Products]:
    """The products for each target gradient (P,); those among source classes are computed once."""
    means = source.means.astype(np.float64)
    gram = means @ means.T
    return [Products(float(f @ f), means @ f, gram, source.squares, source.counts) for f in targets]


def measures(p: Products, kept: NDArray[np.int64]) -> dict[str, float]:
    """Distances in gradients between the source images of the classes ``kept`` and the target.

    - ``delta2``: mean of |grad F - grad h|^2 over the images: the forecast;
    - ``worst_class``: the largest class mean of the same, closer to the maximum in equation (4);
    - ``class_means``: mean of |grad F - g_c|^2, without the variance inside the classes;
    - ``set_mean``: |grad F - mean grad h|^2, without any variance;
    - ``cosine`` of grad F and the mean grad h.
    """
    share = p.counts[kept] / p.counts[kept].sum()
    linear = p.target - 2 * p.across[kept]
    of_images = linear + p.squares[kept]
    inner, square = share @ p.across[kept], share @ p.source[np.ix_(kept, kept)] @ share
    return {
        "delta2": float(share @ of_images),
        "worst_class": float(of_images.max()),
        "class_means": float(share @ (linear + np.diag(p.source)[kept])),
        "set_mean": float(p.target - 2 * inner + square),
        "cosine": float(inner / np.sqrt(p.target * square)),
    }
