"""How long a training takes on this machine: measured with a network of random weights.

    speed = estimate.measure(ws.params.backbone, size=224, batch=128)
    print(estimate.about(estimate.seconds(speed, trained=6000 * 128, embedded=12_000)))

Nothing is downloaded: the time does not depend on the weights. A process of its own measures, so
that neither torch nor the memory of a GPU stays with the caller.

python -m uotft.runs.estimate reads the arguments of `measured` from standard input, as JSON.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from uotft.core import environment, signals
from uotft.core.errors import UserError
from uotft.core.progress import duration

TRAIN_S, FORWARD_S, DECODE_S = 3.0, 1.0, 0.5  # how long each speed is measured
FEW = 8  # images a step, at first: on a CPU more are not faster, if a step takes long
LONG_S = 0.3  # a step that takes so long is long
CLASSES = 100  # of either head; they are a small part of the network
STARTING_S = 8.0  # until the first step: workers start, import torch, read weights and images
WIDTH, HEIGHT = 500, 375  # a photograph as in ImageNet


@dataclass(frozen=True)
class Speed:
    """Images per second: training (``train``), inference (``forward``) and reading (``decode``).

    On ``device``, with ``threads`` on the CPU; files are decoded by all cores.
    """

    train: float
    forward: float
    decode: float
    device: str
    threads: int


def measure(
    backbone: dict[str, Any], size: int, batch: int, *, threads: int = 0, precision: str = "no"
) -> Speed:
    """Measure, for some seconds, on the device that a worker would use.

    ``backbone`` is the section of params.yaml, ``size`` the pixels a side, ``batch`` the images per
    step, ``threads`` cpu_threads and ``precision`` that of the recipe. A measurement that fails is
    a ``UserError``.
    """
    given = {"backbone": backbone, "size": size, "batch": batch, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "uotft.runs.estimate"],
        input=json.dumps(given | {"precision": precision}),
        env=environment.allocator(1) | environment.unlaunched(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the speed of this machine cannot be measured: {why}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def seconds(
    speed: Speed, *, embedded: int = 0, trained: int = 0, evaluated: int = 0, decoded: int = 0
) -> float:
    """How long it takes to work through so many images, each time that one is seen counted.

    ``trained`` are steps x (target_batch + source_batch), ``evaluated`` those of the test part and
    of every validation, ``decoded`` files that are read for the first time.
    """
    start = STARTING_S * (bool(embedded) + bool(trained))
    forward = (embedded + evaluated) / speed.forward
    return start + forward + trained / speed.train + decoded / speed.decode


def about(needed: float) -> str:
    """So many seconds for a person: about 2 h 10 min."""
    return f"about {duration(needed)}"


def measured(
    backbone: dict[str, Any], size: int, batch: int, threads: int, precision: str
) -> Speed:
    """The same in this process, whose torch gets these threads and settings."""
    import torch

    from uotft.models import model_io
    from uotft.training import runtime

    accelerator = runtime.start(0, threads, precision)
    device = accelerator.device
    network = model_io.build(backbone, CLASSES, CLASSES).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, nesterov=True)
    one = torch.rand(1, network.channels, size, size, device=device) * 2 - 1

    def images(count: int) -> Any:
        many = one.expand(count, -1, -1, -1)
        return many.contiguous(memory_format=torch.channels_last)

    def step(pixels: Any) -> None:
        with accelerator.autocast():
            loss = network(pixels)["target"].float().logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    def look(pixels: Any) -> None:
        with torch.inference_mode(), accelerator.autocast():
            network(pixels)["target"].sum().item()

    count = batch if device.type == "cuda" else min(FEW, batch)
    while _time(step, images(count)) < LONG_S and count < batch:
        count = min(2 * count, batch)
    train = count * _rate(step, images(count), TRAIN_S)
    network.eval()
    forward = count * _rate(look, images(count), FORWARD_S)
    return Speed(train, forward, _decoding(), str(device.type), torch.get_num_threads())


def _time(work: Callable[[Any], object], given: Any) -> float:
    """Seconds of the second of two calls."""
    work(given)
    began = perf_counter()
    work(given)
    return perf_counter() - began


def _rate(work: Callable[[Any], object], given: Any, wanted_s: float) -> float:
    """Calls per second, over ``wanted_s`` seconds after a first call."""
    work(given)
    began, calls, passed = perf_counter(), 0, 0.0
    while passed < wanted_s:
        work(given)
        calls, passed = calls + 1, perf_counter() - began
    return calls / passed


def _decoding() -> float:
    """Photographs per second that all cores together decode and scale to a square of 256."""
    import numpy as np
    from PIL import Image

    from uotft.data.pixel_cache import square

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT)), np.float32)
    pixels = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    content = file.getvalue()
    one_core = _rate(lambda given: square(given, 256, Path()), content, DECODE_S)
    return one_core * environment.cores()


def main() -> int:
    """Measure what standard input asks for; the last line of standard output is the answer."""
    signals.die_with_parent()
    try:
        speed = measured(**json.load(sys.stdin))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"\n{json.dumps(asdict(speed))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
