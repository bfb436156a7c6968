"""The training loop: network + streams + objective -> trained network.

One loop serves pre-training (the target stream is the source set, objective ``plain``) and
fine-tuning. The learning rate drops tenfold at 60 % and 80 % of the steps and the heads learn
``head_lr_factor`` times faster, as in section 4.1 of Liu et al. (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from math import cos, pi
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from uotft.core.errors import Diverged, Interrupted
from uotft.core.records import Pixels
from uotft.core.settings import Recipe
from uotft.models.inputs import ahead, to_input
from uotft.models.network import TARGET, Network, Routes
from uotft.training.objectives import Terms
from uotft.training.runtime import agreed
from uotft.training.state import Keeper, State
from uotft.training.streams import Stream

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
    evaluate: Callable[[Network], dict[str, float]] = lambda network: {},
    progress: Callable[..., Iterable[int]] = lambda steps, label: steps,
    keeper: Keeper | None = None,
    stop: Callable[[], bool] = lambda: False,
    more: bool = False,
) -> Network:
    """Train ``network`` in place on ``streams``: "target" first, then the other parts of a batch.

    ``routes`` says which head sees which part, and names what ``objective`` is given. Goes on from
    the checkpoint of ``keeper``, if it has one. When ``stop`` says so, the step is finished, saved,
    and the loop left by ``Interrupted``. With ``more`` to do after the last step, the state then is
    saved, too: it is what an interruption of that goes on with. Returns the network to keep: with
    ``recipe.ema`` the running mean, else ``network``.
    """
    if not recipe.channels_last:
        network.to(memory_format=torch.contiguous_format)
    rates = {
        network.backbone: recipe.learning_rate,
        network.heads: recipe.learning_rate * recipe.head_lr_factor,
    }
    sgd = _sgd(recipe, rates)
    ema = running_mean(network, recipe.ema, accelerator) if recipe.ema else None
    kept = network if ema is None else cast(Network, ema.module)
    model, optimizer = accelerator.prepare(network, sgd)
    if recipe.compile:
        model = torch.compile(model)

    # ---- resume: weights, optimiser and random states; streams and rates follow from the step
    state = State(network, sgd, ema, accelerator)
    start, stopping = (keeper.resume(state) if keeper else 0), False

    batches_of = ahead(
        lambda index: {name: stream[index] for name, stream in streams.items()},
        range(start * recipe.accumulate, recipe.steps * recipe.accumulate),
    )

    def validated(step: int) -> dict[str, float]:
        """``evaluate``, which may take long: where it is told to stop, the state is saved first."""
        try:
            return evaluate(kept)
        except Interrupted:
            if keeper and step > start:
                keeper.save(step, state)
            raise

    for step in progress(range(start, recipe.steps), "training"):
        # ---- checkpoint: the state before this step
        due = recipe.checkpoint_every and step % recipe.checkpoint_every == 0
        if keeper and step > start and (stopping or due):
            keeper.save(step, state)
        if stopping:
            raise Interrupted(f"training was interrupted before step {step}")

        # ---- evaluate: on the validation part, before this step
        if recipe.eval_every and step % recipe.eval_every == 0:
            log(step, validated(step))

        model.train()
        for group, rate in zip(sgd.param_groups, rates.values(), strict=True):
            group["lr"] = learning_rate(recipe, rate, step)
        optimizer.zero_grad()
        losses, last = [], (step + 1) * recipe.accumulate - 1
        for index in range(step * recipe.accumulate, last + 1):
            # ---- batch: target rows first, then those of the other parts, in one tensor
            batches = next(batches_of)
            images = torch.cat([batch.images for batch in batches.values()])

            # ---- step: one forward pass, one backward pass; processes share the last sum
            with nullcontext() if index == last else accelerator.no_sync(model):
                sizes = {name: len(batch.images) for name, batch in batches.items()}
                outputs = model(images, sizes, routes)
                terms = objective(outputs, {name: batch.labels for name, batch in batches.items()})
                loss = torch.stack([weight * term for term, weight in terms.values()]).sum()
                losses.append(torch.stack([t.detach() for t, _ in terms.values()]))
                flags = _flags(stop(), losses[-1], accelerator)
                accelerator.backward(loss / recipe.accumulate)
            # read while a GPU has the backward pass to do, and before the optimiser steps
            stopping |= _agree(flags(), [*terms], streams, index, step)
        optimizer.step()
        if ema is not None:
            ema.update_parameters(network)

        # ---- log: the losses are means over all processes
        if step % recipe.log_every == 0:
            values = accelerator.reduce(torch.stack(losses).mean(0), "mean")
            numbers = {f"loss/{k}": float(v) for k, v in zip(terms, values.tolist(), strict=True)}
            log(step, {**numbers, "learning_rate": sgd.param_groups[0]["lr"]})

    log(recipe.steps, validated(recipe.steps))
    if keeper and more and recipe.steps > start:
        keeper.save(recipe.steps, state)
    return kept


def learning_rate(recipe: Recipe, rate: float, step: int) -> float:
    """The rate at ``step``: a linear warm-up to ``rate``, then drops or half a cosine."""
    if step < recipe.warmup:
        return rate * (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        return rate * (1 + cos(pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup))) / 2
    for share in recipe.drops:
        rate *= 0.1 if step >= round(share * recipe.steps) else 1
    return rate


def _sgd(recipe: Recipe, rates: dict[nn.Module, float]) -> torch.optim.SGD:
    """Nesterov momentum on each part at its own rate."""
    return torch.optim.SGD(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in rates.items()],
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )


def running_mean(network: Network, decay: float, accelerator: Accelerator) -> AveragedModel:
    """mean <- decay * mean + (1 - decay) * weights after each step; batch norm's buffers as is."""
    mean = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, accelerator.device, multi_avg_fn=mean)


