"""The training loop: network + streams + objective -> trained network.

The same loop does pre-training (its target stream is the source set, its objective ``plain``) and
fine-tuning. By default the learning rate drops tenfold at 60 % and 80 % of the steps, and the heads
learn ``head_lr_factor`` times faster (Liu et al. 2022, section 4.1).

    uotft train --dataset digits --strategy uot
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uotft.core.context import Context
from uotft.core.errors import Diverged, Interrupted
from uotft.core.settings import Recipe
from uotft.models.inputs import ahead, beside
from uotft.models.network import TARGET, Network, Routes
from uotft.training.objectives import Terms
from uotft.training.state import Keeper, State
from uotft.training.streams import Batch, Stream

Batches = dict[str, Batch]  # {part of the batch: images and labels of that part}
Validate = Callable[[Network], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """One training: ``network`` on ``streams``, by ``recipe``.

    ``streams`` are the parts of a batch, "target" first. ``routes`` is {output: (part, head)}, and
    ``terms`` turns those outputs into losses.
    """

    network: Network
    streams: dict[str, Stream]
    terms: Terms
    recipe: Recipe
    routes: Routes = field(default_factory=lambda: TARGET)


def fit(
    task: Task,
    context: Context,
    *,
    validate: Validate = lambda network: {},
    keeper: Keeper | None = None,
    more: bool = False,
    last: bool = True,
) -> Network:
    """Train the network of ``task`` in place; returns the network to keep.

    That is the running mean of the weights with ``recipe.ema``, else the network itself. Training
    resumes from the checkpoint of ``keeper``, if there is one. When ``context.stop`` is true, the
    loop finishes the step, saves a checkpoint and raises ``Interrupted``. With ``more``, work
    follows after the last step: the loop saves a checkpoint there, and validates with ``last``.
    """
    recipe, log = task.recipe, context.log
    update = _prepared(task, context)

    # ---- resume: weights, optimiser and random states; streams and rates follow from the step
    start, stopping = (keeper.resume(update.state) if keeper else 0), False
    many = recipe.accumulate
    batches = ahead(_maker(task, context), range(start * many, recipe.steps * many))

    def checkpoint(step: int) -> None:
        if keeper and step > start:
            keeper.save(step, update.state)

    def validated(step: int) -> dict[str, float]:
        try:
            return validate(update.kept)
        except Interrupted:  # validation may be long, so it stops on its own: save before leaving
            checkpoint(step)
            raise

    for step in context.progress(range(start, recipe.steps), "training"):
        # ---- checkpoint: the state before this step
        due = recipe.checkpoint_every and step % recipe.checkpoint_every == 0
        if stopping or due:
            checkpoint(step)
        if stopping:
            raise Interrupted(f"training was interrupted before step {step}")

        # ---- evaluate: on the validation images, before this step
        if recipe.eval_every and step % recipe.eval_every == 0:
            log(step, validated(step))

        # ---- step: forward, backward, and one update of the weights
        losses, asked = update(batches, step)
        stopping |= asked

        # ---- log: each loss is a mean over the accumulated batches and over all processes
        if step % recipe.log_every == 0:
            log(step, update.numbers(losses))

    if last:
        log(recipe.steps, validated(recipe.steps))
    if more:
        checkpoint(recipe.steps)
    return update.kept


def _maker(task: Task, context: Context) -> Callable[[int], Batches]:
    """What makes the batches of one index, in a thread beside the training."""
    return beside(
        lambda index: {name: stream[index] for name, stream in task.streams.items()},
        context.accelerator.device,
        lambda batches: [x for part in batches.values() for x in (part.images, part.labels)],
    )


class Losses(NamedTuple):
    """The losses of one batch: ``names``, and ``values`` (one per name) on the device."""

    names: list[str]
    values: Tensor


@dataclass(frozen=True)
class _Step:
    """One step: forward and backward passes of ``recipe.accumulate`` batches, then the optimiser.

    ``model`` and ``optimizer`` are Accelerate's wrappers of the network and the optimiser in
    ``state``; ``rates`` are the learning rates of its parameter groups before they drop.
    """

    task: Task
    context: Context
    model: Any
    optimizer: Any
    rates: list[float]
    state: State

    @property
    def kept(self) -> Network:
        """The network to keep: the running mean of the weights, if there is one."""
        ema = self.state.ema
        return self.task.network if ema is None else cast(Network, ema.module)

    def __call__(self, batches: Iterator[Batches], step: int) -> tuple[list[Losses], bool]:
        """Update the weights once.

        Returns the losses of each accumulated batch, and whether any process wants to stop.
        """
        recipe, accelerator = self.task.recipe, self.context.accelerator
        self.model.train()
        for group, rate in zip(self.state.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = learning_rate(recipe, rate, step)
        self.optimizer.zero_grad()
        losses, stopping, last = [], False, (step + 1) * recipe.accumulate - 1
        for index in range(step * recipe.accumulate, last + 1):
            # gradients add up locally; only the last batch's backward pass exchanges the sum
            with nullcontext() if index == last else accelerator.no_sync(self.model):
                terms = self._losses(next(batches))
                loss = torch.stack([weight * term for term, weight in terms.values()]).sum()
                values = torch.stack([term.detach() for term, _ in terms.values()])
                losses.append(Losses([*terms], values))
                flags = _flags(self.context.stop(), values, accelerator)
                accelerator.backward(loss / recipe.accumulate)
            # read while the GPU is busy with the backward pass, and before the optimiser steps
            stopping |= _agree(flags(), [*terms], self.task.streams, index, step)
        self.optimizer.step()
        if self.state.ema is not None:
            self.state.ema.update_parameters(self.task.network)
        return losses, stopping

    def numbers(self, losses: list[Losses]) -> dict[str, float]:
        """The numbers to log: each loss, averaged over batches and processes, and the rate."""
        own = torch.stack([batch.values for batch in losses]).mean(0)
        means = self.context.accelerator.reduce(own, "mean").tolist()
        rate = self.state.optimizer.param_groups[0]["lr"]
        named = {f"loss/{k}": float(mean) for k, mean in zip(losses[0].names, means, strict=True)}
        return {**named, "learning_rate": rate}

    def _losses(self, batch: Batches) -> dict[str, tuple[Tensor, float]]:
        """One forward pass over one tensor: the target rows, then those of the other parts."""
        images = torch.cat([part.images for part in batch.values()])
        sizes = {name: len(part.images) for name, part in batch.items()}
        outputs = self.model(images, sizes, self.task.routes)
        return self.task.terms(outputs, {name: part.labels for name, part in batch.items()})


def _prepared(task: Task, context: Context) -> _Step:
    """The step function of a training, with its optimiser and running mean."""
    recipe, network, accelerator = task.recipe, task.network, context.accelerator
    if not recipe.channels_last:
        network.to(memory_format=torch.contiguous_format)
    rates: dict[nn.Module, float] = {
        network.backbone: recipe.learning_rate,
        network.heads: recipe.learning_rate * recipe.head_lr_factor,
    }
    own = sgd(recipe, rates)
    ema = running_mean(network, recipe.ema, accelerator) if recipe.ema else None
    model, optimizer = accelerator.prepare(network, own)
    model = torch.compile(model) if recipe.compile else model
    state = State(network, own, ema, accelerator)
    return _Step(task, context, model, optimizer, [*rates.values()], state)


def learning_rate(recipe: Recipe, rate: float, step: int) -> float:
    """The rate at ``step``: linear warm-up to ``rate``, then tenfold drops or half a cosine."""
    if step < recipe.warmup:
        return rate * (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        return rate * (1 + cos(pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup))) / 2
    for share in recipe.drops:
        rate *= 0.1 if step >= round(share * recipe.steps) else 1
    return rate


def sgd(recipe: Recipe, rates: dict[nn.Module, float]) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov momentum; each module has its own rate."""
    return torch.optim.SGD(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in rates.items()],
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )


