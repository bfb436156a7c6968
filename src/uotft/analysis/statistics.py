"""Means with 95 % intervals over seeds, paired differences and their tests, and correlations.

Intervals and tests use Student's t, so the interval of a difference excludes zero exactly if its p
is below 0.05, unless it is the same on every seed: then there is no test. From `FEWEST` seeds on
there is a bootstrap interval too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uotft.core.records import Floats

RESAMPLES = 2000
LEVEL = 0.05
FEWEST = 10  # seeds for a bootstrap: with fewer its intervals are too short, docs/comparing.md
ROUNDING = 1e-9  # points; differences of equal counts of images vary by less


@dataclass(frozen=True)
class Interval:
    """``mean`` +- ``half`` at 95 % from ``n`` seeds; ``half`` is NaN for fewer than two."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.width()}"

    def signed(self) -> str:
        """The interval as text with an explicit sign, for differences."""
        return f"{self.mean:+.2f} ± {self.width()}"

    def width(self, digits: str = ".2f") -> str:
        """The half as text; a dash for one seed, which has no interval."""
        return format(self.half, digits) if np.isfinite(self.half) else "–"

    @property
    def constant(self) -> bool:
        """Whether two seeds or more all have the same value, as happens with few test images."""
        return self.half < ROUNDING

    def p(self) -> float:
        """Two-sided p of the t-test that the mean is zero.

        NaN without a test: for fewer than two seeds, and for a constant other than zero, which has
        no spread to hold the mean against.
        """
        from scipy.stats import t

        if self.constant:
            return 1.0 if abs(self.mean) < ROUNDING else float("nan")
        error = self.half / t.ppf(0.975, self.n - 1)
        return float(2 * t.sf(abs(self.mean) / error, self.n - 1))


def interval(values: list[float]) -> Interval:
    """The mean of ``values`` with its 95 % t-interval."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)), float("nan"), n)
    half = t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(float(np.mean(values)), float(half), n)


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a percentage that ``images`` test images measured (Wilson 1927).

    It tells what one model might reach on other images of the same kind; seeds play no part.
    """
    from scipy.stats import norm

    # the score interval: its middle is pulled towards 50 %, so it stays within 0 to 100 %
    z, p = float(norm.ppf(1 - LEVEL / 2)), share / 100
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * np.sqrt(p * (1 - p) / images + (z / (2 * images)) ** 2)
    return 100 * float(max(middle - half, 0)), 100 * float(min(middle + half, 1))


def paired(values: dict[int, float], baseline: dict[int, float]) -> Interval:
    """The mean difference over the seeds that both have, with its 95 % paired t-interval."""
    return interval(_differences(values, baseline))


def resampled(values: dict[int, float], baseline: dict[int, float]) -> tuple[float, float]:
    """The 95 % interval of the mean paired difference by the BCa bootstrap (Efron 1987).

    NaN for fewer than ``FEWEST`` seeds, or if all differences are equal.
    """
    from scipy.stats import bootstrap

    found = _differences(values, baseline)
    if len(found) < FEWEST or np.ptp(found) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    made = bootstrap((found,), np.mean, n_resamples=RESAMPLES, rng=rng).confidence_interval
    return float(made.low), float(made.high)


def holm(p: list[float]) -> list[float]:
    """p-values corrected for multiple testing (Holm 1979); NaN means no test and stays NaN."""
    values = np.array(p)
    order = np.argsort(values)  # NaN comes last
    tests = int(np.isfinite(values).sum())
    # the smallest of m p-values times m, the next times m - 1, ..., never falling
    raised = np.maximum.accumulate(values[order] * (tests - np.arange(len(values))))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(raised, 1)
    return corrected.tolist()


def _differences(values: dict[int, float], baseline: dict[int, float]) -> list[float]:
    return [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]


@dataclass(frozen=True)
class Correlation:
    """A correlation ``value`` over ``n`` points with its 95 % bootstrap interval over seeds.

    Value and interval are NaN for fewer than three points. The interval is also NaN for one seed.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "too few points"
        if not np.isfinite(self.low):
            return f"{self.value:+.2f} [too few seeds]"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def correlation(x: Floats, y: Floats, *, ranks: bool, pooled: bool) -> Correlation:
    """Pearson's correlation of ``x`` and ``y`` (cells, seeds), or with ``ranks`` Spearman's.

    With ``pooled`` each cell of each seed is a point, else each cell's mean over seeds.
    The bootstrap resamples whole seeds, because the cells of one seed share its images.
    """
    from scipy.stats import rankdata

    def of(seeds: NDArray[np.int64]) -> float:
        a, b = (v[:, seeds].ravel() if pooled else v[:, seeds].mean(1) for v in (x, y))
        a, b = (rankdata(v) if ranks else v for v in (a, b))
        a, b = a - a.mean(), b - b.mean()
        norm = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / norm) if len(a) > 2 and norm > 0 else float("nan")

    n, value = x.shape[1], of(np.arange(x.shape[1]))
    points = x.size if pooled else len(x)
    samples = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    several = n > 1 and np.isfinite(value)
    values = np.array([of(sample) for sample in samples] if several else [np.nan])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return Correlation(value, float(low), float(high), points)
