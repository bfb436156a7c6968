"""How often 95 % intervals of few seeds hold the true mean: Student's t and the BCa bootstrap.

    python experiments/intervals.py      # a minute

Prints the share of 2,000 samples whose interval holds it, for differences that are normal and for
some that are skewed (exponential). What the tables show, and from how many seeds a bootstrap stands
beside it (`statistics.FEWEST`), rests on this.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import bootstrap

from uotft.analysis import markdown
from uotft.analysis.statistics import RESAMPLES, interval

SAMPLES, SEEDS = 2000, (3, 5, 6, 8, 10, 12, 20, 30)


def holds(sample: np.ndarray, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether the t-interval and the bootstrap's hold zero, the true mean."""
    found = interval(sample.tolist())
    made = bootstrap((sample,), np.mean, n_resamples=RESAMPLES, rng=rng).confidence_interval
    return abs(found.mean) <= found.half, made.low <= 0 <= made.high


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    lines = [("seeds", "normal: t", "normal: BCa", "skewed: t", "skewed: BCa")]
    for n in SEEDS:
        normal = [holds(rng.normal(0, 1, n), rng) for _ in range(SAMPLES)]
        skewed = [holds(rng.exponential(1, n) - 1, rng) for _ in range(SAMPLES)]
        shares = 100 * np.concatenate([np.mean(normal, 0), np.mean(skewed, 0)])
        lines.append((str(n), *(f"{share:.1f}" for share in shares)))
    print(markdown.table(lines))


if __name__ == "__main__":
    main()
