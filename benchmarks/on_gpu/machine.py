"""What the figures were measured on: the device, the processor, the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from on_gpu.harness import Bench

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "faiss-cpu", "faiss-gpu", "pot")


def machine(bench: Bench) -> None:
    """Name the device; without one this part fails, and so says why the others do."""
    import torch

    facts: dict[str, object] = {"python": platform.python_version(), "device": "CPU"}
    facts |= {"cores": len(os.sched_getaffinity(0)), "processor": _processor()}
    facts |= {name: version for name in PACKAGES if (version := _version(name))}
    facts["cuda"], facts["commit"] = (
        torch.version.cuda,
        _said("git", "rev-parse", "--short", "HEAD"),
    )
    if bench.is_gpu:
        found = torch.cuda.get_device_properties(bench.device)
        facts["device"], facts["memory_gib"] = found.name, round(found.total_memory / 2**30, 1)
        facts["cudnn"] = torch.backends.cudnn.version()
        query = ("--query-gpu=driver_version", "--format=csv,noheader")
        facts["driver"] = _said("nvidia-smi", *query).split("\n")[0]
        x = torch.ones(8, device=bench.device)
        bench.check("the device computes", float((x + x).sum()) == 16, str(found.name))
        bench.check("TF32 is off for products", not torch.backends.cuda.matmul.allow_tf32, "off")
    bench.send({"kind": "facts", **facts})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
