"""Table 4 of Liu et al. (2022) from real class means, and POT as an independent oracle."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from uotft import transport
from uotft.records import ClassBank
from uotft.selection import keep
from uotft.selectors import greedy_ot, nearest, uot

PAPER = Path(__file__).parents[3] / "shared" / "paper"
BIRDS = {*range(7, 25), *range(80, 101), *range(127, 147)}  # the 59 bird classes of ImageNet
MODELS = {"supervised": "resnet18_supervised", "moco": "resnet50_mocov2"}
needs_paper = pytest.mark.skipif(
    not PAPER.is_dir(), reason=f"the paper's class means are not at {PAPER}"
)


def banks(model: str) -> tuple[ClassBank, ClassBank]:
    with np.load(PAPER / f"class_means_{MODELS[model]}.npz") as means:
        return tuple(
            ClassBank(
                means[name].astype(float),
                tuple(f"{i:04}" for i in range(len(means[name]))),
                np.ones(len(means[name]), int),
            )
            for name in ("imagenet", "cub")
        )


@needs_paper
@pytest.mark.parametrize(
    ("model", "module", "settings", "recall"),
    [
        ("supervised", greedy_ot, {"metric": "l2"}, 86.44),
        ("supervised", greedy_ot, {"metric": "cosine"}, 94.92),
        ("supervised", uot, {"metric": "l2", "cost_scale": 0.1}, 94.92),
        ("supervised", uot, {"metric": "cosine", "cost_scale": 0.01}, 98.31),
        ("supervised", nearest, {}, 100.0),
        ("moco", greedy_ot, {"metric": "l2"}, 16.95),
        ("moco", greedy_ot, {"metric": "cosine"}, 38.98),
        ("moco", uot, {"metric": "l2", "cost_scale": 0.1}, 16.95),
        ("moco", uot, {"metric": "cosine", "cost_scale": 0.01}, 93.22),
        ("moco", nearest, {}, 98.31),
    ],
)
def test_bird_recall(model: str, module, settings: dict, recall: float) -> None:
    source, target = banks(model)
    scores = module.score(source, target, module.Settings(**settings), 0)
    found = BIRDS & set(keep(scores, source.names, 100).tolist())
    assert round(100 * len(found) / 59, 2) == recall


@needs_paper
@pytest.mark.parametrize("solver", ["blocks", "pot"])
def test_every_solver_finds_the_same_birds(solver: str) -> None:
    source, target = banks("supervised")
    ours, theirs = (
        uot.score(source, target, uot.Settings(solver=name), 0).values for name in ("auto", solver)
    )
    assert np.allclose(ours, theirs, atol=1e-7)


@needs_paper
@pytest.mark.parametrize("model", MODELS)
def test_no_setting_fails_on_the_real_means(model: str) -> None:
    """eps_c from 1e-4 to 10, tau from 1e-3 to 1e6: the whole grid, in one call."""
    source, target = banks(model)
    problem = transport.DenseProblem(
        cost_ST=transport.cost(source, target, "cosine"),
        weights_S=np.ones(1000),
        weights_T=np.ones(200),
        epsilon=1.0,
        tau_source=1.0,
        tau_target=1.0,
    )
    taus = 10.0 ** np.arange(-3, 7)
    grid = [(s, s * tau, s * tau) for s in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0) for tau in taus]
    assert all(plan.converged for plan in transport.solve_grid(problem, grid))


def test_agreement_with_pot() -> None:
    """POT's kernel-domain solver in float64, where it stays finite (eps_c = 0.1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot

    rng = np.random.default_rng(0)
    source, target = (
        ClassBank(rng.random((n, 16)), tuple(f"{i:03}" for i in range(n)), np.ones(n, int))
        for n in (60, 9)
    )
    ours = uot.score(source, target, uot.Settings(cost_scale=0.1), 0)
    theirs = ot.unbalanced.sinkhorn_knopp_unbalanced(
        np.ones(60),
        np.ones(9),
        transport.cost(source, target, "cosine") / 0.1,
        reg=1.0,
        reg_m=(1.0, 100.0),
        numItermax=10_000,
        stopThr=1e-14,
    )
    assert np.allclose(np.exp(ours.log_plan(slice(None))), theirs, rtol=1e-6, atol=0)
    assert np.argsort(ours.values).tolist() == np.argsort(theirs.sum(1)).tolist()
