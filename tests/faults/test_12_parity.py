"""Fault 12: not a fault but the measure of parity: table 4 of Liu et al. (2022), from the paper's
own class means.

Expected: 98.31 % of birds with the supervised model and 93.22 % with MoCo-v2; the same 100 classes
as plain sweeps in the log domain.

POT, and the sweeps written here, are independent oracles.
"""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logsumexp

from support.paper_means import BIRDS, banks, needs_paper
from uotft.core.records import ClassBank
from uotft.selection import transport
from uotft.selection.ranking import keep
from uotft.selection.strategies import greedy_ot, nearest, uot


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
def test_bird_recall(
    model: str, module, settings: dict, recall: float, measured: Callable[[str], None]
) -> None:
    source, target = banks(model)
    scores = module.score(source, target, module.Settings(**settings), 0)
    found = BIRDS & set(keep(scores, source.names, 100).tolist())
    assert round(100 * len(found) / 59, 2) == recall
    how = ", ".join(map(str, (module.__name__.rpartition(".")[2], *settings.values(), model)))
    measured(f"{how}: {len(found)} of 59 birds, {100 * len(found) / 59:.2f} %")


@needs_paper
@pytest.mark.parametrize(("model", "recall"), [("supervised", 98.31), ("moco", 93.22)])
def test_the_top_100_are_those_of_plain_sweeps_in_the_log_domain(
    model: str, recall: float, measured: Callable[[str], None]
) -> None:
    """eps_c = 0.01, tau = (1, 100): 200 sweeps by logsumexp in float64, and nothing else."""
    source, target = banks(model)
    unit = [b.means / np.linalg.norm(b.means, axis=1, keepdims=True) for b in (source, target)]
    cost, g = (1 - unit[0] @ unit[1].T) / 0.01, np.zeros(len(target.names))
    for _ in range(200):
        f = -1 / 2 * logsumexp(g - cost, axis=1)
        g = -100 / 101 * logsumexp(f[:, None] - cost, axis=0)
    f = -1 / 2 * logsumexp(g - cost, axis=1)
    right = logsumexp(f[:, None] + g - cost, axis=1)
    ours = uot.score(source, target, uot.Settings(), 0)
    kept = keep(ours, source.names, 100).tolist()
    assert kept == np.argsort(-right, kind="stable")[:100].tolist()
    assert round(100 * len(BIRDS & set(kept)) / 59, 2) == recall
    difference = np.abs(ours.values - right).max()
    assert difference < 1e-8
    measured(f"100 of 100 in the same order, {recall} % of birds, log P1 within {difference:.0e}")


@needs_paper
@pytest.mark.parametrize("solver", ["blocks", "pot"])
def test_every_solver_finds_the_same_birds(solver: str) -> None:
    source, target = banks("supervised")
    ours, theirs = (
        uot.score(source, target, uot.Settings(solver=name), 0).values for name in ("auto", solver)
    )
    assert np.allclose(ours, theirs, atol=1e-7)


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
