"""One CPU thread or all of them, with the machine to oneself and beside one busy process.

python benchmarks/threads.py      # milliseconds a step of pre-training, median of 5
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator

from uotft.core.context import Context
from uotft.core.settings import Params
from uotft.models import model_io
from uotft.pipeline.workspace import Workspace
from uotft.training.loop import Task, fit
from uotft.training.objectives import plain
from uotft.training.streams import Sampling, Stream


def step_ms(params: Params, threads: int, steps: int) -> float:
    """The median over 5 repetitions of the time of one step, in milliseconds."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2000, 28, 28), dtype=np.uint8)
    network = model_io.build(params.backbone, 450)
    settings = params.pretrain
    stream = Stream(
        images,
        rng.integers(0, 450, 2000),
        Sampling("target", settings.batch_size, 0, settings.augment),
    )
    recipe = settings.recipe.model_copy(update={"steps": steps, "eval_every": 0})
    times = []
    for _ in range(6):
        start = time.perf_counter()
        terms = lambda outputs, labels: plain.terms(outputs, labels, 0)  # noqa: E731
        fit(Task(network, {"target": stream}, terms, recipe), Context(Accelerator(cpu=True)))
        times.append(1000 * (time.perf_counter() - start) / steps)
    return statistics.median(times[1:])  # the first one imports and warms up


def main() -> None:
    """Print the four figures and their ratios to one thread alone."""
    params, cores = Workspace.find().params, len(os.sched_getaffinity(0))
    first = None
    for busy in (False, True):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        for threads in (1, cores):
            value = step_ms(params, threads, steps=3 if busy and threads > 1 else 50)
            first = first or value
            where = "beside a busy process" if busy else "alone"
            print(f"{threads} of {cores} threads {where}: {value:.1f} ms, x{value / first:.2f}")
        if neighbour:
            neighbour.kill()


if __name__ == "__main__":
    main()
