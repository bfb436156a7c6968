"""The state of a training <-> tensors on disk, one file per process, so that it can resume.

A file holds the weights and batch-norm buffers (each process has its own buffers until the next
forward pass), the optimiser, the running mean, the fp16 scaler, and this process's random states.
Streams and learning rates are functions of the step, so they are not saved.
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

OTHERS = "words"  # metadata key of the states that are no tensors; old checkpoints have this name


@dataclass(frozen=True)
class State:
    """Everything that changes while a training runs."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    accelerator: Accelerator


@dataclass(frozen=True)
class Keeper:
    """Saves and restores one training in ``folder``; ``history`` is {step: numbers logged}.

    ``fingerprint`` identifies the training's inputs. On resume the whole history is logged again,
    because the last points may not have been sent before the interruption.
    """

    folder: Path
    fingerprint: dict[str, Any]
    history: dict[int, dict[str, float]]
    log: Callable[[int, dict[str, float]], None]
    processes: list[int] = field(default_factory=list)  # numbers of processes, in order of use

    def resume(self, state: State) -> int:
        """Restore the newest complete checkpoint; returns the step to resume at, 0 without one.

        If the number of processes has changed, all processes get the state of rank 0.
        """
        main, world = state.accelerator.is_main_process, state.accelerator.num_processes
        found = checkpoints.newest(self.folder, logger.warning if main else lambda line: None)
        mine = torch.tensor([found[1]["step"] if found else 0], device=state.accelerator.device)
        steps = state.accelerator.gather(mine).unique().tolist()
        if len(steps) > 1:
            raise UserError(
                f"{self.folder}: one process finds a newest checkpoint of step {steps[0]}, another "
                f"one of step {steps[-1]}: all machines must share this folder"
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
                f"{slot} was saved by {self.processes[-1]} processes, and {world} resume from it: "
                f"the order of the images stays the same{_norm(state.network)}"
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
        """Write the state before ``step``: one file per process, then rank 0 marks it complete."""
        if not all(bool(p.isfinite().all()) for p in state.network.parameters()):
            raise Diverged(
                f"the weights before step {step} are not finite; lower learning_rate in params.yaml"
            )
        mine = state.accelerator.process_index
        write(_file(checkpoints.slot(self.folder, step), mine), state)
        state.accelerator.wait_for_everyone()
        if state.accelerator.is_main_process:
            history = [{"step": at, **numbers} for at, numbers in self.history.items()]
            facts = {"processes": self.processes, "belongs": self.fingerprint}
            checkpoints.complete(self.folder, step, {**facts, "history": history})


def write(path: Path, state: State) -> None:
    """Write this process's state to one safetensors file."""
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
    others = {  # states that are not tensors
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "scaler": state.accelerator.scaler and state.accelerator.scaler.state_dict(),
    }
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    storage.write_bytes(path, save(content, {OTHERS: json.dumps(others)}))


def restore(path: Path, state: State) -> None:
    """Load a file of ``write`` into ``state``; a damaged one is a ``UserError``."""
    try:
        with safe_open(path, "pt") as file:
            others = json.loads(file.metadata()[OTHERS])
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
    version, keys, gauss = others["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(others["numpy"]))  # noqa: NPY002
    if state.accelerator.scaler:
        state.accelerator.scaler.load_state_dict(others["scaler"])


def _file(slot: Path, rank: int) -> Path:
    return slot / f"rank-{rank}.safetensors"


def _norm(network: nn.Module) -> str:
    """A warning for networks with batch norm, whose statistics are those of a process's share.

    Frozen ones are the same on all processes.
    """
    if getattr(network, "norms_are_frozen", False):
        return ""
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        return ""
    return ", but with batch norm the weights will equal those of no uninterrupted training"


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` in the parameter's memory layout, as before saving; files have no strides."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
