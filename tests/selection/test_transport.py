from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from uotft.core.errors import UserError
from uotft.core.records import ClassBank
from uotft.selection import transport
from uotft.selection.strategies import uot
from uotft.selection.transport import blocks


def bank(means: list[list[float]]) -> ClassBank:
    names = tuple(f"class {i}" for i in range(len(means)))
    return ClassBank(np.array(means, float), names, np.ones(len(means), int))


def test_costs() -> None:
    a, b = bank([[1, 0], [0, 2]]), bank([[3, 0]])
    assert transport.cost(a, b, "cosine").tolist() == [[0.0], [1.0]]
    assert transport.cost(a, b, "l2").tolist() == [[2.0], [pytest.approx(13**0.5)]]


def test_the_source_class_near_a_target_receives_the_mass() -> None:
    scores = uot.score(bank([[1, 0], [0, 1], [1, 1]]), bank([[1, 0.1]]), uot.Settings(), 0)
    assert scores.values.argmax() == 0
    assert scores.log_plan is not None
    assert scores.log_plan(slice(None)).shape == (3, 1)


def random_problem(classes: int, targets: int, **strengths: float) -> transport.DenseProblem:
    rng = np.random.default_rng(1)
    source, target = (bank(rng.normal(size=(n, 6)).tolist()) for n in (classes, targets))
    return transport.DenseProblem(
        cost_ST=transport.cost(source, target, "cosine"),
        weights_S=np.ones(classes),
        weights_T=np.ones(targets),
        **strengths,
    )


def reference(problem: transport.DenseProblem, sweeps: int) -> np.ndarray:
    """Plain log-domain sweeps: slow, and nothing else."""
    K = -problem.cost_ST / problem.epsilon
    kappa = [t / (t + problem.epsilon) for t in (problem.tau_source, problem.tau_target)]
    g = np.zeros(K.shape[1])
    for _ in range(sweeps):
        f = -kappa[0] * np.logaddexp.reduce(K + g, axis=1)
        g = -kappa[1] * np.logaddexp.reduce(K + f[:, None], axis=0)
    f = -kappa[0] * np.logaddexp.reduce(K + g, axis=1)
    return f[:, None] + g + K


