"""The solver of equation (5) beside POT's, on the same cost in the same process, and by size.

    python benchmarks/transport.py class MEANS.npz   # one plan, and POT's kernel-domain one
    python benchmarks/transport.py grid MEANS.npz    # eps_c x tau in one call, and a loop over POT
    python benchmarks/transport.py image             # 80,000 to 1,280,000 source points, in blocks

MEANS.npz holds class means of a source and a target (``imagenet`` and ``cub``, or ``means`` twice);
without it, 1000 and 200 random directions stand in. Sides alternate; medians of the repetitions.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from uotft.core.records import ClassBank
from uotft.selection import transport
from uotft.selection.transport import DenseProblem, Plan, Solver

TAUS = 10.0 ** np.arange(-3, 7)
SCALES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)


def problem(path: str | None) -> DenseProblem:
    """The cosine cost, at the paper's setting: eps_c 0.01, eps 1, tau 1 and 100."""
    if path:
        with np.load(path) as arrays:
            sides = [arrays[name].astype(float) for name in ("imagenet", "cub")]
    else:
        rng = np.random.default_rng(0)
        sides = [rng.normal(size=(n, 512)) for n in (1000, 200)]
    source, target = (
        ClassBank(m, tuple(map(str, range(len(m)))), np.ones(len(m), int)) for m in sides
    )
    return DenseProblem(
        cost_ST=transport.cost(source, target, "cosine"),
        weights_S=np.ones(len(source.means)),
        weights_T=np.ones(len(target.means)),
        epsilon=0.01,
        tau_source=0.01,
        tau_target=1.0,
    )


def pot(cell: DenseProblem, stop: float, sweeps: int) -> tuple[np.ndarray, dict]:
    """POT's kernel-domain solver: the plan, and its log with the potentials."""
    import ot

    plan, log = ot.unbalanced.sinkhorn_knopp_unbalanced(
        cell.weights_S,
        cell.weights_T,
        cell.cost_ST / cell.epsilon,
        reg=1.0,
        reg_m=(cell.tau_source / cell.epsilon, cell.tau_target / cell.epsilon),
        reg_type="entropy",
        numItermax=sweeps,
        stopThr=stop,
        log=True,
    )
    return plan, log


def residual(cell: DenseProblem, plan: np.ndarray, f_S: np.ndarray, g_T: np.ndarray) -> float:
    """The largest miss of a log marginal of either side, as in transport.iteration.

    There the source's hold exactly and the target's are missed; POT ends the other way round.
    """
    with np.errstate(all="ignore"):
        source = np.log(cell.weights_S) - f_S * cell.epsilon / cell.tau_source
        target = np.log(cell.weights_T) - g_T * cell.epsilon / cell.tau_target
        miss_S, miss_T = source - np.log(plan.sum(1)), target - np.log(plan.sum(0))
    return float(max(np.abs(miss_S).max(), np.abs(miss_T).max()))


def pot_residual(cell: DenseProblem, stop: float) -> float:
    """What POT's plan misses by when it stops at this threshold."""
    plan, log = pot(cell, stop, 9999)
    return residual(cell, plan, log["logu"], log["logv"])


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each side; one turn of each before the next turn, the first unread."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def one(path: str | None, repeats: int) -> None:
    """One plan to a residual of 1e-9."""
    cell = problem(path)

    def ours() -> Plan:
        # a kernel is kept by its problem: a new one each time, so that nothing is left out
        fresh = DenseProblem(
            cell.cost_ST,
            weights_S=cell.weights_S,
            weights_T=cell.weights_T,
            epsilon=cell.epsilon,
            tau_source=cell.tau_source,
            tau_target=cell.tau_target,
        )
        return transport.solve(fresh, Solver(tolerance=1e-9))

    # the loosest threshold at which POT's plan, measured alike, is as good
    stop = next(s for s in 10.0 ** -np.arange(6.0, 15) if pot_residual(cell, s) < 1e-9)
    plan, (theirs, log) = ours(), pot(cell, stop, 9999)
    miss = residual(cell, np.exp(plan.log_plan_ST), plan.f_S, plan.g_T)
    took = alternate({"uotft": ours, "POT": lambda: pot(cell, stop, 9999)}, repeats)
    print(f"uotft {1e3 * took['uotft']:.2f} ms, residual {miss:.1e}, {plan.iterations} sweeps")
    print(f"POT   {1e3 * took['POT']:.2f} ms, residual {pot_residual(cell, stop):.1e}, ", end="")
    print(f"{len(log['err'])} sweeps, stopThr {stop:.0e}")
    print(
        f"ratio uotft / POT {took['uotft'] / took['POT']:.2f}; largest difference of log P ", end=""
    )
    print(f"{np.abs(np.log(theirs) - plan.log_plan_ST).max():.1e}")


