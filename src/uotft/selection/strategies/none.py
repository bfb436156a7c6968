"""None: keep no source class. This is plain fine-tuning, the baseline of every comparison."""

from __future__ import annotations

import numpy as np

from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """The strategy ``none`` has no settings."""


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """-inf for every source class."""
    return Scores(values=np.full(len(source.means), -np.inf))
