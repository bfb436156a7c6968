"""Score quantile: one of several equal parts of UOT's ranking (Liu et al. 2022, section 4.4).

For figure 4b the paper splits ImageNet into ten subsets by their UOT score and reuses one at a
time. Quantile 0 holds the classes nearest to the target, quantile 9 the farthest. K does not apply.
The transport is that of the strategy ``uot``, with the settings given here.

Its old names still work in params.yaml: ``band``, with the settings ``bands`` and ``band``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Scores
from uotft.selection.strategies import uot

OLD_NAMES = {"bands": "quantiles", "band": "quantile"}


class Settings(uot.Settings):
    """Settings of the strategy ``score_quantile``; the others are those of ``uot``."""

    IGNORES_K: ClassVar = True

    quantiles: int = Field(10, ge=1, description="number of equal parts of the ranking")
    quantile: int = Field(
        0, ge=0, description="the part that is kept, counted from 0, the nearest to the target"
    )

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, raw: Any) -> Any:
        """Accept the old name of a setting, unless the new one is given too."""
        if not isinstance(raw, dict):
            return raw
        new = {old: name for old, name in OLD_NAMES.items() if name not in raw}
        return {new.get(name, name): value for name, value in raw.items()}

    @field_validator("quantile")
    @classmethod
    def _exists(cls, value: int, info: ValidationInfo) -> int:
        if value >= info.data.get("quantiles", value + 1):
            raise ValueError(f"quantiles count from 0 to {info.data['quantiles'] - 1}")
        return value


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """UOT's score inside the quantile, -inf outside; equal scores are ordered by row.

    More quantiles than rows is a ``UserError``.
    """
    if settings.quantiles > len(source.means):
        raise UserError(
            f"selectors.score_quantile.quantiles: got {settings.quantiles}, but the source has "
            f"only {len(source.means)} classes, clusters or images; choose 1 to "
            f"{len(source.means)}"
        )
    scores = uot.score(source, target, settings, seed)
    ranked = np.argsort(-scores.values, kind="stable")
    kept = np.array_split(ranked, settings.quantiles)[settings.quantile]
    values = np.full(len(ranked), -np.inf)
    values[kept] = scores.values[kept]
    return replace(scores, values=values)
