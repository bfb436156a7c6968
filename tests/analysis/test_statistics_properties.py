"""Laws of the intervals and tests that a table stands on."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import ttest_rel

from uotft.analysis.statistics import FEWEST, LEVEL, holm, interval, paired, resampled

accuracies = st.dictionaries(st.integers(0, 20), st.integers(0, 1000).map(lambda n: n / 10))
p_values = st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=30)


@given(accuracies, accuracies)
def test_differences_are_antisymmetric(a: dict, b: dict) -> None:
    if a.keys() & b.keys():
        there, back = paired(a, b), paired(b, a)
        assert there.mean == -back.mean
        assert (there.half, there.p()) == pytest.approx((back.half, back.p()), nan_ok=True)


@given(accuracies.filter(bool))
def test_identical_columns_are_no_difference(a: dict) -> None:
    found = paired(a, a)
    assert found.mean == 0
    assert found.p() == 1 if len(a) > 1 else np.isnan(found.p())


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=2, max_size=20))
def test_p_is_that_of_scipy_and_agrees_with_the_interval(pairs: list) -> None:
    a, b = (dict(enumerate(map(float, column))) for column in zip(*pairs, strict=True))
    found = paired(a, b)
    if found.half:
        assert found.p() == pytest.approx(ttest_rel([*a.values()], [*b.values()]).pvalue)
        assert (found.p() < LEVEL) == (abs(found.mean) > found.half)


@given(p_values)
def test_holm_raises_keeps_the_order_and_stays_below_bonferroni(p: list) -> None:
    before, after = np.array(p), np.array(holm(p))
    real = np.isfinite(before)
    assert np.array_equal(np.isnan(after), ~real)
    order = np.argsort(before[real])
    assert (np.diff(after[real][order]) >= 0).all(), "a smaller p stays the smaller one"
    assert (after[real] >= before[real]).all()
    assert (after[real] <= np.minimum(1, before[real] * real.sum())).all()
    assert real.sum() == 0 or after[real].min() == min(1, before[real].min() * real.sum())


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_interval_covers_what_it_should() -> None:
    """95 % of 2000 samples of six: within three standard errors of a share."""
    samples = np.random.default_rng(0).normal(1, 3, (2000, 6))
    found = [interval(sample.tolist()) for sample in samples]
    covered = np.mean([abs(v.mean - 1) <= v.half for v in found])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 2000))


@given(st.integers(FEWEST, 30), st.integers(0, 2**32))
def test_the_bootstrap_is_around_the_mean_and_scales(n: int, seed: int) -> None:
    a = dict(enumerate(np.random.default_rng(seed).normal(2, 1, n).tolist()))
    zero = dict.fromkeys(a, 0.0)
    low, high = resampled(a, zero)
    assert low < paired(a, zero).mean < high
    doubled = {k: 2 * v for k, v in a.items()}
    assert resampled(doubled, zero) == pytest.approx((2 * low, 2 * high))


def test_the_bootstrap_wants_seeds_enough() -> None:
    a = {seed: float(seed) for seed in range(FEWEST - 1)}
    assert np.isnan(resampled(a, dict.fromkeys(a, 0.0))).all()
    same = dict.fromkeys(range(FEWEST), 1.0)
    assert np.isnan(resampled(same, dict.fromkeys(same, 0.0))).all()
