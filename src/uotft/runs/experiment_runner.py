"""`uotft experiment run`: train the cells that are not done, measure them, write the tables.

Cells run one after the other in this process, or some at once as `uotft train` in processes of
their own. One that fails stops no other. The same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep

from uotft.analysis import paper_tables
from uotft.core.errors import Interrupted, UserError, WorkerFailed
from uotft.core.progress import track
from uotft.core.records import Cell as Cells
from uotft.pipeline import experiment_cells, select
from uotft.pipeline.experiment_cells import Column
from uotft.pipeline.workspace import Workspace
from uotft.runs import job, processes
from uotft.runs.processes import GRACE_S, POLL_S, Fleet

Tables = list[tuple[str, list[tuple[str, ...]]]]
Cell = tuple[Workspace, str, str, int]


def run(
    ws: Workspace,
    name: str,
    on: Sequence[str],
    seeds: int,
    *,
    jobs: int,
    num_processes: int,
    train: bool,
    expect: Sequence[str],
    table: str,
) -> tuple[Tables, list[str]]:
    """Bring an experiment to its end; returns its tables in words, and the cells that failed."""
    experiment, targets = paper_tables.load(name), experiment_cells.targets(ws, name, on)
    if not ws.data(ws.params.source).with_suffix(".json").is_file():
        job.upstream([ws], targets)  # how large the source is decides what is to be run
    columns = experiment_cells.columns(ws, experiment, targets, seeds, num_processes, expect, table)
    folder = ws.root / "reports" / "experiments" / name
    job.upstream([*{c.ws.upstream: c.ws for c in columns}.values()], targets)
    failed = []
    try:
        if train:
            failed = _train(todo(columns), jobs, num_processes, folder / "output")
            for column in columns:
                _measure(column)
        else:
            for cell in todo(columns):
                select.select(cell[0], Cells(*cell[1:]))
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the same command goes on") from error
    found = experiment_cells.results(columns, expect, table)
    if not found:
        raise UserError("\n  ".join([f"experiment {name}: no cell has a result", *failed]))
    metrics = experiment_cells.literature(ws, targets)
    return experiment_cells.write_results(
        folder, experiment, found, metrics, experiment_cells.scale(ws)
    ), failed


def todo(columns: Sequence[Column]) -> list[Cell]:
    """The cells that are not done, seed by seed; a small source makes some variations the same."""
    cells = {
        (column.ws.variant, column.target, column.strategy, seed): column
        for seed in range(max(len(c.seeds) for c in columns))
        for column in columns
        if seed in column.seeds and not column.finished(seed)
    }
    return [(c.ws, target, strategy, seed) for (_, target, strategy, seed), c in cells.items()]


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
            f"{column.cost:,} images each: {column.strategy} {' '.join(column.ws.words)}"
        )
    cells = len(todo(columns))
    time = "unknown, since no cell of it is finished here"
    if done:
        minutes = images / read * seconds / jobs / 60
        time = f"about {minutes:.0f} min, at {read / seconds:,.0f} images a second of {done} cells"
    yield f"{cells} cells to train, {images:,} images at most; time: {time}"


def _train(cells: Sequence[Cell], jobs: int, num_processes: int, folder: Path) -> list[str]:
    """Train cells; returns a line for each that failed."""
    if jobs > 1:
        return _at_once(cells, jobs, num_processes, folder)
    failed = []
    for number, cell in enumerate(cells, 1):
        _say(f"cell {number} of {len(cells)}: {_name(cell)}")
        try:
            _say(job.train(*cell, Fleet(num_processes), current=True))
        except (UserError, WorkerFailed) as error:
            failed.append(f"{_name(cell)}: {error}")
    return failed


def _at_once(cells: Sequence[Cell], jobs: int, num_processes: int, folder: Path) -> list[str]:
    """Train some cells at a time; what each says goes to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, failed = [*enumerate(cells)], []
    running: dict[subprocess.Popen[bytes], tuple[Cell, Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, cell = waiting.pop(0)
                log = folder / f"{number:04}.txt"
                running[_start(cell, num_processes, log)] = cell, log
                _say(f"cell {number + 1} of {len(cells)}: {_name(cell)}")
            sleep(POLL_S)
            for process in [p for p in running if p.poll() is not None]:
                cell, log = running.pop(process)
                if process.returncode:
                    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
                    failed.append(f"{_name(cell)}: exit code {process.returncode}: {last} ({log})")
    finally:
        signal.alarm(0)  # of a command that was asked to end: the waiting here ends itself
        for process in running:
            process.terminate()  # it has a checkpoint written, and says so in its file
        for process in running:
            try:
                process.wait(2 * GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
    return failed


def _start(cell: Cell, num_processes: int, log: Path) -> subprocess.Popen[bytes]:
    ws, target, strategy, seed = cell
    words = ["--dataset", target, "--strategy", strategy, "--seed", str(seed), "--current"]
    words += ["--num-processes", str(num_processes)]
    words += [part for word in ws.words for part in ("--set", word)]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "uotft", "train", *words],
            cwd=ws.root,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1"},
            start_new_session=True,  # Ctrl-C reaches it through this process alone
            preexec_fn=processes.die_with_parent,
        )


def _measure(column: Column) -> None:
    """Read the test part for the seeds that have new models, and for no others."""
    seeds, known = experiment_cells.unmeasured(column)
    if seeds:
        job.evaluate(column.ws, column.target, column.strategy, track, known, seeds)


def _name(cell: Cell) -> str:
    ws, target, strategy, seed = cell
    return f"{target}-{strategy}-{seed} {' '.join(ws.words)}"


def _say(line: str) -> None:
    print(f"uotft: {line}", file=sys.stderr)  # noqa: T201
