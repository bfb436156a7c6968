"""Random selection: classes drawn uniformly, anew for every seed (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

import numpy as np

from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """The strategy ``random`` has no settings; its draw follows the seed of the run."""


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """A uniform random score for every source class."""
    return Scores(values=np.random.default_rng(seed).random(len(source.means)))
