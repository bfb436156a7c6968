"""Manual selection: the classes listed in a file, one per line, best first.

Empty lines and lines that start with # are skipped. A line is a class name as the source bank
spells it, which may be a WordNet id.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

import numpy as np
from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the strategy ``manual``."""

    FILES: ClassVar = ("file",)
    IGNORES_K: ClassVar = True

    file: str = Field("", description="path of a text file with one class name per line")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """0, -1, -2, … for the listed classes in order, -inf for all others.

    A missing or unreadable file, an unknown class and a repeated one are each a ``UserError``.
    """
    if not settings.file:
        raise UserError(
            "selectors.manual.file: missing; give a text file with one class name per line"
        )
    path = Path(settings.file)
    try:
        text = normalize("NFC", path.read_text(encoding="utf-8-sig"))
        lines = [line.strip() for line in text.splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"selectors.manual.file: {path} cannot be read ({error})") from error
    rows = {normalize("NFC", name): row for row, name in enumerate(source.names)}
    values = np.full(len(source.names), -np.inf)
    wanted = [(n, line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not wanted:
        raise UserError(f"selectors.manual.file: {path} names no class")
    for place, (number, name) in enumerate(wanted):
        if name not in rows:
            near = get_close_matches(name, source.names, 3)
            raise UserError(
                f"{path}, line {number}: {name!r} is not one of the {len(rows)} source classes"
                + (f"; did you mean {', '.join(near)}?" if near else "")
            )
        if np.isfinite(values[rows[name]]):
            raise UserError(f"{path}, line {number}: {name!r} is listed twice")
        values[rows[name]] = -place
    return Scores(values=values)
