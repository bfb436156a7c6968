"""The commands uotft experiment …: the paper's tables and figures on the data that is here.

uotft experiment run table4 --dry-run
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uotft.cli.options import Expected, Jobs, LabelTable, Processes, workspace
from uotft.cli.tables import print_table

if TYPE_CHECKING:
    from uotft.analysis.experiments import Experiment

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="The paper's tables and figures, and beyond."
)


@app.command("list")
def list_() -> None:
    """Say which experiments there are: one a table or figure of the paper."""
    from uotft.analysis import paper_tables

    for name in paper_tables.names():
        typer.echo(f"{name:<17} {paper_tables.load(name).title}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="One of the list.")]) -> None:
    """Show an experiment's definition, and the paper's numbers where it has some."""
    from uotft.analysis import paper_tables

    shown = paper_tables.load(name)
    typer.echo(f"{shown.title}\n{shown.says}\n")
    typer.echo(f"backbone: {shown.backbone}\ntargets: {', '.join(shown.targets) or 'all'}")
    typer.echo(f"seeds: {shown.seeds}\n")
    for variation in shown.variations:
        typer.echo(f"{variation.label:<18} {variation.strategy} {' '.join(variation.overrides)}")
    for numbers, kind in ((shown.paper, ""), (shown.recalls, ", recall")):
        for target, values in numbers.items():
            line = ", ".join(f"{label} {value:.2f}" for label, value in values.items())
            typer.echo(f"the paper, {target}{kind}: {line}")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="One of the list.")],
    on: Annotated[
        list[str] | None, typer.Option(help="A target instead of the definition's; repeatable.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N-1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it takes.")] = False,
    jobs: Jobs = 0,
    num_processes: Processes = 1,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only select, for the recall of --expect.")
    ] = False,
    expect: Expected = None,
    table: LabelTable = "",
    source_bank: Annotated[str, typer.Option(help="Class means, for recall alone.")] = "",
    target_bank: Annotated[str, typer.Option(help="The same of the target.")] = "",
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="With class means from files: a folder.")
    ] = None,
) -> None:
    """Run an experiment on what is here: train what is missing, measure, write the tables.

    With --source-bank, --target-bank and --expect: recall from class means, without any training
    and without a params.yaml.
    """
    from uotft.analysis import paper_tables
    from uotft.pipeline import experiment_cells
    from uotft.runs import experiment_runner

    shown, expected = paper_tables.load(name), expect or []
    if source_bank or target_bank:
        _recall(shown, source_bank, target_bank, expected, table, output)
        return
    ws, number = workspace(), seeds or shown.seeds
    if dry_run:
        targets = experiment_cells.targets(ws, name, on or [])
        columns = experiment_cells.columns(
            ws, shown, targets, number, num_processes, expected, table
        )
        for line in (experiment_cells.scale(ws), *experiment_runner.forecast(ws, columns, jobs)):
            typer.echo(line)
        return
    plan = experiment_runner.Plan(
        name, on or [], number, jobs, num_processes, not no_train, expected, table
    )
    tables, failed = experiment_runner.run(ws, plan)
    typer.echo(experiment_cells.scale(ws))
    for target, cells in tables:
        _print_cells(f"{shown.title}: {target}", cells)
    typer.echo(f"tables and a picture: {ws.root / 'reports' / 'experiments' / name}")
    for line in failed:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failed else 0)


def _recall(
    shown: Experiment,
    source: str,
    target: str,
    expected: list[str],
    table: str,
    output: Path | None,
) -> None:
    """The recall that an experiment's strategies reach on two files of class means."""
    from uotft.analysis import paper_tables
    from uotft.pipeline import experiment_cells

    recall = experiment_cells.bank_results(shown, source, target, expected, table)
    _print_cells(shown.title, paper_tables.cells(shown, paper_tables.rows(shown, "", recall)))
    if output:
        note = f"From {source}."
        experiment_cells.write_results(output, shown, {"recall": recall}, {}, note)


def _print_cells(title: str, cells: Sequence[Sequence[str]]) -> None:
    """The cells of a table, its header first; the first column names the rows."""
    header, *rows = cells
    print_table(header, rows, width=150, title=title, text_columns=1)
