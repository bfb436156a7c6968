"""Label selection: keep the source classes whose names say that they overlap with the target.

Liu et al. (2022), section 3.2. A class is kept when its name equals an entry of ``classes`` or
matches it as a shell pattern: "digit *" keeps digit zero to digit nine. It may keep fewer than K.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
from pydantic import Field

from uotft.errors import UserError
from uotft.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the strategy ``label``."""

    classes: list[str] = Field(["digit *"], min_length=1, description="names or shell patterns")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """0 for a class that matches, -inf for all others."""
    for pattern in settings.classes:
        if not any(fnmatchcase(name, pattern) for name in source.names):
            raise UserError(
                f"selectors.label.classes: {pattern!r} matches none of the {len(source.names)} "
                f"source classes, which are {', '.join(source.names[:8])}, ..."
            )
    match = [any(fnmatchcase(n, p) for p in settings.classes) for n in source.names]
    return Scores(values=np.where(match, 0.0, -np.inf))
