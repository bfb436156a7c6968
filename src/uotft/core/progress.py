"""A progress bar on standard error, for work that takes more than a moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from uotft.core import messages

T = TypeVar("T")


def track(items: Iterable[T], label: str) -> Iterable[T]:
    """``items``, with a progress bar named ``label`` while they are consumed; no bar with -q."""
    if messages.are_quiet():
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, label, console=Console(stderr=True), transient=True)
