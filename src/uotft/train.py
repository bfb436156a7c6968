"""The training loop: network + streams + objective -> trained network.

One loop serves pre-training (the target stream is the source set, objective ``plain``) and
fine-tuning. The learning rate drops tenfold at 60 % and 80 % of the steps and the heads learn
``head_lr_factor`` times faster, as in section 4.1 of Liu et al. (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from uotft.config import Recipe
from uotft.images import Stream
from uotft.network import Network

Log = Callable[[int, dict[str, float]], None]
Tensors = dict[str, Tensor]
Terms = Callable[[Tensors, Tensors], dict[str, tuple[Tensor, float]]]


def fit(
    network: Network,
    streams: dict[str, Stream],
    objective: Terms,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    log: Log = lambda step, numbers: None,
    evaluate: Callable[[], dict[str, float]] = dict,
    progress: Callable[..., Iterable[int]] = lambda steps, label: steps,
) -> Network:
    """Train ``network`` in place on ``streams`` ("target" and, if any, "source")."""
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

        # ---- batch: target rows first, then source rows, in one tensor
        model.train()
        batches = {name: stream[step] for name, stream in streams.items()}
        images = torch.cat([batch.images for batch in batches.values()])

        # ---- step: one forward pass, one backward pass
        outputs = model(images, len(batches["target"].images))
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
