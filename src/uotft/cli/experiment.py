"""The commands uotft experiment …: the paper's tables and figures on the project's data.

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
    """List the experiments: one for each table or figure of the paper."""
    from uotft.analysis import paper_tables

    for name in paper_tables.names():
        typer.echo(f"{name:<17} {paper_tables.load(name).title}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A name from `uotft experiment list`.")]) -> None:
    """Show an experiment's definition, and the paper's numbers if there are any."""
    from uotft.analysis import paper_tables

    experiment = paper_tables.load(name)
    typer.echo(f"{experiment.title}\n{experiment.claim}\n")
    typer.echo(
        f"backbone: {experiment.backbone}\ntargets: {', '.join(experiment.targets) or 'all'}"
    )
    typer.echo(f"seeds: {experiment.seeds}\n")
    for variation in experiment.variations:
        typer.echo(f"{variation.label:<18} {variation.strategy} {' '.join(variation.overrides)}")
    for numbers, kind in ((experiment.paper, ""), (experiment.recalls, ", recall")):
        for target, values in numbers.items():
            line = ", ".join(f"{label} {value:.2f}" for label, value in values.items())
            typer.echo(f"the paper, {target}{kind}: {line}")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A name from `uotft experiment list`.")],
    on: Annotated[
        list[str] | None,
        typer.Option(help="A target, in place of the experiment's own; repeatable."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N-1.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what it would cost.")
    ] = False,
    jobs: Jobs = 0,
    num_processes: Processes = 1,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only select, for the recall of --expect.")
    ] = False,
    expect: Expected = None,
    table: LabelTable = "",
    source_bank: Annotated[
        str, typer.Option(help="Class means of the source, to measure recall alone.")
    ] = "",
    target_bank: Annotated[str, typer.Option(help="Class means of the target.")] = "",
    output: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="A folder for the tables, with --source-bank."),
    ] = None,
) -> None:
    """Run an experiment on the project's data: train missing cells, test, write the tables.

    With --source-bank, --target-bank and --expect: measure recall from class means, without
    training and without a params.yaml.
    """
    from uotft.analysis import paper_tables
    from uotft.pipeline import experiment_cells
    from uotft.runs import experiment_runner

    experiment, expected = paper_tables.load(name), expect or []
    if source_bank or target_bank:
        _recall(experiment, source_bank, target_bank, expected, table, output)
        return
    ws, number = workspace(), seeds or experiment.seeds
    if dry_run:
        targets = experiment_cells.targets(ws, name, on or [])
        columns = experiment_cells.columns(
            ws, experiment, targets, number, num_processes, expected, table
        )
        for line in (experiment_cells.scale(ws), *experiment_runner.forecast(columns, jobs)):
            typer.echo(line)
        return
    plan = experiment_runner.Plan(
        name, on or [], number, jobs, num_processes, not no_train, expected, table
    )
    tables, failed = experiment_runner.run(ws, plan)
    typer.echo(experiment_cells.scale(ws))
    for target, cells in tables:
        _print_cells(f"{experiment.title}: {target}", cells)
    typer.echo(f"tables and a picture are in {ws.root / 'reports' / 'experiments' / name}")
    for line in failed:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failed else 0)


def _recall(
    experiment: Experiment,
    source: str,
    target: str,
    expected: list[str],
    table: str,
    output: Path | None,
) -> None:
    """The recall that an experiment's strategies reach on two files of class means."""
    from uotft.analysis import paper_tables
    from uotft.pipeline import experiment_cells

    recall = experiment_cells.bank_results(experiment, source, target, expected, table)
    _print_cells(
        experiment.title, paper_tables.cells(experiment, paper_tables.rows(experiment, "", recall))
    )
    if output:
        note = f"From {source}."
        experiment_cells.write_results(output, experiment, {"recall": recall}, {}, note)


def _print_cells(title: str, cells: Sequence[Sequence[str]]) -> None:
    """The cells of a table, its header first; the first column names the rows."""
    header, *rows = cells
    print_table(header, rows, width=150, title=title, text_columns=1)
