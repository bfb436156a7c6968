"""The transport solver and k-means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from on_gpu.harness import REPEATS, Bench, short

if TYPE_CHECKING:
    from uotft.selection.transport import FeatureProblem, Plan

STRENGTHS = {"epsilon": 0.01, "tau_source": 0.01, "tau_target": 1.0}  # the paper's, times eps_c
CLOSE = 1e-3  # in log masses: costs in float32 over eps_c are exact to 1e-5, in TF32 to 0.1
RESIDUAL = 1e-9  # of both sides' log marginals
Rows = NDArray[np.float32]


def normal(bench: Bench, n: int, dimensions: int, seed: int) -> Rows:
    """Random rows (n, D), in host memory: those of images whose directions are all alike likely."""
    import torch

    generator = torch.Generator(bench.device).manual_seed(seed)
    rows = torch.randn(n, dimensions, generator=generator, device=bench.device)
    return np.ascontiguousarray(rows.cpu().numpy())


def blobs(bench: Bench, n: int, dimensions: int) -> Rows:
    """Random rows (n, D) around a thousand centres, as wide as these are far apart."""
    import torch

    centres = torch.as_tensor(normal(bench, 1000, dimensions, 3), device=bench.device)
    generator = torch.Generator(bench.device).manual_seed(4)
    own = torch.randint(1000, (n,), generator=generator, device=bench.device)
    rows = torch.randn(n, dimensions, generator=generator, device=bench.device)
    return np.ascontiguousarray(rows.add_(centres[own]).cpu().numpy())


def problem(sides: tuple[Rows, Rows], device: str) -> FeatureProblem:
    """Equation (5) at the paper's setting, on a device."""
    from uotft.selection.transport import FeatureProblem

    weights = {"weights_S": np.ones(len(sides[0])), "weights_T": np.ones(len(sides[1]))}
    return FeatureProblem(*sides, "cosine", device=device, **weights, **STRENGTHS)


def solved(sides: tuple[Rows, Rows], device: str) -> Plan:
    """The plan, to RESIDUAL; an error if it has not converged."""
    from uotft.selection import transport

    plan = transport.solve(problem(sides, device), transport.Solver(tolerance=RESIDUAL))
    return plan.check("this is a benchmark")


