"""Optional work on the target alone after the last step: norm statistics, more head training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from uotft.core.context import Context
from uotft.core.errors import Interrupted
from uotft.core.records import Pixels
from uotft.models.inputs import to_input
from uotft.models.network import Network
from uotft.training.loop import Task, sgd
from uotft.training.runtime import agreed


@dataclass(frozen=True)
class Finish:
    """What to do after the last step; ``images`` are the target's labelled images, undistorted."""

    images: Pixels
    reestimate_norm: bool
    head_steps: int

    def __bool__(self) -> bool:
        return self.reestimate_norm or self.head_steps > 0

    def __call__(
        self, task: Task, context: Context, validate: Callable[[Network], dict[str, float]]
    ) -> None:
        """Change the task's network in place, and log one more validation."""
        if self.reestimate_norm:
            reestimate_norm(task.network, self.images)
        if self.head_steps:
            fit_head(task, self.head_steps, context)
        context.log(task.recipe.steps + self.head_steps, validate(task.network))


@torch.no_grad()
def reestimate_norm(network: Network, images: Pixels, *, largest_batch: int = 512) -> None:
    """Recompute the batch-norm statistics from the target's labelled images, in place.

    One pass over undistorted images, as test images are; a plain average over (nearly) equal
    batches. Only norm layers are in training mode, other than in torch's update_bn: dropout does
    not reach the statistics, and every process computes the same. Why: the statistics from
    training are an exponential average over distorted images and changing weights; these are those
    of the final weights.
    """
    device = network.head("target").weight.device
    batches = np.array_split(np.arange(len(images)), -(-len(images) // largest_batch))
    pixels = (torch.as_tensor(images[rows], device=device) for rows in batches)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta, was_training = [norm.momentum for norm in norms], network.training
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: a plain average
    for batch in pixels:
        network(to_input(batch, network.channels))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)


def fit_head(task: Task, steps: int, context: Context) -> None:
    """Train the target head alone, on target images alone, after the last step of the recipe.

    The backbone is frozen and in evaluation mode. The head continues from its weights, at its
    starting learning rate, which does not drop. Its batches follow those of the recipe.
    """
    recipe, accelerator, stream = task.recipe, context.accelerator, task.streams["target"]
    rate = recipe.learning_rate * recipe.head_lr_factor
    head = task.network.head("target")
    model, optimizer = accelerator.prepare(head, sgd(recipe, {head: rate}))
    backbone = task.network.backbone.eval()
    more = recipe.steps * (recipe.accumulate - 1)  # batches that the recipe read beyond one a step
    for step in context.progress(range(recipe.steps, recipe.steps + steps), "training the head"):
        if agreed(context.stop, accelerator):
            raise Interrupted(f"training of the head was interrupted before step {step}")
        batch = stream[more + step]
        with torch.no_grad():
            features = backbone(batch.images)
        loss = functional.cross_entropy(model(features), batch.labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if step % recipe.log_every == 0:
            value = accelerator.reduce(loss.detach(), "mean")
            context.log(step, {"loss/target": float(value), "learning_rate": rate})
