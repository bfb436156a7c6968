"""Pieces of messages: counts with their noun, and lists that are cut after a few entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

FEW = 5  # entries that a message names; it counts the others


def plural(count: int, noun: str) -> str:
    """``1 file``, ``2,000 files``, ``2 classes``."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending * (count != 1)}"


def some(names: Iterable[str], most: int = FEW) -> str:
    """The first ``most`` names, and how many more there are: ``a, b and 7 more``."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def indented(lines: Iterable[str], most: int = FEW) -> str:
    """The first ``most`` lines below a message, each indented, and how many more there are."""
    every = list(lines)
    more = [f"and {len(every) - most} more"] if len(every) > most else []
    return "".join(f"\n  {line}" for line in [*every[:most], *more])


def counted(counts: Counter[str], noun: str, after: str = "") -> str:
    """``12 files AFTER: 7 .txt, 5 .mat``, the most frequent first."""
    each = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = some(f"{count:,} {name}" for name, count in each)
    return f"{plural(counts.total(), noun)}{after}: {names}"