def grid(path: str | None, repeats: int, sweeps: int) -> None:
    """Every eps_c with every tau (both sides alike), to 1e-9, POT with ``sweeps`` at most."""
    cell = problem(path)
    cells = [(s, s * tau, s * tau) for s in SCALES for tau in TAUS]

    def split(strengths: tuple[float, float, float]) -> DenseProblem:
        epsilon, source, target = strengths
        return DenseProblem(
            cell.cost_ST,
            weights_S=cell.weights_S,
            weights_T=cell.weights_T,
            epsilon=epsilon,
            tau_source=source,
            tau_target=target,
        )

    plans = transport.solve_grid(cell, cells)
    right = []
    for strengths, plan in zip(cells, plans, strict=True):
        theirs, _ = pot(split(strengths), 1e-9, sweeps)
        with np.errstate(all="ignore"):
            right.append(bool(np.abs(np.log(theirs) - plan.log_plan_ST).max() < 1e-6))
    good = [strengths for strengths, is_right in zip(cells, right, strict=True) if is_right]
    print(f"{len(cells)} problems; not converged: uotft {sum(not p.converged for p in plans)}")
    print(f"POT ({sweeps} sweeps at most): wrong or not finite in {len(cells) - len(good)}")
    for name, part in (("all", cells), ("those that POT gets right", good)):
        took = alternate(
            {
                "uotft": lambda part=part: transport.solve_grid(split(part[0]), part),
                "POT": lambda part=part: [pot(split(s), 1e-9, sweeps) for s in part],
            },
            repeats,
        )
        print(
            f"{name} ({len(part)}): uotft {1e3 * took['uotft']:.0f} ms in one call, "
            f"POT {1e3 * took['POT']:.0f} ms in a loop, x{took['POT'] / took['uotft']:.1f}"
        )


def image(points: int | None) -> None:
    """Random unit vectors, 128 dimensions, 200 target points; each size in a process of its own."""
    if points is None:
        for n in (80_000, 160_000, 320_000, 640_000, 1_280_000):
            subprocess.run([sys.executable, __file__, "image", "--points", str(n)], check=True)
        return
    rng = np.random.default_rng(0)
    sides = []
    for n in (points, 200):
        x = np.empty((n, 128), np.float32)
        for start in range(0, n, 65536):
            part = x[start : start + 65536]
            part[:] = rng.standard_normal(part.shape, np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        sides.append(x)
    import torch

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    plan = transport.solve(
        transport.FeatureProblem(
            *sides,
            "cosine",
            weights_S=np.ones(points),
            weights_T=np.ones(200),
            epsilon=0.01,
            tau_source=0.01,
            tau_target=1.0,
        )
    )
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{points:>9,} x 200: {took:6.1f} s, {plan.iterations} sweeps, residual "
        f"{plan.residual:.1e}, peak {peak:.2f} GiB ({held:.2f} before), "
        f"{torch.get_num_threads()} threads",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["class", "grid", "image"])
    parser.add_argument("means", nargs="?")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--points", type=int, help="of image: one size alone")
    parser.add_argument("--sweeps", type=int, default=10_000, help="of POT in grid, at most")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.means and not Path(given.means).is_file():
        sys.exit(f"{given.means}: no such file")
    if given.what == "image":
        image(given.points)
    elif given.what == "grid":
        grid(given.means, given.repeats, given.sweeps)
    else:
        one(given.means, given.repeats)
