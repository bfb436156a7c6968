"""`uotft experiment run`: train the missing cells, evaluate all, write the tables.

Several cells are trained at a time. A failed cell does not stop the others. After an interruption
the same command goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uotft.analysis import paper_tables
from uotft.core.errors import Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Cell
from uotft.pipeline import experiment_cells, select
from uotft.pipeline.experiment_cells import Column
from uotft.pipeline.workspace import Workspace
from uotft.runs import cells, job
from uotft.runs.cells import Job
from uotft.runs.pool import width
from uotft.runs.processes import Fleet

Tables = list[tuple[str, list[tuple[str, ...]]]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Which experiment runs, and how.

    ``on`` names targets; if empty, the experiment's own. Seeds are 0 to ``seeds`` - 1. ``jobs``
    cells are trained at a time (0: as many as GPUs or cores allow), each by ``num_processes``
    workers. With ``train`` false, cells are selected and not trained. ``expect`` holds patterns for
    source classes whose recall is measured, and ``table`` is a file with their labels.
    """

    name: str
    on: Sequence[str]
    seeds: int
    jobs: int
    num_processes: int
    train: bool
    expect: Sequence[str]
    table: str


def run(ws: Workspace, plan: Plan) -> tuple[Tables, list[str]]:
    """Run what is missing of an experiment; returns its tables as text, and a line per failed cell.

    Raises `UserError` if no cell has a result, and `Interrupted` after a request to stop.
    """
    experiment = paper_tables.load(plan.name)
    targets = experiment_cells.targets(ws, plan.name, plan.on)
    if not (ws.by_class or ws.data(ws.params.source).with_suffix(".json").is_file()):
        job.upstream([ws], targets)  # which cells exist depends on the size of the source
    columns = experiment_cells.columns(
        ws, experiment, targets, plan.seeds, plan.num_processes, plan.expect, plan.table
    )
    folder = ws.root / "reports" / "experiments" / plan.name
    job.upstream([*{c.ws.upstream: c.ws for c in columns}.values()], targets)
    failed = []
    try:
        if plan.train:
            if left := todo(columns):
                job.bring(left)
                failed = cells.train_some(left, Fleet(plan.num_processes), plan.jobs)
            for column in columns:
                _measure(column)
        else:
            for there, cell in todo(columns):
                select.select(there, cell)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the same command goes on") from error
    found = experiment_cells.results(columns, plan.expect, plan.table)
    if not found:
        raise UserError("\n  ".join([f"experiment {plan.name}: no cell has a result", *failed]))
    metrics = experiment_cells.literature(ws, targets)
    return experiment_cells.write_results(
        folder, experiment, found, metrics, experiment_cells.scale(ws)
    ), failed


def todo(columns: Sequence[Column]) -> list[Job]:
    """The cells still to train, seed by seed.

    With a small source several variations can be the same cell. It is listed once.
    """
    found = {
        (column.ws.variant, column.target, column.strategy, seed): column
        for seed in range(max(len(c.seeds) for c in columns))
        for column in columns
        if seed in column.seeds and not column.finished(seed)
    }
    return [(column.ws, Cell(*key[1:])) for key, column in found.items()]


def forecast(columns: Sequence[Column], jobs: int) -> Iterator[str]:
    """Yield lines on what is done and what is left, in cells, images and minutes."""
    images, read, seconds, done = 0, 0, 0.0, 0
    jobs = width(columns[0].ws.params, columns[0].processes, jobs)
    for column in columns:
        facts = [found for seed in column.seeds if (found := column.finished(seed))]
        left = len(column.seeds) - len(facts)
        images += left * column.cost
        read += len(facts) * column.cost
        seconds += sum(found["seconds"] for found in facts)
        done += len(facts)
        yield (
            f"{column.target}: {column.variation.label}: {len(facts)} done, {left} to do, "
            f"{column.cost:,} images each: {column.strategy} {' '.join(column.ws.overrides)}"
        )
    left = len(todo(columns))
    time = "unknown, since no cell is finished yet"
    if done:
        minutes = images / read * seconds / jobs / 60
        time = f"about {minutes:.0f} min, at {read / seconds:,.0f} images a second of {done} cells"
    yield f"{left} cells to train, {images:,} images at most; time: {time}"


def _measure(column: Column) -> None:
    """Read the test part for the seeds that have new models, and for them alone."""
    seeds, known = experiment_cells.unmeasured(column)
    if seeds:
        job.evaluate(column.ws, column.target, column.strategy, track, known, seeds)
