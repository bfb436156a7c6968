"""What only a GPU can show; `make gpu` runs these too, without conftest.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from uotft.selection import transport
from uotft.selection.transport import blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
STRENGTHS = [(0.01, 0.01, 1.0), (0.001, 0.1, 0.1), (0.1, 10.0, 1e4), (1e-3, 1e-3, 1e-5)]


def problem(device: str, strengths: tuple, metric: transport.Metric) -> transport.FeatureProblem:
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(n, 32)) for n in (5000, 40)]
    weights = {"weights_S": rng.uniform(0.5, 2, 5000), "weights_T": np.ones(40)}
    names = ("epsilon", "tau_source", "tau_target")
    shared = weights | dict(zip(names, strengths, strict=True))
    return transport.FeatureProblem(*sides, metric, device=device, **shared)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("strengths", STRENGTHS)
@pytest.mark.parametrize("held", [True, False])
def test_the_solver_gives_what_the_cpu_does(
    metric: transport.Metric, strengths: tuple, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blocks.ELEMENTS, "cuda", 40 * 1200)  # several blocks, and a short one
    monkeypatch.setattr(blocks.BlockKernel, "fits_a_gpu", lambda self: held)
    on_cpu = transport.solve(problem("cpu", strengths, metric))
    plan = transport.solve(problem("cuda", strengths, metric))
    assert plan.converged
    for name in ("log_mass_S", "log_mass_T", "f_S", "g_T"):
        assert np.allclose(getattr(plan, name), getattr(on_cpu, name), atol=1e-6), name
    rows = np.array([4999, 3])
    assert np.allclose(plan.log_rows(rows), on_cpu.log_rows(rows), atol=1e-6)


def test_a_small_problem_is_held() -> None:
    assert isinstance(problem("cuda", STRENGTHS[0], "cosine").kernel(0.01), blocks.HeldKernel)


def test_a_selection_is_that_of_the_cpu() -> None:
    from uotft.core.records import ClassBank
    from uotft.selection.strategies import uot

    rng = np.random.default_rng(1)
    source, target = (
        ClassBank(rng.normal(size=(n, 16)), tuple(map(str, range(n))), np.ones(n, int))
        for n in (300, 20)
    )
    on_cpu, found = (
        uot.score(source, target, uot.Settings(solver="blocks", device=device), 0)
        for device in ("cpu", "cuda")
    )
    assert np.array_equal(np.argsort(found.values), np.argsort(on_cpu.values))
    assert found.log_plan is not None
    assert np.isfinite(found.log_plan(slice(None))).all()


def test_a_batch_is_that_of_the_cpu() -> None:
    from uotft.core.settings import Augment
    from uotft.training.streams import Place, Sampling, Stream

    pixels = np.random.default_rng(2).integers(0, 255, (40, 24, 24, 3), dtype=np.uint8)
    augment = Augment(contrast=0.3, cutout=0.4, flip=True)
    sampling = Sampling("a", 16, 0, augment, channels=3)
    on_cpu, found = (
        Stream(pixels, np.arange(40), sampling, Place(device))[3] for device in ("cpu", "cuda:0")
    )
    assert found.images.device.type == found.labels.device.type == "cuda"
    assert torch.equal(found.labels.cpu(), on_cpu.labels)
    assert (found.images.cpu() - on_cpu.images).abs().max() < 1e-3


def test_batches_made_beside_the_training_are_those_made_in_turn() -> None:
    """Each is used long after the thread has made the next one: memory must not be shared."""
    from uotft.models.inputs import ahead, beside

    def make(key: int) -> torch.Tensor:
        return torch.full((1 << 20,), float(key), device="cuda") * torch.ones((), device="cuda")

    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in ahead(beside(make, "cuda", lambda made: [made]), range(50)):
        busy = (busy @ busy).clamp_(-1, 1)  # the GPU is behind, and so is the use of the batch
        sums.append(batch.double().sum())
        del batch
    assert torch.stack(sums).tolist() == [float(key) * (1 << 20) for key in range(50)]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The trainings of benchmarks/gpu.py, with deterministic algorithms."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from on_gpu import checks

    torch.use_deterministic_algorithms(True)
    yield checks
    torch.use_deterministic_algorithms(False)
    for name in [name for name in sys.modules if name.split(".")[0] == "on_gpu"]:
        del sys.modules[name]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_resumed_training_ends_in_the_same_bits(checks: ModuleType, precision: str) -> None:
    from on_gpu.harness import Bench

    bench = Bench("cuda", True, 0.0, lambda record: None)
    whole, losses = checks.trained(bench, precision)
    parts, joined = checks.resumed(bench, precision)
    assert not checks.differing(whole, parts)
    assert joined == losses
    assert {w.dtype for w in whole.values() if w.is_floating_point()} == {torch.float32}


def test_features_are_those_of_the_cpu(checks: ModuleType) -> None:
    """In several batches, and the memory of one not used again before the network has read it."""
    from uotft.core.context import Context
    from uotft.models import embedding, model_io

    settings = {"name": "small_resnet", "widths": [4, 8], "channels": 3}
    images = np.random.default_rng(3).integers(0, 255, (100, 24, 24, 3), dtype=np.uint8)
    with checks.accelerator_of("no") as accelerator:
        network = model_io.build(settings, 4).eval()
        with torch.no_grad():
            pixels = torch.as_tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
            expected = network.backbone(pixels).numpy()
        context = Context(accelerator)
        [(_, found)] = embedding.shards(network, images, [range(100)], context, batch_size=16)
    assert np.allclose(found, expected, atol=2e-2)  # convolutions may use TF32
