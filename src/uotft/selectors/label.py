"""Label selection: keep the source classes whose names say that they overlap with the target.

Liu et al. (2022), section 3.2. A class is kept when its name equals an entry of ``classes`` or
matches it as a shell pattern: "digit *" keeps digit zero to digit nine. It may keep fewer than K.
Where images are selected, the names are those of their classes.
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
    names = source.labels or source.names
    known = list(dict.fromkeys(names))
    for pattern in settings.classes:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(
                f"selectors.label.classes: {pattern!r} matches none of the {len(known)} "
                f"source classes, which are {', '.join(known[:8])}, ..."
            )
    match = [any(fnmatchcase(n, p) for p in settings.classes) for n in names]
    return Scores(values=np.where(match, 0.0, -np.inf))
