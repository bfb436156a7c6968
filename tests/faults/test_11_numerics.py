"""Fault 11: equation (5) with numbers that break solvers: ε_c from 1e-4 to 10, τ from 1e-3 to 1e6
and ∞, zero, equal and NaN means, one class, bad weights, three solvers.

Expected: a finite plan that meets the optimality conditions to 1e-6 and has the reference's
ranking, or a typed error.

The conditions are computed here from the plan's potentials. The reference is an independent solver
in float64, in the log domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
from scipy.special import logsumexp

from support.paper_means import MODELS, PAPER, banks, needs_paper
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ClassBank
from uotft.pipeline import select
from uotft.selection import ranking, transport
from uotft.selection.banks import BadBank, brought, write
from uotft.selection.strategies import uot

SCALES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # eps_c
TAUS = (*(10.0 ** np.arange(-3, 7)), np.inf)
Solution = tuple[np.ndarray, np.ndarray]  # log P1 (S,), potentials g (T,)


def bank(means: list[list[float]] | np.ndarray) -> ClassBank:
    names = tuple(f"class {i}" for i in range(len(means)))
    return ClassBank(np.array(means, float), names, np.ones(len(means), int))


def random_bank(rng: np.random.Generator, *shape: int) -> ClassBank:
    return bank(rng.normal(size=shape))


def reference(
    cost: np.ndarray, tau_S: float, tau_T: float, g: np.ndarray, tolerance: float = 1e-11
) -> Solution | None:
    """Sweeps, and Newton steps on log marginals where they help, all by logsumexp; unit weights.

    ``cost`` is over epsilon, tau too. Nothing comes back if it does not converge.
    """
    kappa, pull = 1 / (1 + 1 / tau_S), 1 / tau_T

    def at(g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        f = -kappa * logsumexp(g - cost, axis=1)
        log_plan = f[:, None] + g - cost
        return log_plan, logsumexp(log_plan, axis=0), -pull * g - logsumexp(log_plan, axis=0)

    log_plan, log_column, miss = at(g)
    floor = max(tolerance, 8 * np.finfo(float).eps * np.abs(g).max())
    for sweep in range(400):
        if np.abs(miss).max() <= floor:
            return logsumexp(log_plan, axis=1), g
        if sweep % 2:
            g = g + miss / (1 + pull)
        else:
            by_row = np.exp(log_plan - logsumexp(log_plan, axis=1, keepdims=True))
            by_column = np.exp(log_plan - log_column)
            slope = (1 + pull) * np.eye(len(g)) - kappa * by_column.T @ by_row
            step, before = np.linalg.solve(slope, miss), np.abs(miss).max()
            shares = (share for share in 0.5 ** np.arange(12))
            found = next((s for s in shares if np.abs(at(g + s * step)[2]).max() < before), 0.0)
            g = g + found * step
        log_plan, log_column, miss = at(g)
        floor = max(tolerance, 8 * np.finfo(float).eps * np.abs(g).max())
    return None


def references(cost: np.ndarray, tau_S: float, tau_T: float) -> dict[float, Solution]:
    """{eps_c: solution}: of the largest from zero, of each other from a larger one."""
    g, found = np.zeros(cost.shape[1]), {}
    ladder = 10.0 ** np.arange(1, -4.01, -0.25)
    last = ladder[0]
    for scale in ladder:
        g = g * last / scale
        solution = reference(cost / scale, tau_S, tau_T, g)
        if solution is None:
            return found
        last, g = scale, solution[1]
        nearest = min(SCALES, key=lambda s: abs(np.log(s / scale)))
        if abs(np.log(nearest / scale)) < 1e-9:
            found[nearest] = solution
    return found


def kkt(plan: transport.Plan) -> float:
    """The largest miss of log marginals by the potentials, from log P itself."""
    p, log_P = plan.problem, plan.log_plan_ST
    misses = [
        logsumexp(log_P, axis=axis) - np.log(weights) + p.epsilon / tau * potential
        for axis, weights, tau, potential in (
            (1, p.weights_S, p.tau_source, plan.f_S),
            (0, p.weights_T, p.tau_target, plan.g_T),
        )
    ]
    return float(max(np.abs(miss).max() for miss in misses))


def cases(trials: Callable[[int, int], int]) -> Iterator[tuple[str, ClassBank, ClassBank]]:
    """Pairs of banks: random ones, one with duplicates, one class on either side, the paper's."""
    rng = np.random.default_rng(0)
    yield "random", random_bank(rng, 60, 16), random_bank(rng, 9, 16)
    twice = rng.normal(size=(20, 8))
    yield "duplicates", bank(np.vstack([twice, twice])), bank(np.vstack([twice[:3], twice[:3]]))
    if trials(0, 1):
        yield "one source class", random_bank(rng, 1, 8), random_bank(rng, 6, 8)
        yield "one target class", random_bank(rng, 30, 8), random_bank(rng, 1, 8)
        yield "one of each", random_bank(rng, 1, 8), random_bank(rng, 1, 8)
        yield "dense cloud", bank(1 + 1e-4 * rng.normal(size=(80, 8))), random_bank(rng, 10, 8)
        for model in MODELS if PAPER.is_dir() else ():
            yield (model, *banks(model))


