"""Rows of finished trainings -> the text and the numbers in the files of a comparison.

`uotft compare` writes them to reports/, `uotft compare-runs --output FOLDER` to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from uotft.analysis import comparison, markdown, page, trials
from uotft.analysis.comparison import Row
from uotft.analysis.forecast_evaluation import Evaluation, Values
from uotft.analysis.gallery import Images
from uotft.analysis.page import Picture, Section, Text
from uotft.analysis.sections import ABOUT, sections
from uotft.analysis.trials import Line
from uotft.core.records import Trial


@dataclass(frozen=True)
class Report:
    """The comparison on one target: its rows, their table, its sections of the page, its text."""

    target: str
    rows: list[Line]
    table: list[Row]
    sections: list[Section]
    text: str

    @property
    def trainings(self) -> list[Trial]:
        """The trainings of all rows."""
        return [trial for row in self.rows for trial in row.trials.values()]

    @property
    def pictures(self) -> dict[str, bytes]:
        """{name: PNG} of the pictures that are also written as files."""
        parts = [part for section in self.sections for part in section.parts]
        return {part.name: part.png for part in parts if isinstance(part, Picture) and part.name}


def of_target(
    target: str,
    rows: list[Line],
    by: list[str],
    images: Images,
    forecast: Evaluation | None = None,
    about: tuple[str, ...] = (),
) -> Report:
    """Compare the rows of one target; ``by`` are the parameters that tell rows apart.

    ``about`` are notes on the data: what was left out, what looks wrong.
    """
    results = trials.results(rows)
    table = comparison.table(results, trials.baselines(rows))
    standing = comparison.standing(results, comparison.pairs(results))
    found = comparison.cautions(results, table)
    same, ended = trials.same_selections(rows), comparison.endings_of(target, table)
    text = (
        f"## {markdown.escaped(target)}\n\n{markdown.table(comparison.cells(table))}"
        + "".join(f"\n{markdown.escaped(note)}\n" for note in found)
        + (f"\n{markdown.items(ended)}" if ended else "")
        + f"\n{markdown.table(standing)}"
        + (f"\n{markdown.items(same)}" if same else "")
        + (forecast.text() if forecast else "")
        + (f"\n### {ABOUT}\n\n{markdown.items(about)}" if about else "")
    )
    parts = sections(target, rows, by, images, forecast, about)
    return Report(target, rows, table, parts, text)


def below(target: str, rows: list[Line], table: list[Row]) -> list[str]:
    """What a terminal shows below the table: the cautions of the files, each with its target."""
    lines = comparison.cautions(trials.results(rows), table) + trials.same_selections(rows)
    return [f"{target}: {line}" for line in lines]


def top1(rows: list[Line]) -> dict[str, Values]:
    """Top-1 of each row and seed, in %: at the last validation, and on the test part."""
    curves = {row.label: trials.curve(row) for row in rows}
    return {
        "validation": {label: values[max(values)] for label, values in curves.items()},
        "test": {
            row.label: {seed: t.test["top1"] for seed, t in row.trials.items()} for row in rows
        },
    }


def document(reports: list[Report]) -> str:
    """The tables of all targets in Markdown, and how to read them."""
    return "\n".join(report.text for report in reports) + f"\n{comparison.LEGEND}\n"


def html(reports: list[Report], notes: list[str] | None = None) -> str:
    """The page: the sections of all targets, then ``notes`` on how the runs were put into rows.

    With several targets each heading names its target.
    """
    parts = [
        replace(section, heading=f"{report.target}: {section.heading}")
        if len(reports) > 1
        else section
        for report in reports
        for section in report.sections
    ]
    if notes:
        parts.append(Section("These runs", [Text(f"{note}.") for note in notes]))
    title = f"uotft comparison: {', '.join(report.target for report in reports)}"
    return page.render(title, parts)


def row_notes(by: list[str], differ: list[str], older: int) -> list[str]:
    """Notes on how the runs were put into rows.

    ``by`` are the parameters that tell rows apart, ``differ`` all in which trainings differ,
    ``older`` is the number of trainings that a newer one replaces.
    """
    made = [f"rows are told apart by {', '.join(by)}"] if by else []
    if hidden := [name for name in differ if name not in by]:
        made.append(f"trainings of one row differ in {', '.join(hidden)}")
    if older:
        made.append(f"{older} left out: a newer training has the same row and seed")
    return made


def runs(reports: list[Report]) -> list[dict[str, Any]]:
    """The lines of runs.csv, one per training."""
    return [
        {
            "target": trial.target,
            "strategy": trial.strategy,
            "seed": trial.seed,
            "top1": trial.test["top1"],
            "mean_per_class": trial.test["mean_per_class"],
        }
        for report in reports
        for trial in report.trainings
    ]


def named_runs(reports: list[Report], by: list[str]) -> list[dict[str, Any]]:
    """The lines of `runs`, with each training's MLflow run and its values of ``by``."""
    trainings = [trial for report in reports for trial in report.trainings]
    return [
        line | {"run": trial.origin.run} | {name: trial.settings.get(name) for name in by}
        for line, trial in zip(runs(reports), trainings, strict=True)
    ]


def points(reports: list[Report]) -> list[dict[str, Any]]:
    """The lines of curves.csv, one per row and step: the mean validation top-1 over seeds."""
    return [
        {
            "target": report.target,
            "strategy": row.label,
            "step": step,
            "top1": round(value.mean, 4),
        }
        for report in reports
        for row in report.rows
        for step, value in trials.by_step(trials.curve(row)).items()
    ]


def summary(reports: list[Report]) -> dict[str, Any]:
    """{target: {row: numbers}}, the content of summary.json."""
    return {r.target: {row.strategy: _numbers(row) for row in r.table} for r in reports}


def lines(reports: list[Report]) -> list[dict[str, Any]]:
    """The lines of table.csv, one per row: its strategy, its settings and its numbers."""
    return [
        {"target": report.target, "strategy": line.strategy, **line.settings, **_numbers(row)}
        for report in reports
        for line, row in zip(report.rows, report.table, strict=True)
    ]


def _numbers(row: Row) -> dict[str, Any]:
    return {name: value for name, value in comparison.flat(row).items() if name != "strategy"}
