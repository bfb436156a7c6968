"""Manual selection: the classes that a file names, one a line, best first.

Empty lines and lines that start with # are left out. A WordNet id or a name serves, as the source
bank has it.
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

    file: str = Field("", description="path of a text file, one class name a line")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """Minus the line's place in the list for a class that is named, -inf for all others."""
    if not settings.file:
        raise UserError("selectors.manual.file: missing; name a text file, one class name a line")
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
                + (f"; close are {', '.join(near)}" if near else "")
            )
        if np.isfinite(values[rows[name]]):
            raise UserError(f"{path}, line {number}: {name!r} stands there twice")
        values[rows[name]] = -place
    return Scores(values=values, exact=True)
