"""What a run says of itself in words: Markdown, which the MLflow page shows beside its numbers."""

from __future__ import annotations

from typing import Any

from uotft.core.records import Cell

ACCURACIES = ("val/", "test/")  # how the names of those metrics start
MOST = 12  # classes in the table; all of them are an artifact of the run


def kept(cell: Cell, source: str, selection: dict[str, Any]) -> str:
    """A selection (the content of selection.json) in a sentence and a small table."""
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


def measured(accuracies: dict[str, float]) -> str:
    """A run's accuracies in a line."""
    return ", ".join(f"{name} {value:.2f} %" for name, value in sorted(accuracies.items()))


def _cell(text: str) -> str:
    """A class name that does not end its cell."""
    return text.replace("|", "\\|").replace("\n", " ")