def test_every_strength_on_every_bank(
    trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """eps_c of 1e-4 to 10, both tau of 1e-3 to 1e6, and an infinite one on the target's side."""
    worst, apart, plans, compared, missing = 0.0, 0.0, 0, 0, []
    for name, source, target in cases(trials):
        cost = transport.cost(source, target, "cosine")
        shape = {"weights_S": np.ones(len(cost)), "weights_T": np.ones(cost.shape[1])}
        every = [(tau if tau < np.inf else 1.0, tau) for tau in TAUS]
        for tau_S, tau_T in [*every, (1.0, 100.0)] if trials(0, 1) else every[::-3]:
            found = references(cost, tau_S, tau_T)
            for scale in SCALES:
                strengths = {"epsilon": scale, "tau_source": scale * tau_S}
                problem = transport.DenseProblem(
                    cost, **shape, **strengths, tau_target=scale * tau_T
                )
                plan = transport.solve(problem).check(f"{name} {scale} {tau_S} {tau_T}")
                assert np.isfinite(plan.log_plan_ST).all()
                miss = kkt(plan)
                assert miss < 1e-6, (name, scale, tau_S, tau_T, miss)
                worst, plans = max(worst, miss), plans + 1
                if scale not in found:
                    missing.append((name, scale, tau_S, tau_T))
                    continue
                right = found[scale][0]
                apart = max(apart, float(np.abs(right - plan.log_mass_S).max()))
                assert np.allclose(plan.log_mass_S, right, atol=1e-6), (name, scale, tau_S, tau_T)
                kept = ranking.keep(_scores(plan), source.names, min(100, len(right)))
                # the same order, up to classes that tie: theirs differ by rounding alone
                assert (np.diff(right[kept]) <= 1e-8).all(), (name, scale, tau_S, tau_T)
                left = np.delete(right, kept)
                assert not len(left) or left.max() <= right[kept].min() + 1e-8
                compared += 1
    assert compared >= 0.95 * plans, missing
    measured(
        f"{plans} of {plans} plans finite, KKT residual at most {worst:.1e}; the top 100 "
        f"those of the reference, in order, in {compared} of {compared} that it solves, "
        f"log P1 within {apart:.1e}"
    )


def _scores(plan: transport.Plan):  # noqa: ANN202
    from uotft.core.records import Scores

    return Scores(plan.log_mass_S)


@pytest.mark.parametrize("solver", ["dense", "blocks", "pot"])
def test_whatever_is_asked_for_there_is_a_right_ranking_or_an_error(
    solver: str, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """Through the strategy itself: a solver that is wrong must say so, POT's too."""
    rng = np.random.default_rng(3)
    source, target = random_bank(rng, 40, 8), random_bank(rng, 7, 8)
    cost = transport.cost(source, target, "cosine")
    right, refused = 0, 0
    methods = {"pot": ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant")}
    grid = product(TAUS[:: trials(5, 1)], methods.get(solver, ("sinkhorn",)))
    for tau, method in grid:
        found = references(cost, 1.0, tau)
        for scale in SCALES:
            words = {"cost_scale": scale, "tau_target": tau, "pot_method": method}
            settings = uot.Settings(solver=solver, **words)
            try:
                values = uot.score(source, target, settings, 0).values
            except transport.NotConverged:
                assert solver == "pot", "ours solve all"
                refused += 1
                continue
            assert np.allclose(values, found[scale][0], atol=1e-6)
            right += 1
    assert right
    measured(f"{right} of {right} rankings right, {refused} refused as not converged")


VALID = {"cost_scale": 0.01, "epsilon": 1.0, "tau_source": 1.0, "tau_target": 100.0}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "1"])
def test_strengths_that_mean_nothing_are_refused(name: str, value: object) -> None:
    from uotft.core import config

    if (name, value) == ("tau_target", np.inf):
        config.strategy_settings("uot", {name: value})
        return
    with pytest.raises(UserError, match=name):
        config.strategy_settings("uot", {name: value})


def test_an_infinite_tau_target_is_written_as_json(tmp_path) -> None:  # noqa: ANN001
    rng = np.random.default_rng(0)
    for name, n in (("s", 12), ("t", 3)):
        write(tmp_path / f"{name}.npz", random_bank(rng, n, 4))
    paths = [str(tmp_path / name) for name in ("s.npz", "t.npz", "made.json")]
    request = select.bank_request("uot", {"tau_target": np.inf}, {"top_k": 3})
    select.select_banks(select.BankFiles(*paths), request)
    assert storage.read_json(tmp_path / "made.json")["settings"]["tau_target"] == "inf"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_S": np.array([1, 0, 1.0])}, "weights of the source must all be above zero"),
        ({"weights_T": np.array([1, np.nan])}, "weights of the target must all be above zero"),
        ({"weights_T": np.array([1, np.inf])}, "weights of the target must all be above zero"),
        ({"tau_source": np.inf, "tau_target": np.inf}, "are both infinite: no plan meets both"),
    ],
)
def test_problems_without_a_plan_have_a_typed_error(changes: dict, message: str) -> None:
    shared = {"weights_S": np.ones(3), "weights_T": np.ones(2), "epsilon": 1e-4}
    shared |= {"tau_source": 1.0, "tau_target": 1.0, **changes}
    with pytest.raises(transport.BadProblem, match=message):
        transport.solve(transport.DenseProblem(np.random.default_rng(0).random((3, 2)), **shared))


