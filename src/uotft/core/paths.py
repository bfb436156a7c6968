"""Paths in params.yaml: one rule, for data sets, weights, tables and lists alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uotft.core.errors import UserError

WORDS = ("", "download", "none")  # that stand where a path might


def located(root: Path, text: str) -> Path:
    """Where the path ``text`` of params.yaml leads: a relative one starts at the project ``root``.

    ``~`` is the user's home; an error where the user has none.
    """
    try:
        return root / Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: this user has no home: write the whole path") from error


def with_files(settings: Any, root: Path) -> Any:
    """The settings of a section with the paths of its ``FILES`` made whole."""
    named = {name: getattr(settings, name) for name in getattr(settings, "FILES", ())}
    whole = {n: str(located(root, text)) for n, text in named.items() if text not in WORDS}
    return settings.model_copy(update=whole)
