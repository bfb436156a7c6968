"""What MLflow's pages show of a run at first sight: its description, its source, short texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uotft.core.records import Cell

MOST = 12  # classes in the table; an artifact of the run has all of them
NAMED, LENGTH = 5, 80  # classes in a parameter, and characters of each
SOURCE = "mlflow.source.name"  # the tag in the column Source, which the list of runs always shows
NONE = "-"  # the value of a setting that the run's strategy does not have
CLASSES = "strategy.classes"  # the parameter with the kept classes as a line


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


def classes(names: Sequence[str], unit: str = "class") -> str:
    """The kept classes or clusters as a line; an artifact of the run has the whole list."""
    more_than_one = "es" if unit.endswith("s") else "s"
    said = f"{len(names)} {unit}{'' if len(names) == 1 else more_than_one}"
    first = [" ".join(name.split())[:LENGTH] for name in names[:NAMED]]
    more = ["…"] if len(names) > NAMED else []
    return f"{said}: {', '.join(first + more)}" if names else said


def lacking(own: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The numbers among the settings of other strategies that one lacks, as text that is none.

    MLflow's parallel coordinates draw a run without a number at the greatest value plus 0.01. Once
    one value is a text, they draw the values as texts.
    """
    return {
        name: NONE
        for settings in others
        for name, value in settings.items()
        if name not in own and isinstance(value, int | float) and not isinstance(value, bool)
    }


def headline(strategy: str, seed: str, part: str = "", top1: float = 0.0) -> str:
    """What the list of runs shows as a run's source: accuracy of a part, strategy and seed.

    The column shows about eight characters; the run's name has strategy and seed, too.
    """
    said = f"{strategy}, seed {seed}"
    if not part:
        return said
    return f"{top1:.2f} % test ({said})" if part == "test" else f"{part} {top1:.2f} % ({said})"


def _cell(text: str) -> str:
    """A class name that cannot break the table."""
    return text.replace("|", "\\|").replace("\n", " ")
