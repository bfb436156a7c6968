"""A progress bar on standard error, for work that takes more than a moment."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from operator import length_hint
from time import monotonic
from typing import TypeVar

from uotft.core import messages

T = TypeVar("T")
WARM_UP = 3  # items that are slower than the rest
MEASURED_S = 5.0  # how long is measured
WORTH_S = 60.0  # what takes less is not announced

logger = logging.getLogger(__name__)


def track(items: Iterable[T], label: str) -> Iterable[T]:
    """``items``, with a progress bar named ``label`` while they are consumed; no bar with -q.

    Says once, after the first ones, how long the rest takes.
    """
    if messages.are_quiet():
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    total, console = length_hint(items), Console(stderr=True)
    counted = estimated(items, label, total) if total else items
    return rich_track(counted, label, total or None, console=console, transient=True)


def estimated(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """``items``, of which there are ``total``; logs how long the rest takes if it is long.

    Measured from the end of a warm-up, for some seconds.
    """
    began, is_said = 0.0, False
    for done, item in enumerate(items):
        if done == WARM_UP:
            began = monotonic()
        elif done > WARM_UP and not is_said and (passed := monotonic() - began) >= MEASURED_S:
            is_said = True
            left = passed / (done - WARM_UP) * (total - done)
            if left >= WORTH_S:
                logger.info("%s: about %s to go on this machine (%s of %s are done)",
                            label, duration(left), f"{done:,}", f"{total:,}")  # fmt: skip
        yield item


def duration(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