def solver(bench: Bench) -> None:
    """1,280,000 x 200 points, from arrays in host memory to log masses there."""
    source, target, dimensions = (3000, 20, 16) if bench.tiny else (1_280_000, 200, 128)
    sides = normal(bench, source, dimensions, 0), normal(bench, target, dimensions, 1)
    plan = solved(sides, bench.device)
    mine = f"uotft, {plan.iterations} sweeps"
    duel = {mine: lambda: bench.seconds(lambda: solved(sides, bench.device))}
    try:
        stop = stop_of_pot((sides[0][: max(1000, source // 16)], sides[1]), bench.device)
        masses, residual = pot(sides, bench.device, stop, judged=True)
    except Exception as error:  # noqa: BLE001 (no package, or no memory)
        bench.note(f"POT left out: {short(error)}")
    else:
        duel["POT, torch"] = lambda: bench.seconds(lambda: pot(sides, bench.device, stop))
        bench.note(f"residual: uotft {plan.residual:.0e}, POT {residual:.0e} (stopThr {stop:.0e})")
        away = float(np.abs(masses - plan.log_mass_S).max())
        bench.check("log masses equal POT's", away < CLOSE, f"largest difference {away:.1e}")
    bench.compare(f"UOT {source:,} x {target}", duel, unit="s", aim=0.5)

    part = affordable(bench, sides)
    fewer = sides[0][:part], sides[1]
    on_cpu, here = solved(fewer, "cpu"), solved(fewer, bench.device)
    away = float(np.abs(on_cpu.log_mass_S - here.log_mass_S).max())
    bench.check("log masses equal the CPU's", away < CLOSE, f"largest difference {away:.1e}")
    bench.compare(
        f"UOT {part:,} x {target}",
        {
            "uotft": lambda: bench.seconds(lambda: solved(fewer, bench.device)),
            "uotft, CPU": lambda: bench.seconds(lambda: solved(fewer, "cpu")),
        },
        unit="s",
    )


def affordable(bench: Bench, sides: tuple[Rows, Rows]) -> int:
    """The most source rows, of all, that the CPU solves for every turn in the time left."""
    rows = len(sides[0])
    few = max(1000, rows // 64)
    one = bench.seconds(lambda: solved((sides[0][:few], sides[1]), "cpu"))
    turns = REPEATS + 3  # with the check's, the one that warms up, and some to spare
    while few * 2 <= rows and turns * one * 2 < 0.8 * bench.left():
        few, one = few * 2, one * 2
    return few


def pot(
    sides: tuple[Rows, Rows], device: str, stop: float, *, judged: bool = False
) -> tuple[NDArray[Any], float]:
    """POT's kernel-domain solver with torch tensors: log masses of the source, in host memory.

    And, if ``judged``, the largest miss of a log marginal.
    """
    import ot
    import torch

    x, y = (torch.as_tensor(side, device=device) for side in sides)
    x, y = (side / side.norm(dim=1, keepdim=True) for side in (x, y))
    cost = (1 - (x @ y.T).double()).div_(STRENGTHS["epsilon"])
    of_source, of_target = (
        STRENGTHS[tau] / STRENGTHS["epsilon"] for tau in ("tau_source", "tau_target")
    )
    a, b = (torch.ones(n, dtype=torch.float64, device=device) for n in cost.shape)
    found = ot.unbalanced.sinkhorn_knopp_unbalanced(
        a, b, cost, reg=1.0, reg_m=(of_source, of_target), reg_type="entropy",
        numItermax=9999, stopThr=stop, log=judged,
    )  # fmt: skip
    plan, log = found if judged else (found, None)
    mass = plan.sum(1).log()
    miss = 0.0
    if log:  # as in transport.iteration: there the target's are missed, POT ends the other way
        misses = (
            -log["logu"] / of_source - mass,
            -log["logv"] / of_target - plan.sum(0).log(),
        )
        miss = float(max(x.abs().max() for x in misses))
    return mass.cpu().numpy(), miss


def stop_of_pot(sides: tuple[Rows, Rows], device: str) -> float:
    """The loosest threshold at which POT's plan, measured alike, is as good as ours."""
    import warnings

    warnings.simplefilter("ignore")  # POT says that a matrix of ones is a matrix of ones
    for stop in 10.0 ** -np.arange(6.0, 15):
        if pot(sides, device, float(stop), judged=True)[1] < RESIDUAL:
            return float(stop)
    raise RuntimeError("no threshold brings its residual below ours")


def clusters(bench: Bench) -> None:
    """k-means of 1,280,000 x 128 into 2000, beside FAISS as it is without settings."""
    from uotft.core.settings import Cluster
    from uotft.selection.clustering import kmeans, unit_rows

    rows, dimensions, k = (2000, 16, 10) if bench.tiny else (1_280_000, 128, 2000)
    points = unit_rows(blobs(bench, rows, dimensions))
    settings = Cluster(clusters=k)

    def theirs(given: Rows) -> object:
        import faiss

        search = faiss.Kmeans(dimensions, k, niter=settings.iterations, spherical=True, seed=0)
        search.train(given)
        return search.assign(given)

    part = rows if bench.tiny else rows // 16  # still 40 points for each cluster
    one = bench.seconds(lambda: (kmeans(points[:part], settings), theirs(points[:part])))
    while part * 2 <= rows and (REPEATS + 2) * one * 2 < 0.9 * bench.left():
        part, one = part * 2, one * 2
    if part < rows:
        bench.note(f"k-means of {part:,} points: all {rows:,} would take {one * rows / part:.0f} s")
    given = points[:part]
    if part < rows:
        alone = {
            "plain torch": lambda: bench.seconds(
                lambda: lloyd(points, k, settings.iterations, bench.device)
            )
        }
        bench.compare(f"k-means {rows:,} x {dimensions} into {k}", alone, unit="s", aim=1.0)
    bench.note(
        "uotft has no k-means on a GPU; plain torch, from random points, shows what one does"
    )
    bench.compare(
        f"k-means {part:,} x {dimensions} into {k}",
        {
            "uotft, CPU": lambda: bench.seconds(lambda: kmeans(given, settings)),
            "FAISS, CPU": lambda: bench.seconds(lambda: theirs(given)),
            "plain torch": lambda: bench.seconds(
                lambda: lloyd(given, k, settings.iterations, bench.device)
            ),
        },
        unit="s",
        aim=1.0 if part == rows else None,
    )


def lloyd(points: Rows, k: int, iterations: int, device: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Spherical k-means in its plainest form: centroids (k, D) and labels (n,), in host memory."""
    import torch

    x = torch.as_tensor(points, device=device)
    picked = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:k]
    centroids, labels = x[picked.to(device)], torch.empty(len(x), dtype=torch.int64, device=device)
    for turn in range(iterations + 1):
        for start in range(0, len(x), 65536):
            part = slice(start, start + 65536)
            labels[part] = (x[part] @ centroids.T).argmax(1)
        if turn < iterations:  # the last pass only assigns
            sums = torch.zeros_like(centroids).index_add_(0, labels, x)
            length = sums.norm(dim=1, keepdim=True)
            centroids = torch.where(length > 0, sums / length.clamp(min=1e-12), centroids)
    return centroids.cpu().numpy(), labels.cpu().numpy()
