"""Tables of text -> Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown; the first row is its header."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(map(escaped, line))} |\n" for line in lines)


def items(texts: Iterable[str]) -> str:
    """A list in Markdown."""
    return "".join(f"- {escaped(text)}\n" for text in texts)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is in a table: no name starts a cell, code, formula or tag."""
    return re.sub(r"([|`$]|<(?=[A-Za-z/!]))", r"\\\1", " ".join(text.split("\n")))
