"""Seeds, the device, and the one Accelerator of a process."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed


def start(seed: int) -> Accelerator:
    """Seed every generator alike on all processes; GPUs if there are any, else the CPU."""
    set_seed(seed)
    return Accelerator(cpu=not torch.cuda.is_available())
