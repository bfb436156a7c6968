"""Tables of text -> Markdown."""

from __future__ import annotations


def table(rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown; the first row is its header."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
