"""Random selection: a new uniform sample of classes per seed (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

import numpy as np

from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """The strategy ``random`` has no settings; its sample follows from the run's seed."""


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """A uniform random score for every source class."""
    return Scores(values=np.random.default_rng(seed).random(len(source.means)))
