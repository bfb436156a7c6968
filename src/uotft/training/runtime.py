"""Seeds, the device, and the one Accelerator of a process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed

from uotft.core import environment
from uotft.core.errors import UserError

CUT = ("DEEPSPEED", "FSDP", "MEGATRON_LM")  # ways to cut a network in parts

#: Seconds after which Python's lock changes hands, 0.005 by default: the thread that makes the next
#: batch would hold up the training step for that long (docs/benchmarks.md).
HAND_OVER = 0.0002


def agreed(stop: Callable[[], bool], accelerator: Accelerator) -> bool:
    """Whether any process is asked to stop; all must ask, and all get the same answer."""
    asked = torch.tensor(float(stop()), device=accelerator.device)
    return bool(accelerator.reduce(asked, "sum").item())


def start(seed: int, cpu_threads: int, precision: str = "no") -> Accelerator:
    """Seed every generator alike on all processes; GPUs if there are any, else the CPU.

    ``cpu_threads`` of 0 leaves the choice to torch (docs/decisions/0004-threads.md). Of what
    `accelerate config` may say, machines and processes count; precision, accumulation and
    compilation are those of params.yaml.
    """
    if cut := [way for way in CUT if environment.accelerate_uses(way)]:
        raise UserError(
            f"accelerate config: got {cut[0]}, but every process here holds the whole network: "
            "choose several GPUs without it, or start uotft train --num-processes N"
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
