"""Seeds, the device, and the one Accelerator of a process."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from uotft.errors import UserError


def start(seed: int, cpu_threads: int, precision: str = "no") -> Accelerator:
    """Seed every generator alike on all processes; GPUs if there are any, else the CPU.

    ``cpu_threads`` of 0 leaves the choice to torch (docs/decisions/0004-threads.md).
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("recipe.precision: got 'fp16', which needs a GPU; bf16 runs anywhere")
    set_seed(seed)
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
