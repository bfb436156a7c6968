"""All: keep every source class; the opposite baseline of `none`. K does not apply."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """The strategy ``all`` has no settings."""

    IGNORES_K: ClassVar = True


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """0 for every source class."""
    return Scores(values=np.zeros(len(source.means)))
