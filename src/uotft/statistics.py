"""Means with 95 % intervals over seeds, and paired differences (Student's t)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """``mean`` +- ``half`` at 95 % from ``n`` seeds; ``half`` is NaN for fewer than two."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}"

    def signed(self) -> str:
        """With an explicit sign, for differences."""
        return f"{self.mean:+.2f} ± {self.half:.2f}"


def interval(values: list[float]) -> Interval:
    """The mean of ``values`` with its 95 % t-interval."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)), float("nan"), n)
    half = t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(float(np.mean(values)), float(half), n)


def paired(values: dict[int, float], baseline: dict[int, float]) -> Interval:
    """The mean difference over the seeds that both have, with its 95 % paired t-interval."""
    seeds = sorted(values.keys() & baseline.keys())
    return interval([values[seed] - baseline[seed] for seed in seeds])
