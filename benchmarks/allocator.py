"""Work on the CPU with glibc's own settings, and with those that uotft makes.

core/environment.py sets ALLOCATOR for workers, and calls mallopt for a process that predicts
(``memory_kept``). Plain and set take turns in processes of their own, one after the other, so that
what else runs on the machine disturbs both. A process trains some steps by the training loop, or
predicts images in batches as the stage evaluate does, with random weights and images, on one
thread. Its memory is the largest that it had, and the faults are pages that the kernel handed out
for a step or batch.

python benchmarks/allocator.py                 # about five minutes
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import numpy as np

from uotft.core import environment

#: {network: (its section of params.yaml, pixels a side, colours, batch, steps)}
NETWORKS = {
    "EfficientNet-Lite0, 96 px": ({"name": "efficientnet_lite0"}, 96, 3, 64, 5),
    "small ResNet, 28 px": ({"name": "small_resnet"}, 28, 1, 64, 40),
}
WARM_UP = 2  # steps that are not measured
BATCH, BATCHES = 512, 3  # images that are predicted at a time; how often


def measured(name: str) -> dict[str, float]:
    """Steps per second, page faults per step and the largest memory in MiB, in this process."""
    from uotft.core.context import Context
    from uotft.core.settings import Augment, Recipe
    from uotft.models import model_io
    from uotft.training import runtime
    from uotft.training.loop import Task, fit
    from uotft.training.objectives import plain
    from uotft.training.streams import Sampling, Stream

    section, side, colours, batch, steps = NETWORKS[name]
    accelerator, rng = runtime.start(0, 1), np.random.default_rng(0)
    shape = (4 * batch, side, side, colours) if colours > 1 else (4 * batch, side, side)
    images = rng.integers(0, 255, shape, np.uint8)
    sampling = Sampling("target", batch, 0, Augment(), channels=colours)
    stream = Stream(images, np.arange(4 * batch) % 100, sampling)
    recipe = Recipe(steps=WARM_UP + steps, learning_rate=0.01, eval_every=0)
    began: list[tuple[float, int]] = []

    def progress(items: Iterable[int], label: str) -> Iterator[int]:
        for step in items:
            if step == WARM_UP:
                began.append((time.perf_counter(), faults()))
            yield step
        began.append((time.perf_counter(), faults()))

    terms = lambda outputs, labels: plain.terms(outputs, labels, 0)  # noqa: E731
    task = Task(model_io.build(section, 100), {"target": stream}, terms, recipe)
    fit(task, Context(accelerator, progress=progress))
    (start, before), (end, after) = began
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "steps": steps / (end - start),
        "faults": (after - before) / steps,
        "memory": largest,
    }


def predicted(name: str, *, keep: bool) -> dict[str, float]:
    """The same of batches that are predicted."""
    from uotft.core.context import Context
    from uotft.models import model_io
    from uotft.training import evaluation, runtime

    section, side, colours, _, _ = NETWORKS[name]
    accelerator, rng = runtime.start(0, 1), np.random.default_rng(0)
    shape = (BATCH, side, side, colours) if colours > 1 else (BATCH, side, side)
    images = rng.integers(0, 255, shape, np.uint8)
    network, context = model_io.build(section, 100), Context(accelerator)
    with environment.memory_kept() if keep else nullcontext():
        evaluation.answers(network, images, context, batch_size=BATCH)  # to warm up
        start, before = time.perf_counter(), faults()
        for _ in range(BATCHES):
            evaluation.answers(network, images, context, batch_size=BATCH)
        end, after = time.perf_counter(), faults()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"steps": BATCHES / (end - start), "faults": (after - before) / BATCHES}
    return found | {"memory": largest}


def faults() -> int:
    """Pages that the kernel has handed to this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def in_a_process(name: str, work: str, set_: bool) -> dict[str, float]:
    """The same in a process of its own."""
    settings = environment.ALLOCATOR if set_ and work == "train" else {}
    left = {k: v for k, v in os.environ.items() if k not in environment.ALLOCATOR}
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, "--work", work, *["--keep"] * set_],
        env=left | settings,
        capture_output=True,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a table: medians, and the median of the pairs' ratios."""
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=[*NETWORKS], help="measure in this process, and no other")
    parser.add_argument("--work", choices=["train", "predict"])
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.only:
        name, work = options.only, options.work
        found = predicted(name, keep=options.keep) if work == "predict" else measured(name)
        print(json.dumps(found))
        return
    print("| work | steps/s | set | ratio of pairs | faults a step | set | MiB | set |")
    print("|---|---|---|---|---|---|---|---|")
    for work in [options.work] if options.work else ["train", "predict"]:
        for name in NETWORKS:
            pairs = []
            for turn in range(options.repetitions):
                order = (False, True) if turn % 2 == 0 else (True, False)
                found = [in_a_process(name, work, set_) for set_ in order]
                pairs.append(found if turn % 2 == 0 else found[::-1])
            print("|", " | ".join([f"{work}, {name}", *row(pairs)]), "|", flush=True)


def row(pairs: list[list[dict[str, float]]]) -> list[str]:
    """The cells of one line."""
    ratios = sorted(there["steps"] / plain["steps"] for plain, there in pairs)
    cells = [
        f"{statistics.median(one[side][key] for one in pairs):,.{digits}f}"
        for key, digits in (("steps", 2), ("faults", 0), ("memory", 0))
        for side in (0, 1)
    ]
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return [*cells[:2], ratio, *cells[2:]]


if __name__ == "__main__":
    main()