def _flags(stop: bool, losses: Tensor, accelerator: Accelerator) -> Callable[[], list[float]]:
    """[how many processes want to stop, how many have each loss not finite], when it is called.

    The numbers set out for the host at once, and the call waits for them alone: whatever a GPU was
    given meanwhile goes on, so that it never idles for want of the next kernel.
    """
    wish = losses.new_full((1,), stop)  # filled there: a copy from the host would wait
    sums = accelerator.reduce(torch.cat([wish, (~losses.isfinite()).float()]), "sum")
    host = sums.to("cpu", non_blocking=True)  # pinned, so the copy does not wait either
    there = torch.cuda.Event() if sums.is_cuda else None  # type: ignore[no-untyped-call]
    if there:
        there.record()

    def read() -> list[float]:
        if there:
            there.synchronize()
        numbers: list[float] = host.tolist()
        return numbers

    return read


def _agree(
    flags: list[float], names: list[str], streams: dict[str, Stream], index: int, step: int
) -> bool:
    """Whether any process wants to stop; all raise ``Diverged`` if one has a loss not finite."""
    stopping, *bad = flags
    if any(bad):
        terms = ", ".join(name for name, count in zip(names, bad, strict=True) if count)
        rows = "; ".join(f"{k} rows {s.origin[s.rows(index)].tolist()}" for k, s in streams.items())
        raise Diverged(
            f"step {step}: the loss {terms} is not finite, on the batch with {rows}; "
            "lower learning_rate in params.yaml, or look at these images"
        )
    return bool(stopping)


@torch.no_grad()
def reestimate_norm(network: Network, images: Pixels, *, largest_batch: int = 512) -> None:
    """Norm statistics anew, from the target's labelled images alone, in place.

    One pass, undistorted as test images are; a plain average over (nearly) equal batches. Every
    process does the same. The statistics of training are an exponential average over distorted
    images and over weights that still moved; these are of the final weights.
    """
    device = network.head("target").weight.device
    batches = np.array_split(np.arange(len(images)), -(-len(images) // largest_batch))
    pixels = (torch.as_tensor(images[rows], device=device) for rows in batches)
    update_bn((to_input(batch, network.channels) for batch in pixels), network)


def fit_head(
    network: Network,
    stream: Stream,
    recipe: Recipe,
    steps: int,
    accelerator: Accelerator,
    *,
    log: Log = lambda step, numbers: None,
    progress: Callable[..., Iterable[int]] = lambda steps, label: steps,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train the target head alone, on the target alone, after the last step of ``recipe``.

    The backbone is frozen and in evaluation mode; the head starts from where it is and keeps its
    own starting rate, which does not drop.
    """
    rate = recipe.learning_rate * recipe.head_lr_factor
    head = network.head("target")
    model, optimizer = accelerator.prepare(head, _sgd(recipe, {head: rate}))
    backbone = network.backbone.eval()
    for step in progress(range(recipe.steps, recipe.steps + steps), "training the head"):
        if agreed(stop, accelerator):
            raise Interrupted(f"training the head was interrupted before step {step}")
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
