"""Seeds, the device, and the one Accelerator of a process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, set_seed

from uotft.core import environment
from uotft.core.errors import UserError

CUT = ("DEEPSPEED", "FSDP", "MEGATRON_LM")  # ways to split a network over processes: unsupported

#: Python's thread switch interval in seconds. With the default, 0.005, the thread that prepares the
#: next batch holds up the training step for that long (docs/benchmarks.md).
HAND_OVER = 0.0002


def agreed(stop: Callable[[], bool], accelerator: Accelerator) -> bool:
    """Whether any process is asked to stop; all must call this, and all get the same answer."""
    asked = torch.tensor(float(stop()), device=accelerator.device)
    return bool(accelerator.reduce(asked, "sum").item())


def start(seed: int, cpu_threads: int, precision: str = "no") -> Accelerator:
    """Seed all random generators, alike on all processes, and set up Accelerate: on GPUs, else CPU.

    With ``cpu_threads`` 0 torch chooses the number (docs/decisions/0004-threads.md). From
    `accelerate config` only the machines and processes are used: precision, accumulation and
    compilation come from params.yaml.
    """
    if cut := [way for way in CUT if environment.accelerate_uses(way)]:
        raise UserError(
            f"accelerate config: got {cut[0]}, but every process here holds the whole network: "
            f"run `accelerate config` without {cut[0]}, or start uotft train --num-processes N"
        )
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("recipe.precision: got 'fp16', which needs a GPU; bf16 runs anywhere")
    sys.setswitchinterval(HAND_OVER)
    set_seed(seed)
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=precision,
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def end(accelerator: Accelerator) -> None:
    """Leave the process group, and forget the settings, so that `start` can take others.

    Accelerate keeps them for the whole process, and refuses a second precision.
    """
    accelerator.end_training()
    accelerator.free_memory()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
