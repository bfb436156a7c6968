"""The whole state of a training <-> tensors on disk, one file a process, so that it can go on.

What is a function of the step is not kept: streams and learning rates. The rest is: weights with
the buffers of batch norm (each process has its own until the next forward pass), the optimiser,
the running mean, the scaler of fp16, and the random states of this process.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from uotft.core import storage
from uotft.core.errors import Diverged, UserError
from uotft.training import checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What changes while a training runs."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    accelerator: Accelerator


@dataclass(frozen=True)
class Keeper:
    """Saves and restores one training in ``folder``; ``history`` is what it has logged.

    ``fingerprint`` says what the training is made of. On resume all of the history is logged again:
    the last points may not have been sent before the interruption.
    """

    folder: Path
    fingerprint: dict[str, Any]
    history: dict[int, dict[str, float]]
    log: Callable[[int, dict[str, float]], None]
    processes: list[int] = field(default_factory=list)  # their numbers, one after the other

    def resume(self, state: State) -> int:
        """Restore the newest whole checkpoint; returns the step to go on with, 0 without one.

        Of another number of processes, all get the state of the first one.
        """
        main, world = state.accelerator.is_main_process, state.accelerator.num_processes
        found = checkpoints.newest(self.folder, logger.warning if main else lambda line: None)
        mine = torch.tensor([found[1]["step"] if found else 0], device=state.accelerator.device)
        steps = state.accelerator.gather(mine).unique().tolist()
        if len(steps) > 1:
            raise UserError(
                f"{self.folder}: its newest checkpoint is that of step {steps[0]} for one process "
                f"and of step {steps[-1]} for another: all machines must share this folder"
            )
        if main:
            checkpoints.tidy(self.folder, found[0] if found else None)
        self.processes[:] = found[1]["processes"] if found else [world]
        if found is None:
            return 0
        slot, facts = found
        same = self.processes[-1] == world
        if main and not same:
            logger.warning(
                f"{slot} is of {self.processes[-1]} processes, and {world} go on with it: the "
                f"images come in the same order{_norm(state.network)}"
            )
        restore(_file(slot, state.accelerator.process_index if same else 0), state)
        self.processes.extend([] if same else [world])
        for point in facts["history"]:
            step = point.pop("step")
            self.history[step] = point
            self.log(step, point)
        start: int = facts["step"]
        return start

    def save(self, step: int, state: State) -> None:
        """Write the state before ``step``; each process its own file, the main one declares it."""
        if not all(bool(p.isfinite().all()) for p in state.network.parameters()):
            raise Diverged(
                f"the weights before step {step} are not finite; lower the learning rate"
            )
        mine = state.accelerator.process_index
        write(_file(checkpoints.slot(self.folder, step), mine), state)
        state.accelerator.wait_for_everyone()
        if state.accelerator.is_main_process:
            history = [{"step": at, **numbers} for at, numbers in self.history.items()]
            facts = {"processes": self.processes, "belongs": self.fingerprint}
            checkpoints.complete(self.folder, step, {**facts, "history": history})


def write(path: Path, state: State) -> None:
    """All of this process's state in one file of safetensors."""
    tensors = {f"model.{name}": t for name, t in state.network.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": t for name, t in state.ema.state_dict().items()}
    for row, parameter in enumerate(_parameters(state.optimizer)):
        kept = state.optimizer.state[parameter].items()
        tensors |= {f"optimizer.{row}.{k}": v for k, v in kept if isinstance(v, Tensor)}
    tensors["random.torch"] = torch.get_rng_state()
    if state.accelerator.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(state.accelerator.device)
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    words = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "scaler": state.accelerator.scaler and state.accelerator.scaler.state_dict(),
    }
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    storage.write_bytes(path, save(content, {"words": json.dumps(words)}))


def restore(path: Path, state: State) -> None:
    """Put back what ``write`` wrote."""
    try:
        with safe_open(path, "pt") as file:
            words = json.loads(file.metadata()["words"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint ({error}); delete {path.parent}") from error
    state.network.load_state_dict(_below("model.", tensors))
    if state.ema is not None:
        state.ema.load_state_dict(_below("ema.", tensors))
    for row, parameter in enumerate(_parameters(state.optimizer)):
        kept = _below(f"optimizer.{row}.", tensors)
        state.optimizer.state[parameter] = {k: _like(parameter, v) for k, v in kept.items()}
    torch.set_rng_state(tensors["random.torch"])
    if state.accelerator.device.type == "cuda" and "random.cuda" in tensors:  # saved on a GPU too
        torch.cuda.set_rng_state(tensors["random.cuda"], state.accelerator.device)
    version, keys, gauss = words["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(words["numpy"]))  # noqa: NPY002
    if state.accelerator.scaler:
        state.accelerator.scaler.load_state_dict(words["scaler"])


def _file(slot: Path, rank: int) -> Path:
    return slot / f"rank-{rank}.safetensors"


def _norm(network: nn.Module) -> str:
    """What another number of processes means for a network: each takes its share's statistics."""
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        return ""
    return ", but with batch norm the weights will be those of neither number without a stop"


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """In the parameter's memory layout, as the optimiser had it: files know no strides."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