@pytest.mark.parametrize("counts", [[3, 0, 2], [1, np.nan, 2], [1, -4, 2]])
def test_classes_without_images_have_no_weight(counts: list) -> None:
    source = bank([[1, 0], [0, 1], [1, 1]])
    source = ClassBank(source.means, source.names, np.array(counts))
    with pytest.raises(UserError, match=r"class 'class 1' \(row 1\) has no images"):
        uot.score(source, bank([[1, 0]]), uot.Settings(weights="counts"), 0)


def test_counts_that_are_no_numbers(tmp_path) -> None:  # noqa: ANN001
    np.savez(tmp_path / "a.npz", means=np.eye(2), counts=np.array(["1", "2"]))
    with pytest.raises(BadBank, match="counts is an array of type <U1; it must hold numbers"):
        brought(str(tmp_path / "a.npz"))


# ---- what stood in other files


def random_problem(classes: int, targets: int, **strengths: float) -> transport.DenseProblem:
    rng = np.random.default_rng(1)
    source, target = (random_bank(rng, n, 6) for n in (classes, targets))
    return transport.DenseProblem(
        cost_ST=transport.cost(source, target, "cosine"),
        weights_S=np.ones(classes),
        weights_T=np.ones(targets),
        **strengths,
    )


@pytest.mark.parametrize(
    ("means", "metric", "message"),
    [
        ([[1, 0], [np.nan, 0]], "l2", r"'class 1' \(row 1\).*NaN"),
        ([[1, 0], [np.inf, 0]], "cosine", r"row 1.*infinite"),
        ([[0, 0], [1, 0]], "cosine", r"row 0.*zero"),
        ([[1, 0, 0]], "cosine", "3 features and target of 2"),
    ],
)
def test_bad_means_are_refused(means: list, metric: transport.Metric, message: str) -> None:
    with pytest.raises(UserError, match=message):
        transport.cost(bank(means), bank([[1, 1]]), metric)


def test_a_solver_that_stops_early_is_an_error_not_a_ranking() -> None:
    hasty = uot.Settings(max_iterations=2)
    with pytest.raises(transport.NotConverged, match="after 2 sweeps.*raise max_iterations"):
        uot.score(bank([[1, 0], [0, 1]]), bank([[1, 1], [1, 0]]), hasty, 0)


@pytest.mark.parametrize("cost_scale", [1e-4, 1e-2, 1.0, 10.0])
def test_any_cost_scale_gives_finite_scores(cost_scale: float) -> None:
    rng = np.random.default_rng(0)
    source, target = bank(rng.normal(size=(30, 8)).tolist()), bank(rng.normal(size=(5, 8)).tolist())
    assert np.isfinite(
        uot.score(source, target, uot.Settings(cost_scale=cost_scale), 0).values
    ).all()


def test_no_setting_of_the_grid_fails() -> None:
    """eps_c from 1e-4 to 10, both tau from 1e-3 to 1e6, on a cost that no kernel survives."""
    taus = 10.0 ** np.arange(-3, 7, 1.5)
    for scale in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0):
        problem = random_problem(60, 12, epsilon=1.0, tau_source=1.0, tau_target=1.0)
        grid = [(scale, scale * a, scale * b) for a in taus for b in taus]
        for plan in transport.solve_grid(problem, grid):
            assert plan.converged, plan.problem
            assert np.isfinite(plan.log_mass_S).all()


def test_a_cost_that_is_not_finite_is_never_a_plan() -> None:
    problem = random_problem(5, 3, epsilon=0.1, tau_source=0.1, tau_target=0.1)
    problem.cost_ST[2, 1] = np.nan
    plan = transport.solve(problem)
    assert not plan.converged
    with pytest.raises(transport.NotConverged):
        plan.check("")


def test_pot_can_be_chosen_and_is_checked() -> None:
    """Right where POT is right; where it returns another plan without a word, an error."""
    rng = np.random.default_rng(0)
    source, target = bank(rng.normal(size=(30, 8)).tolist()), bank(rng.normal(size=(5, 8)).tolist())
    ours = uot.score(source, target, uot.Settings(cost_scale=0.1), 0)
    theirs = uot.score(source, target, uot.Settings(cost_scale=0.1, solver="pot"), 0)
    assert np.allclose(ours.values, theirs.values, atol=1e-7)
    assert theirs.facts["solver"] == "pot"
    for wrong in (
        uot.Settings(cost_scale=1e-4, solver="pot"),  # not finite
        uot.Settings(
            cost_scale=0.1, solver="pot", pot_method="sinkhorn_translation_invariant"
        ),  # twice the mass
    ):
        with pytest.raises(transport.NotConverged, match="choose solver: auto"):
            uot.score(source, target, wrong, 0)


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
