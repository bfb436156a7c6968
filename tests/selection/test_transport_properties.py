"""Laws that every plan keeps, on small random class banks."""

import numpy as np
from hypothesis import given, settings, strategies as st

from uotft.core.records import ClassBank
from uotft.selection import transport
from uotft.selection.ranking import keep
from uotft.selection.strategies import uot


@st.composite
def banks(draw: st.DrawFn) -> tuple[ClassBank, ClassBank]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.tuples(st.integers(1, 12), st.integers(1, 6)))
    dimensions = draw(st.integers(2, 8))
    names = [tuple(f"c{i:02}" for i in range(n)) for n in sizes]
    return tuple(
        ClassBank(rng.normal(size=(n, dimensions)), name, np.ones(n, int))
        for n, name in zip(sizes, names, strict=True)
    )


def problem(
    pair: tuple[ClassBank, ClassBank], scale: float, **changes: float
) -> transport.DenseProblem:
    source, target = pair
    strengths = {"epsilon": 1.0, "tau_source": 1.0, "tau_target": 100.0} | changes
    return transport.DenseProblem(
        cost_ST=transport.cost(source, target, "cosine") / scale,
        weights_S=np.ones(len(source.means)),
        weights_T=np.ones(len(target.means)),
        **strengths,
    )


def shuffled(bank: ClassBank, random) -> tuple[ClassBank, list[int]]:
    """The same classes in another order, and that order."""
    order = list(range(len(bank.means)))
    random.shuffle(order)
    names = tuple(bank.names[i] for i in order)
    return ClassBank(bank.means[order], names, bank.counts[order]), order


scales = st.sampled_from([1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])


@given(banks(), scales)
def test_the_plan_meets_its_fixed_point_equations(pair, scale: float) -> None:
    p = problem(pair, scale)
    plan = transport.solve(p)
    assert plan.converged
    # log P = f + g - C / eps, with f = -tau log(P 1 / w) / eps at the optimum of (5), g likewise
    log_P = plan.log_plan_ST
    f = -(p.tau_source / p.epsilon) * np.logaddexp.reduce(log_P, axis=1)
    g = -(p.tau_target / p.epsilon) * np.logaddexp.reduce(log_P, axis=0)
    gap = log_P - (f[:, None] + g - p.cost_ST / p.epsilon)
    assert np.abs(gap).max() < 1e-5


@given(banks(), scales, st.randoms(use_true_random=False))
def test_permuting_source_classes_permutes_scores(pair, scale: float, random) -> None:
    source, target = pair
    moved, order = shuffled(source, random)
    config = uot.Settings(cost_scale=scale)
    scores, other = (uot.score(s, target, config, 0) for s in (source, moved))
    assert np.allclose(scores.values[order], other.values, atol=1e-6)


@given(banks(), scales, st.randoms(use_true_random=False))
def test_permuting_target_classes_changes_nothing(pair, scale: float, random) -> None:
    source, target = pair
    moved, _ = shuffled(target, random)
    config = uot.Settings(cost_scale=scale)
    scores = [uot.score(source, t, config, 0).values for t in (target, moved)]
    assert np.allclose(*scores, atol=1e-6)


@given(banks(), st.floats(0.01, 100))
def test_scaling_features_changes_nothing(pair, factor: float) -> None:
    source, target = pair
    scaled = ClassBank(source.means * factor, source.names, source.counts)
    scores = [uot.score(s, target, uot.Settings(), 0).values for s in (source, scaled)]
    assert np.allclose(*scores, atol=1e-6)


@given(banks(), scales)
def test_twins_tie(pair, scale: float) -> None:
    source, target = pair
    twins = ClassBank(
        np.vstack([source.means, source.means[:1]]),
        (*source.names, "twin"),
        np.append(source.counts, 1),
    )
    scores = uot.score(twins, target, uot.Settings(cost_scale=scale), 0).values
    assert np.isclose(scores[0], scores[-1], atol=1e-9)


@given(banks())
def test_k_classes_sit_inside_k_plus_one(pair) -> None:
    source, target = pair
    scores = uot.score(source, target, uot.Settings(), 0)
    kept = [keep(scores, source.names, k).tolist() for k in range(1, len(source.names) + 1)]
    assert all(more[:-1] == fewer for fewer, more in zip(kept, kept[1:], strict=False))


@settings(max_examples=30)
@given(banks())
def test_a_huge_target_strength_restores_the_target_marginal(pair) -> None:
    plan = transport.solve(problem(pair, 0.1, tau_target=1e7))
    assert np.allclose(np.exp(plan.log_plan_ST).sum(0), 1, atol=1e-4)
