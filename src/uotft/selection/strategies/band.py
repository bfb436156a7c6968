"""Band: one of ``bands`` equal parts of UOT's ranking (Liu et al. 2022, section 4.4, figure 4b).

The paper splits ImageNet into ten subsets by their UOT score and reuses one at a time: band 0 holds
the classes nearest to the target, band 9 the farthest. K does not apply. The transport is that of
the strategy ``uot``, with its settings here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Scores
from uotft.selection.strategies import uot


class Settings(uot.Settings):
    """Settings of the strategy ``band``; the others are those of ``uot``."""

    bands: int = Field(10, ge=1, description="equal parts of the ranking")
    band: int = Field(0, ge=0, description="which part is kept; 0 is nearest to the target")

    @field_validator("band")
    @classmethod
    def _there(cls, value: int, info: ValidationInfo) -> int:
        if value >= info.data.get("bands", value + 1):
            raise ValueError(f"bands count from 0 to {info.data['bands'] - 1}")
        return value


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """UOT's score inside the band, -inf outside; equal scores go by row."""
    if settings.bands > len(source.means):
        raise UserError(
            f"selectors.band.bands: got {settings.bands}, but the source has only "
            f"{len(source.means)} classes, clusters or images; choose 1 to {len(source.means)}"
        )
    scores = uot.score(source, target, settings, seed)
    ranked = np.argsort(-scores.values, kind="stable")
    kept = np.array_split(ranked, settings.bands)[settings.band]
    values = np.full(len(ranked), -np.inf)
    values[kept] = scores.values[kept]
    return replace(scores, values=values, exact=True)
