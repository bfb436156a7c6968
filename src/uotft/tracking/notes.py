"""A run's description in Markdown, which the MLflow page shows beside its metrics."""

from __future__ import annotations

from typing import Any

from uotft.core.records import Cell

MOST = 12  # classes in the table; an artifact of the run has all of them


def kept(cell: Cell, source: str, selection: dict[str, Any]) -> str:
    """A selection (the content of selection.json) as a sentence and a small table."""
    classes, most = selection["classes"], min(MOST, len(selection["classes"]))
    said = (
        f"**{cell.strategy}** keeps {len(classes)} of {len(selection['scores'])} of *{source}* "
        f"for *{cell.target}*, seed {cell.seed}."
    )
    if not classes:
        return said
    rows = [f"| {c['rank']} | {_cell(c['name'])} | {c['score']:.4g} |" for c in classes[:most]]
    table = "\n".join(["| rank | class | score |", "| --- | --- | --- |", *rows])
    more = f"\n\nThe first {most}; `selected_classes.json` has all." if most < len(classes) else ""
    return f"{said}\n\n{table}{more}"


def _cell(text: str) -> str:
    """A class name that cannot break the table."""
    return text.replace("|", "\\|").replace("\n", " ")