def running_mean(network: Network, decay: float, accelerator: Accelerator) -> AveragedModel:
    """mean <- decay * mean + (1 - decay) * weights after each step; buffers are copied as is.

    The mean starts as the weights after the first step.
    """
    mean = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, accelerator.device, multi_avg_fn=mean)


def _flags(stop: bool, losses: Tensor, accelerator: Accelerator) -> Callable[[], list[float]]:
    """A function that returns [number of processes that want to stop, number with a non-finite
    value of each loss].

    The copy to the host starts now; calling the function waits for that copy alone. Kernels queued
    in between keep running, so the GPU never idles.
    """
    wish = losses.new_full((1,), stop)  # filled on the device: a copy from the host would block
    sums = accelerator.reduce(torch.cat([wish, (~losses.isfinite()).float()]), "sum")
    host = sums.to("cpu", non_blocking=True)  # into pinned memory, so the copy does not block
    copied = torch.cuda.Event() if sums.is_cuda else None  # type: ignore[no-untyped-call]
    if copied:
        copied.record()

    def read() -> list[float]:
        if copied:
            copied.synchronize()
        numbers: list[float] = host.tolist()
        return numbers

    return read


def _agree(
    flags: list[float], names: list[str], streams: dict[str, Stream], index: int, step: int
) -> bool:
    """Whether any process wants to stop; all raise ``Diverged`` if one has a non-finite loss."""
    stopping, *bad = flags
    if any(bad):
        terms = ", ".join(name for name, count in zip(names, bad, strict=True) if count)
        rows = "; ".join(f"{k} rows {s.origin[s.rows(index)].tolist()}" for k, s in streams.items())
        raise Diverged(
            f"step {step}: the loss {terms} is not finite, on the batch with {rows}; "
            "lower learning_rate in params.yaml, or look at these images"
        )
    return bool(stopping)
