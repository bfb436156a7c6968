"""Nearest: score each source class by its distance to the closest target class.

Liu et al. (2022) do not compare with this rule. On the paper's class means it finds as many of the
expected bird classes as UOT.
"""

from __future__ import annotations

from pydantic import Field

from uotft.core.records import ClassBank, Scores, Settings as BaseSettings
from uotft.selection import transport


class Settings(BaseSettings):
    """Settings of the strategy ``nearest``."""

    metric: transport.Metric = Field("cosine", description="cost between class means")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """Minus the smallest cost to any target class."""
    return Scores(
        values=-transport.by_row(source, target, settings.metric, lambda cost_ST: cost_ST.min(1))
    )
