"""Greedy OT (Cui et al. 2018): score each source class by its own EMD to the whole target.

A single source point sends its mass to all target classes, so this EMD is the mean distance to
them. Classes are scored independently: a class near all target classes beats a class that is very
near one.
"""

from __future__ import annotations

from pydantic import Field

from uotft.core.records import ClassBank, Scores, Settings as BaseSettings
from uotft.selection import transport


class Settings(BaseSettings):
    """Settings of the strategy ``greedy_ot``."""

    metric: transport.Metric = Field("l2", description="cost between class means; l2 in the paper")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """Minus the mean cost to the target classes."""
    return Scores(
        values=-transport.by_row(source, target, settings.metric, lambda cost_ST: cost_ST.mean(1))
    )