@pytest.mark.parametrize(
    ("strengths", "sweeps"),
    [
        ({"epsilon": 0.1, "tau_source": 0.1, "tau_target": 10.0}, 200),
        ({"epsilon": 0.01, "tau_source": 1e-5, "tau_target": 1e-5}, 20),
        ({"epsilon": 0.05, "tau_source": 5.0, "tau_target": 5.0}, 5000),  # by Newton steps
        ({"epsilon": 0.004, "tau_source": 0.4, "tau_target": 0.4}, 5000),  # from larger epsilons
    ],
)
def test_the_plan_is_that_of_plain_sweeps(strengths: dict, sweeps: int) -> None:
    problem = random_problem(40, 7, **strengths)
    plan = transport.solve(problem)
    assert plan.converged
    assert plan.iterations < 200
    assert np.allclose(plan.log_plan_ST, reference(problem, sweeps), atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("strengths", [(0.01, 0.01, 1.0), (0.001, 0.1, 0.1), (0.1, 10.0, 1e4)])
def test_blocks_agree_with_the_dense_solver(
    metric: transport.Metric, strengths: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blocks.ELEMENTS, "cpu", 60)  # blocks of ten rows, and a short one
    rng = np.random.default_rng(2)
    source, target = (bank(rng.normal(size=(n, 5)).tolist()) for n in (43, 6))
    names = ("epsilon", "tau_source", "tau_target")
    shared = {"weights_S": np.ones(43), "weights_T": np.ones(6)} | dict(
        zip(names, strengths, strict=True)
    )
    dense = transport.solve(
        transport.DenseProblem(transport.cost(source, target, metric), **shared)
    )
    streamed = transport.solve(
        transport.FeatureProblem(source.means, target.means, metric, **shared)
    )
    assert streamed.converged
    assert np.allclose(streamed.log_mass_S, dense.log_mass_S, atol=1e-7)
    rows = np.array([40, 3])
    assert np.allclose(streamed.log_rows(rows), dense.log_rows(rows), atol=1e-7)


@dataclass(frozen=True)
class Held(transport.FeatureProblem):
    """What a GPU does with enough memory, on the CPU."""

    def kernel(self, epsilon: float) -> blocks.HeldKernel:
        return blocks.HeldKernel(self, epsilon)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    "strengths",
    [(0.01, 0.01, 1.0), (0.001, 0.1, 0.1), (0.1, 10.0, 1e4), (1e-3, 1e-3, 1e-5)],
)
def test_the_kernel_that_a_gpu_holds_agrees_with_the_dense_one(
    metric: transport.Metric, strengths: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blocks.ELEMENTS, "cpu", 60)
    monkeypatch.setattr(blocks, "GROUP", 8)  # 43 rows: five groups, and a padded one
    rng = np.random.default_rng(2)
    source, target = (bank(rng.normal(size=(n, 5)).tolist()) for n in (43, 6))
    names = ("epsilon", "tau_source", "tau_target")
    shared = {"weights_S": rng.uniform(0.5, 2, 43), "weights_T": np.ones(6)} | dict(
        zip(names, strengths, strict=True)
    )
    dense = transport.solve(
        transport.DenseProblem(transport.cost(source, target, metric), **shared)
    )
    held = transport.solve(Held(source.means, target.means, metric, **shared))
    assert held.converged
    assert held.iterations == dense.iterations
    assert np.allclose(held.log_mass_S, dense.log_mass_S, atol=1e-7)
    assert np.allclose(held.log_mass_T, dense.log_mass_T, atol=1e-7)
    assert np.allclose(held.f_S, dense.f_S, atol=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_costs_of_half_precision_are_not_rounded_to_it(metric: transport.Metric) -> None:
    """A user's banks may be float16; above 20 million costs they are solved in blocks."""
    rng = np.random.default_rng(0)
    source, target = (1 + rng.normal(size=(n, 64)).astype(np.float16) for n in (30, 20))
    cost = transport.cost(bank(source.tolist()), bank(target.tolist()), metric)
    shared = {"weights_S": np.ones(30), "weights_T": np.ones(20), "epsilon": 0.1}
    shared |= {"tau_source": 1.0, "tau_target": 100.0}
    found = transport.FeatureProblem(source, target, metric, **shared).cost_rows(slice(None))
    assert np.allclose(found, cost, rtol=1e-5, atol=1e-6)


def test_a_thin_column_of_the_kernel_that_a_gpu_holds() -> None:
    """A target class far from every source class, as below."""
    source = bank([[1, 0], [0.99, 0.1], [0.98, -0.1]])
    target = bank([[1, 0.01], [-1, 0]])
    shared = {"weights_S": np.ones(3), "weights_T": np.ones(2), "epsilon": 1e-3}
    shared |= {"tau_source": 1e-3, "tau_target": 1e-5}
    streamed = transport.FeatureProblem(source.means, target.means, "cosine", **shared)
    held = transport.solve(Held(source.means, target.means, "cosine", **shared))
    assert held.log_mass_T[1] < -900
    assert np.allclose(held.log_mass_T, transport.solve(streamed).log_mass_T, atol=1e-6)


@pytest.mark.parametrize(
    ("free", "reserved", "fits"),
    [(16 << 30, 0, True), (2 << 30, 0, False), (1 << 30, 15 << 30, True), (4 << 30, 0, False)],
)
def test_a_gpu_holds_the_kernel_if_it_has_the_memory(
    free: int, reserved: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,280,000 x 200 costs in float64 and 128 features in float32: 2.5 GiB, and 1 GiB of work."""
    sides = (np.ones((1, 128), np.float32).repeat(n, 0) for n in (1000, 200))
    weights = {"weights_S": np.ones(1000), "weights_T": np.ones(200)}
    strengths = {"epsilon": 1.0, "tau_source": 1.0, "tau_target": 1.0}
    kernel = blocks.BlockKernel(
        transport.FeatureProblem(*sides, "cosine", **weights, **strengths), 1.0
    )
    assert not kernel.fits_a_gpu(), "this is a CPU"
    kernel._device, kernel._size = torch.device("cuda"), blocks.ELEMENTS["cuda"] // 200
    kernel._source_SD = np.broadcast_to(np.float32(1), (1_280_000, 128))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert kernel.fits_a_gpu() == fits


def test_blocks_read_a_map_of_a_file(tmp_path: Path) -> None:
    """Features that stay on the disk, and cannot be written to."""
    rng = np.random.default_rng(4)
    source, target = (rng.normal(size=(n, 5)).astype(np.float32) for n in (40, 6))
    np.save(tmp_path / "s.npy", source)
    mapped = np.load(tmp_path / "s.npy", mmap_mode="r")
    found = [
        uot.score(
            ClassBank(means, tuple(map(str, range(40))), np.ones(40, int)),
            bank(target.tolist()),
            uot.Settings(cost_scale=0.1, solver="blocks"),
            0,
        ).values
        for means in (source, mapped)
    ]
    assert np.array_equal(*found)


def test_blocks_sum_columns_that_underflow() -> None:
    """A target class far from every source class: its column is e^-1000 of the others."""
    source = bank([[1, 0], [0.99, 0.1], [0.98, -0.1]])
    target = bank([[1, 0.01], [-1, 0]])
    shared = {"weights_S": np.ones(3), "weights_T": np.ones(2), "epsilon": 1e-3}
    shared |= {"tau_source": 1e-3, "tau_target": 1e-5}
    dense, streamed = (
        transport.solve(problem)
        for problem in (
            transport.DenseProblem(transport.cost(source, target, "cosine"), **shared),
            transport.FeatureProblem(source.means, target.means, "cosine", **shared),
        )
    )
    assert dense.log_mass_T[1] < -900
    assert np.allclose(dense.log_mass_T, streamed.log_mass_T, atol=1e-6)
    assert np.allclose(dense.log_plan_ST, reference(dense.problem, 100), atol=1e-6)


def test_an_unknown_device_is_a_clear_error() -> None:
    wrong = uot.Settings(solver="blocks", device="cuda:99")
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used"):
        uot.score(bank([[1, 0], [0, 1]]), bank([[1, 1]]), wrong, 0)


def test_greedy_ot_is_the_exact_emd_of_one_class() -> None:
    """POT's exact EMD, the thing that greedy OT abbreviates."""
    import ot

    from uotft.selection.strategies import greedy_ot

    rng = np.random.default_rng(3)
    source, target = bank(rng.normal(size=(6, 4)).tolist()), bank(rng.normal(size=(5, 4)).tolist())
    cost = transport.cost(source, target, "l2")
    emd = [ot.emd2([1.0], np.full(5, 0.2), cost[row : row + 1]) for row in range(6)]
    scores = greedy_ot.score(source, target, greedy_ot.Settings(), 0).values
    assert np.allclose(scores, np.negative(emd))


def test_features_of_any_length_are_one_direction() -> None:
    tiny, huge = bank([[1e-200, 2e-200]]), bank([[1e200, 2e200]])
    assert transport.cost(tiny, huge, "cosine") == pytest.approx(0, abs=1e-12)
