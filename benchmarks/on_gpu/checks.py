"""What must hold on a GPU whatever its speed: resume, fp16, NCCL, and the tests marked `gpu`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from on_gpu.harness import Bench
from on_gpu.training import Pictures, network_of, task

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[2]
STEPS, HALFWAY, BATCH = 12, 6, 8
MODE = "joint"
Weights = dict[str, "Tensor"]


@contextmanager
def accelerator_of(precision: str) -> Iterator[Any]:
    """An accelerator, and no trace of it afterwards: Accelerate keeps one state a process."""
    from accelerate.state import AcceleratorState

    from uotft.training import runtime

    try:
        yield runtime.start(0, 0, precision)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def trained(
    bench: Bench, precision: str, folder: Path | None = None, stop_at: int = STEPS
) -> tuple[Weights, list[float]]:
    """The weights after ``stop_at`` steps, in host memory, and the loss of each step.

    With a ``folder`` a training that is stopped leaves its checkpoint there, and one that is not
    goes on from it.
    """
    from uotft.core.context import Context
    from uotft.core.errors import Interrupted
    from uotft.training.loop import fit
    from uotft.training.state import Keeper

    begun, losses = [], []

    def progress(steps: range, label: str) -> Iterator[int]:
        for step in steps:
            begun.append(step)
            yield step

    def log(step: int, numbers: dict[str, float]) -> None:
        losses.extend(value for name, value in numbers.items() if name == "loss/target")

    def stop() -> bool:
        return stop_at < STEPS and begun[-1] >= stop_at - 1

    with accelerator_of(precision) as accelerator:
        name, size = ("small_resnet", 32) if bench.tiny else ("resnet18", 96)
        of = Pictures(64, size + 8, size)
        streams = of.streams(MODE, BATCH, accelerator.device)
        network = network_of(name, MODE, accelerator.device)
        made = task(network, streams, MODE, steps=STEPS, log_every=1)
        keeper = Keeper(folder, {}, {}, lambda step, numbers: None) if folder else None
        context = Context(accelerator, log=log, progress=progress, stop=stop)
        try:
            fit(made, context, keeper=keeper)
        except Interrupted:
            return {}, losses
        weights = {k: v.detach().cpu() for k, v in network.state_dict().items()}
    return weights, losses


def resumed(bench: Bench, precision: str) -> tuple[Weights, list[float]]:
    """The same, interrupted halfway."""
    with tempfile.TemporaryDirectory() as name:
        _, first = trained(bench, precision, Path(name), HALFWAY)
        weights, second = trained(bench, precision, Path(name))
    return weights, first + second


def differing(one: Weights, other: Weights) -> list[str]:
    """The names of tensors that are not equal to the bit."""
    import torch

    return [name for name in one if not torch.equal(one[name], other[name])]


def exactly(bench: Bench, precision: str) -> None:
    """Check that a training repeats, and that an interrupted one ends in the same bits."""
    name = "float32" if precision == "no" else precision
    whole, losses = trained(bench, precision)
    again, _ = trained(bench, precision)
    different = differing(whole, again)
    found = f"{len(different)} of {len(whole)} tensors differ"
    bench.check(f"{name}: the same seed gives the same bits", not different, found)
    parts, joined = resumed(bench, precision)
    different = differing(whole, parts)
    found = f"{len(different)} of {len(whole)} tensors differ"
    bench.check(f"{name}: resumed = uninterrupted, to the bit", not different, found)
    good = joined == losses
    bench.check(f"{name}: the losses too", good, f"{len(losses)} steps, last {losses[-1]:.4f}")


def resume(bench: Bench) -> None:
    """Deterministic algorithms: the same bits again, and after an interruption."""
    import torch

    torch.use_deterministic_algorithms(True)
    for precision in ("no", "bf16"):
        exactly(bench, precision)


def half(bench: Bench) -> None:
    """fp16 with a gradient scaler: it learns as float32 does, and resumes to the bit."""
    import torch

    from uotft.core.errors import UserError

    torch.use_deterministic_algorithms(True)
    if not bench.is_gpu:
        try:
            trained(bench, "fp16")
        except UserError as error:
            bench.check("fp16 is refused without a GPU", "needs a GPU" in str(error), str(error))
        return
    exactly(bench, "fp16")
    _, exact = trained(bench, "no")
    weights, rough = trained(bench, "fp16")
    away = max(abs(a - b) / b for a, b in zip(rough, exact, strict=True))
    bench.check("fp16: the losses are those of float32", away < 0.25, f"at most {away:.1%} away")
    kept = {str(w.dtype) for w in weights.values() if w.is_floating_point()}
    bench.check("fp16: weights stay float32", kept == {"torch.float32"}, ", ".join(kept))


def one_rank(bench: Bench) -> None:
    """The process group of one rank: NCCL on a GPU, gloo on a CPU; the weights of none at all."""
    import torch
    from torch import distributed

    torch.use_deterministic_algorithms(True)
    alone, _ = trained(bench, "no")
    backend = "nccl" if bench.is_gpu else "gloo"
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if bench.is_gpu:
        torch.cuda.set_device(0)
    with tempfile.TemporaryDirectory() as name:
        store = distributed.FileStore(f"{name}/meeting", 1)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        value = torch.arange(4.0, device=bench.device)
        distributed.all_reduce(value)
        good = value.tolist() == [0.0, 1.0, 2.0, 3.0]
        bench.check(f"{backend} adds up", good, f"backend {distributed.get_backend()}")
        grouped, _ = trained(bench, "no")
        worst = max(float((alone[k].double() - grouped[k].double()).abs().max()) for k in alone)
        bench.check("one rank learns what no group does", worst < 1e-5, f"at most {worst:.1e} away")
        if distributed.is_initialized():
            distributed.destroy_process_group()


def tests(bench: Bench) -> None:
    """`pytest -m gpu`, on the files that have such tests; without a GPU they must be skipped.

    Without conftest.py, which imports all of uotft and MLflow: such tests need no fixture of it.
    """
    files = [f for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in f.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["--noconftest"]
    command += [str(file.relative_to(ROOT)) for file in files]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=max(10.0, bench.left()),
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"},
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    wanted = "passed" if bench.is_gpu else "skipped"
    good = done.returncode == 0 and counts.get(wanted, 0) > 0
    if not good:
        bench.note(done.stdout[-1500:])
    bench.check("pytest -m gpu", good, last)
