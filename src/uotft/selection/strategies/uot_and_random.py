"""UOT and random: the two orders take turns, so half of the kept classes are near, half random.

A control, not of Liu et al. (2022): it asks whether classes that are all near the target leave out
what far ones add. The transport is that of the strategy ``uot``, with the settings given here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from uotft.core.records import ClassBank, Scores
from uotft.selection.strategies import random, uot


class Settings(uot.Settings):
    """Settings of the strategy ``uot_and_random``: those of ``uot``."""


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """0, -1, -2, … in the order of turns: UOT's best class, a random one, UOT's next, …

    A class that both orders choose is taken once, and the order whose turn it is goes on to its
    next class. The random order is that of the strategy ``random`` with this seed. There is no
    transport plan: half of the classes are kept for no mass.
    """
    near = uot.score(source, target, settings, seed)
    sampled = random.score(source, target, random.Settings(), seed)
    orders = [iter(np.argsort(-own.values, kind="stable")) for own in (near, sampled)]
    places: dict[int, int] = {}
    for turn in range(len(near.values)):
        row = next(int(row) for row in orders[turn % 2] if row not in places)
        places[row] = turn
    values = np.empty(len(places))
    values[[*places]] = [-place for place in places.values()]
    return replace(near, values=values, log_plan=None)
