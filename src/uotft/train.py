"""The training loop: network + streams + objective -> trained network.

One loop serves pre-training (the target stream is the source set, objective ``plain``) and
fine-tuning. The learning rate drops tenfold at 60 % and 80 % of the steps and the heads learn
``head_lr_factor`` times faster, as in section 4.1 of Liu et al. (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from uotft.config import Recipe
from uotft.images import Stream, to_input
from uotft.network import Network
from uotft.objectives import TARGET, Routes, Terms

Log = Callable[[int, dict[str, float]], None]


def fit(
    network: Network,
    streams: dict[str, Stream],
    objective: Terms,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    routes: Routes = TARGET,
    log: Log = lambda step, numbers: None,
    evaluate: Callable[[], dict[str, float]] = dict,
    progress: Callable[..., Iterable[int]] = lambda steps, label: steps,
) -> Network:
    """Train ``network`` in place on ``streams``: "target" first, then the other parts of a batch.

    ``routes`` says which head sees which part, and names what ``objective`` is given.
    """
    rates = {
        network.backbone: recipe.learning_rate,
        network.heads: recipe.learning_rate * recipe.head_lr_factor,
    }
    optimizer = torch.optim.SGD(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in rates.items()],
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    drops = [round(share * recipe.steps) for share in recipe.drops]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    model, optimizer = accelerator.prepare(network, optimizer)

    for step in progress(range(recipe.steps), "training"):
        # ---- evaluate: on the validation part, before this step
        if recipe.eval_every and step % recipe.eval_every == 0:
            log(step, evaluate())

        # ---- batch: target rows first, then those of the other parts, in one tensor
        model.train()
        batches = {name: stream[step] for name, stream in streams.items()}
        images = torch.cat([batch.images for batch in batches.values()])

        # ---- step: one forward pass, one backward pass
        sizes = {name: len(batch.images) for name, batch in batches.items()}
        outputs = model(images, sizes, routes)
        terms = objective(outputs, {name: batch.labels for name, batch in batches.items()})
        loss = torch.stack([weight * term for term, weight in terms.values()]).sum()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

        # ---- log: the losses are means over all processes
        if step % recipe.log_every == 0:
            values = accelerator.reduce(
                torch.stack([t.detach() for t, _ in terms.values()]), "mean"
            )
            numbers = {f"loss/{k}": float(v) for k, v in zip(terms, values.tolist(), strict=True)}
            log(step, {**numbers, "learning_rate": optimizer.param_groups[0]["lr"]})
        schedule.step()

    log(recipe.steps, evaluate())
    return network


@torch.no_grad()
def reestimate_norm(
    network: Network, images: NDArray[np.uint8], *, largest_batch: int = 512
) -> None:
    """Norm statistics anew, from the target's labelled images (n, H, W) alone, in place.

    One pass, undistorted as test images are; a plain average over (nearly) equal batches. Every
    process does the same. The statistics of training are an exponential average over distorted
    images and over weights that still moved; these are of the final weights.
    """
    device = network.head("target").weight.device
    pixels = torch.as_tensor(images, device=device)
    batches = pixels.tensor_split(-(-len(images) // largest_batch))
    update_bn([to_input(batch) for batch in batches], network)


def fit_head(
    network: Network,
    stream: Stream,
    recipe: Recipe,
    steps: int,
    accelerator: Accelerator,
    *,
    log: Log = lambda step, numbers: None,
    progress: Callable[..., Iterable[int]] = lambda steps, label: steps,
) -> None:
    """Train the target head alone, on the target alone, after the last step of ``recipe``.

    The backbone is frozen and in evaluation mode; the head starts from where it is and keeps its
    own starting rate, which does not drop.
    """
    rate = recipe.learning_rate * recipe.head_lr_factor
    head = network.head("target")
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    model, optimizer = accelerator.prepare(head, optimizer)
    backbone = network.backbone.eval()
    for step in progress(range(recipe.steps, recipe.steps + steps), "training the head"):
        batch = stream[step]
        with torch.no_grad():
            features = backbone(batch.images)
        loss = functional.cross_entropy(model(features), batch.labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if step % recipe.log_every == 0:
            value = accelerator.reduce(loss.detach(), "mean")
            log(step, {"loss/target": float(value), "learning_rate": rate})
