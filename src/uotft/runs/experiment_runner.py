"""`uotft experiment run`: train the cells that are not done, measure them, write the tables.

Cells run one after the other in this process, or some at once as `uotft train` in processes of
their own. A failed cell stops no other. The same command goes on where it was stopped.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from uotft.analysis import paper_tables
from uotft.core import environment, signals
from uotft.core.errors import Interrupted, UserError, WorkerFailed
from uotft.core.progress import track
from uotft.core.records import Cell
from uotft.pipeline import experiment_cells, select
from uotft.pipeline.experiment_cells import Column
from uotft.pipeline.workspace import Workspace
from uotft.runs import job
from uotft.runs.processes import Fleet

Tables = list[tuple[str, list[tuple[str, ...]]]]
Job = tuple[Workspace, Cell]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Which experiment runs, on which targets (none: its own), with seeds 0 to ``seeds`` - 1.

    ``jobs`` cells are trained at once, with ``num_processes`` workers each; without ``train`` all
    cells are only selected. ``expect`` names source classes whose recall is counted, and ``table``
    a file with their labels.
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
    """Bring an experiment to its end; returns its tables as text, and a line per failed cell."""
    experiment = paper_tables.load(plan.name)
    targets = experiment_cells.targets(ws, plan.name, plan.on)
    if not ws.data(ws.params.source).with_suffix(".json").is_file():
        job.upstream([ws], targets)  # the size of the source decides which cells there are
    columns = experiment_cells.columns(
        ws, experiment, targets, plan.seeds, plan.num_processes, plan.expect, plan.table
    )
    folder = ws.root / "reports" / "experiments" / plan.name
    job.upstream([*{c.ws.upstream: c.ws for c in columns}.values()], targets)
    failed = []
    try:
        if plan.train:
            failed = _train(todo(columns), plan, folder / "output")
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
    """The cells that are not done, seed by seed; a small source makes some variations the same."""
    cells = {
        (column.ws.variant, column.target, column.strategy, seed): column
        for seed in range(max(len(c.seeds) for c in columns))
        for column in columns
        if seed in column.seeds and not column.finished(seed)
    }
    return [(column.ws, Cell(*key[1:])) for key, column in cells.items()]


def forecast(columns: Sequence[Column], jobs: int) -> Iterator[str]:
    """What is done and what is to do, in cells, images and time."""
    images, read, seconds, done = 0, 0, 0.0, 0
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
    cells = len(todo(columns))
    time = "unknown, since no cell of it is finished here"
    if done:
        minutes = images / read * seconds / jobs / 60
        time = f"about {minutes:.0f} min, at {read / seconds:,.0f} images a second of {done} cells"
    yield f"{cells} cells to train, {images:,} images at most; time: {time}"


def _train(cells: Sequence[Job], plan: Plan, folder: Path) -> list[str]:
    """Train cells; returns a line for each that failed."""
    if plan.jobs > 1:
        return _train_at_once(cells, plan, folder)
    failed = []
    for number, cell in enumerate(cells, 1):
        logger.info("cell %s of %s: %s", number, len(cells), _name(cell))
        try:
            logger.info(job.train(*cell, Fleet(plan.num_processes), current=True))
        except (UserError, WorkerFailed) as error:
            failed.append(f"{_name(cell)}: {error}")
    return failed


def _train_at_once(cells: Sequence[Job], plan: Plan, folder: Path) -> list[str]:
    """Train ``plan.jobs`` cells at a time; the output of each goes to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, failed = [*enumerate(cells)], []
    running: dict[subprocess.Popen[bytes], tuple[Job, Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < plan.jobs:
                number, cell = waiting.pop(0)
                log = folder / f"{number:04}.txt"
                running[_start(cell, plan.num_processes, log)] = cell, log
                logger.info("cell %s of %s: %s", number + 1, len(cells), _name(cell))
            sleep(signals.POLL_S)
            for process in [p for p in running if p.poll() is not None]:
                cell, log = running.pop(process)
                if process.returncode:
                    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
                    failed.append(f"{_name(cell)}: exit code {process.returncode}: {last} ({log})")
    finally:
        # each stops its workers, which save, within GRACE_S of its own
        signals.stop([*running], 2 * signals.GRACE_S)
    return failed


def _start(each: Job, num_processes: int, log: Path) -> subprocess.Popen[bytes]:
    ws, cell = each
    options = ["--dataset", cell.target, "--strategy", cell.strategy, "--seed", str(cell.seed)]
    options.append("--current")
    options += ["--num-processes", str(num_processes)]
    options += [part for change in ws.overrides for part in ("--set", change)]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "uotft", "train", *options],
            cwd=ws.root,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment.child({"NO_COLOR": "1"}),
            start_new_session=True,  # Ctrl-C reaches it through this process alone
            preexec_fn=signals.die_with_parent,
        )


def _measure(column: Column) -> None:
    """Read the test part for the seeds that have new models, and for them alone."""
    seeds, known = experiment_cells.unmeasured(column)
    if seeds:
        job.evaluate(column.ws, column.target, column.strategy, track, known, seeds)


def _name(each: Job) -> str:
    ws, cell = each
    return f"{cell} {' '.join(ws.overrides)}"
