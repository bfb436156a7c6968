"""Prints every table on standard output."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    title: str = "",
    text_columns: int | None = None,
    lines_after: Container[int] = (),
) -> None:
    """Print a table as wide as the terminal, or ``width`` characters wide into a file or pipe.

    The first ``text_columns`` columns are left-aligned, the others right-aligned; without a number,
    all are left-aligned. A line separates each row number in ``lines_after`` from the next row.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, title=title or None)
    if text_columns is not None:
        for column in table.columns[text_columns:]:
            column.justify = "right"
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=number in lines_after)
    # markup off: names in [brackets] are printed as they are
    Console(width=None if sys.stdout.isatty() else width, markup=False).print(table)
