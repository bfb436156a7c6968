"""The commands uotft experiment …: the paper's tables and figures on the project's data.

uotft experiment run table4 --dry-run
uotft experiment run mine.yaml --on digits --seeds 8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uotft.cli.options import Expected, Jobs, LabelTable, Processes, Scheduler, given, workspace
from uotft.cli.tables import print_table
from uotft.core.errors import UserError

if TYPE_CHECKING:
    from uotft.analysis.experiments import Experiment
    from uotft.pipeline.experiment_cells import Plan

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="The paper's tables and figures, and beyond."
)


@app.command("list")
def list_() -> None:
    """List the experiments: one for each table or figure of the paper."""
    from uotft.analysis import paper_tables

    for name in paper_tables.names():
        typer.echo(f"{name:<17} {paper_tables.load(name).title}")


Name = Annotated[
    str, typer.Argument(help="A name from `uotft experiment list`, or a file: NAME.yaml.")
]

On = Annotated[
    list[str] | None,
    typer.Option(help="A target, in place of the experiment's own; repeatable."),
]
Seeds = Annotated[
    str, typer.Option(help="8 for the seeds 0 to 7, 4-7, or 0,2,5; else the experiment's.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="SETTING=VALUE for every row, also in place of the row's own; repeatable."
    ),
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="K, for every row that selects; it is not scaled.")
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        help="Train this row alone, or those of a pattern such as 'uot*'; repeatable. The table "
        "has every row with results."
    ),
]
Part = Annotated[
    str,
    typer.Option(
        "--part",
        "--shard",
        help="I/N: train the I-th of N parts of the cells; 1/2 here, 2/2 elsewhere.",
    ),
]
Validation = Annotated[
    bool,
    typer.Option("--validation", help="Compare on validation images, and read no test image."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what it would cost.")]
SourceBank = Annotated[
    str, typer.Option(help="Class means of the source, to measure recall alone.")
]
TargetBank = Annotated[str, typer.Option(help="Class means of the target.")]
Output = Annotated[
    Path | None, typer.Option(file_okay=False, help="A folder for the tables, with --source-bank.")
]

#: What `run` takes with --source-bank, by the names of its parameters.
OF_RECALL = {"name", "source_bank", "target_bank", "expect", "table", "top_k", "output"}


@app.command()
def show(name: Name) -> None:
    """Show an experiment's definition, and the paper's numbers if there are any."""
    from uotft.analysis import paper_tables
    from uotft.analysis.experiment_settings import layered

    experiment = paper_tables.load(name)
    typer.echo("\n".join(filter(None, [experiment.title, experiment.claim])) + "\n")
    if experiment.backbone:
        typer.echo(f"backbone: {experiment.backbone}")
    typer.echo(f"targets: {', '.join(experiment.targets) or 'all'}")
    typer.echo(f"seeds: {experiment.seeds}\n")
    for variation in experiment.variations:
        overrides = layered(experiment.common, variation.overrides)
        typer.echo(f"{variation.label:<18} {variation.strategy} {' '.join(overrides)}")
    for numbers, kind in ((experiment.paper, ""), (experiment.recalls, ", recall")):
        for target, values in numbers.items():
            line = ", ".join(f"{label} {value:.2f}" for label, value in values.items())
            typer.echo(f"the paper, {target}{kind}: {line}")


@app.command()
def run(
    ctx: typer.Context,
    name: Name,
    on: On = None,
    seeds: Seeds = "",
    settings: Settings = None,
    top_k: TopK = None,
    rows: Rows = None,
    part: Part = "",
    validation: Validation = False,
    dry_run: DryRun = False,
    jobs: Jobs = 0,
    num_processes: Processes = 1,
    scheduler: Scheduler = "",
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only select, for the recall of --expect.")
    ] = False,
    expect: Expected = None,
    table: LabelTable = "",
    source_bank: SourceBank = "",
    target_bank: TargetBank = "",
    output: Output = None,
) -> None:
    """Run an experiment on the project's data: train missing cells, test, write the tables.

    With --source-bank, --target-bank and --expect (and --table, --top-k, --output): measure recall
    from class means, without training and without a params.yaml.
    """
    from uotft.analysis import experiment_settings, paper_tables
    from uotft.pipeline.experiment_cells import Plan

    experiment, expected = paper_tables.load(name), expect or []
    if source_bank or target_bank:
        if given(ctx) - OF_RECALL:
            raise UserError("experiment run --source-bank goes with --target-bank, --expect, "
                            "--table, --top-k and --output alone; it trains nothing")  # fmt: skip
        _recall(experiment, source_bank, target_bank, expected, table, top_k, output)
        return
    if output:
        raise UserError("experiment run --output goes with --source-bank; in a project the tables "
                        "are in reports/experiments/")  # fmt: skip
    plan = Plan(
        paper_tables.on_validation(experiment) if validation else experiment,
        on or [],
        experiment_settings.seeds(seeds or str(experiment.seeds)),
        jobs,
        num_processes,
        not no_train,
        expected,
        table,
        settings or [],
        top_k,
        rows or [],
        _part(part),
        scheduler,
    )
    if dry_run:
        _forecast(plan)
    else:
        _run(plan)


def _part(text: str) -> tuple[int, int]:
    """I/N -> (I, N); all cells without a text."""
    number, _, whole = (text or "1/1").partition("/")
    if not (number.isdecimal() and whole.isdecimal() and 1 <= int(number) <= int(whole)):
        raise UserError(f"--part: got {text!r}; write I/N with I from 1 to N, such as 1/2")
    return int(number), int(whole)


def _forecast(plan: Plan) -> None:
    """Print what a plan would cost."""
    if plan.scheduler:
        raise UserError("--dry-run asks no scheduler: leave out --scheduler, and give --jobs the "
                        "number of trainings at a time")  # fmt: skip
    from uotft.pipeline import experiment_cells
    from uotft.runs import experiment_runner

    ws = workspace()
    experiment_cells.targets(ws, plan)
    plan, notes = experiment_cells.settled(ws, plan)
    columns = experiment_cells.columns(ws, plan)
    scale = experiment_runner.scale(ws, plan)
    lines = experiment_runner.forecast(columns, plan.jobs, train=plan.train)
    for line in (*filter(None, [scale]), *notes, *lines):
        typer.echo(line)


def _run(plan: Plan) -> None:
    """Run a plan and print its tables; exit code 1 if a cell failed."""
    from uotft.runs import experiment_runner

    ws = workspace()
    report = experiment_runner.run(ws, plan)
    if scale := experiment_runner.scale(ws, plan):
        typer.echo(scale)
    for target, cells, notes in report.tables:
        _print_cells(f"{plan.experiment.title}: {target}", cells)
        for note in notes:
            typer.echo(note)
    typer.echo(f"tables and a picture are in {report.folder}")
    for line in report.failed:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if report.failed else 0)


def _recall(
    experiment: Experiment,
    source: str,
    target: str,
    expected: list[str],
    table: str,
    top_k: int | None,
    output: Path | None,
) -> None:
    """The recall that an experiment's strategies reach on two files of class means."""
    from uotft.analysis import paper_tables
    from uotft.pipeline import experiment_cells

    recall = experiment_cells.bank_results(experiment, source, target, expected, table, top_k)
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
