"""`uotft experiment run`: train the missing cells, test each, write the tables.

Several cells are trained at a time. A failed cell does not stop the others. After an interruption
the same command goes on. Each cell that is trained and tested is at once a line of runs.csv.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uotft.analysis import experiment_settings, paper_tables
from uotft.core import environment, storage
from uotft.core.errors import Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Cell, Stop, never, silently
from uotft.core.text import plural
from uotft.pipeline import cost, experiment_cells, select
from uotft.pipeline.experiment_cells import Column, Plan
from uotft.pipeline.workspace import Workspace
from uotft.runs import cells, job, outlook, scheduler
from uotft.runs.cells import Job
from uotft.runs.pace import Pace
from uotft.runs.pool import Failure, width
from uotft.runs.processes import Fleet
from uotft.tracking import delivery, outbox

logger = logging.getLogger(__name__)


@dataclass
class Report:
    """What an experiment gave: a table, and lines below it, a target; and a line per failed cell.

    ``notes`` are lines on the settings, ``folder`` has the files.
    """

    folder: Path
    notes: list[str]
    tables: list[tuple[str, list[tuple[str, ...]], list[str]]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def run(ws: Workspace, plan: Plan) -> Report:
    """Run what is missing of an experiment.

    Raises `UserError` if no cell has a result, and `Interrupted` after a request to stop.
    """
    if plan.scheduler and not plan.train:
        raise UserError("--no-train selects on this machine: leave out --scheduler")
    if environment.launched():
        raise UserError(
            "experiment run starts its own processes: use --num-processes instead of another "
            "launcher"
        )
    fleet = Fleet(plan.num_processes, scheduler=plan.scheduler)
    scheduler.check(fleet, ws)
    targets = experiment_cells.targets(ws, plan)
    known = ws.by_class or ws.data(ws.params.source).with_suffix(".json").is_file()
    if plan.experiment.scaled and not known:
        job.upstream([ws], targets)  # which cells exist depends on the size of the source
    plan, notes = experiment_cells.settled(ws, plan)
    columns = experiment_cells.columns(ws, plan)
    report = Report(folder(ws, plan), notes)
    _say_other(report.folder / "table.md", plan.experiment.title)
    for line in notes:
        logger.info("%s", line)
    job.upstream([*{c.ws.upstream: c.ws for c in columns}.values()], targets)
    failures: dict[tuple[str, str, int], str] = {}
    try:
        if plan.train:
            report.failed = _train(plan, fleet, columns, report.folder, failures)
        else:
            for there, cell in todo(columns):
                select.select(there, cell)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the same command goes on") from error
    found = experiment_cells.results(columns, plan)
    name = plan.experiment.name
    if not found:
        raise UserError("\n  ".join([f"experiment {name}: no cell has a result", *report.failed]))
    below = experiment_cells.missing(columns, found, failures)
    for target, lines in bad_endings(columns, found).items():
        below.setdefault(target, []).extend(lines)
    report.tables = experiment_cells.write_results(
        report.folder,
        plan.experiment,
        found,
        experiment_cells.literature(ws, targets),
        scale(ws, plan),
        below,
    )
    return report


def _say_other(table: Path, title: str) -> None:
    """Warn if another definition of this name has written there; its trainings stay."""
    first = table.read_text(encoding="utf-8").partition("\n")[0] if table.is_file() else ""
    if first and first != f"# {title}":
        logger.warning("%s: the table %r is of another definition of this name, and is replaced; "
                       "its trainings stay", table.parent, first[2:])  # fmt: skip


def bad_endings(
    columns: Sequence[Column], found: dict[str, paper_tables.Results]
) -> dict[str, list[str]]:
    """{target: a line for each row with trainings that ended below their start or at chance}."""
    notes: dict[str, list[str]] = {}
    for column in columns:
        have = found.get(column.target, {}).get(column.variation.label, {})
        why = {}
        for seed in have:
            model = column.folder("models", seed) / "model.json"
            if model.is_file():  # a cell that was only selected has none
                cell = Cell(column.target, column.strategy, seed)
                why[seed] = outlook.ending(column.ws, cell, storage.read_json(model))
        if bad := {seed: said for seed, said in why.items() if said}:
            seed, said = next(iter(bad.items()))
            line = f"{column.variation.label}: {len(bad)} of {plural(len(have), 'training')} ended"
            notes.setdefault(column.target, []).append(f"{line} badly, such as seed {seed}: {said}")
    return notes


def folder(ws: Workspace, plan: Plan) -> Path:
    """The folder of an experiment's files.

    Within it, settings of the command line and comparisons on validation images have their own, so
    that a trial replaces no table.
    """
    whole = ws.root / "reports" / "experiments" / plan.experiment.name
    if own := experiment_settings.given(plan.settings, plan.top_k):
        whole /= Path(ws.with_changes(own).variant).name
    return whole / "validation" if plan.experiment.on_validation else whole


def scale(ws: Workspace, plan: Plan) -> str:
    """How the paper's numbers are scaled to this source; "" if the experiment is another's."""
    return experiment_cells.scale(ws) if plan.experiment.scaled else ""


def todo(columns: Sequence[Column]) -> list[Job]:
    """The cells still to train, seed by seed.

    With a small source several variations can be the same cell. It is listed once.
    """
    found = {
        (column.ws.variant, column.target, column.strategy, seed): column
        for seed in dict.fromkeys(seed for column in columns for seed in column.seeds)
        for column in columns
        if seed in column.own and not column.finished(seed)
    }
    return [(column.ws, Cell(*key[1:])) for key, column in found.items()]


def forecast(columns: Sequence[Column], jobs: int, *, train: bool = True) -> Iterator[str]:
    """Yield lines on what is done and what is left, in cells, images and minutes.

    Without ``train``, cells are selected for and not trained.
    """
    jobs_left = todo(columns)
    at_once = min(width(columns[0].ws.params, columns[0].processes, jobs), len(jobs_left))
    images, pace = 0, Pace(max(1, at_once))
    for column in columns:
        done = column.costs()
        pace.done.extend(done)
        left = sum(not column.finished(seed) for seed in column.own)
        images += left * column.cost
        work = f"{len(done)} done, {left} to do, {column.cost:,} images each"
        yield (
            f"{column.target}: {column.variation.label}: {work if train else f'{left} to select'}: "
            f"{' '.join([column.strategy, *cells.settings_of(column.ws, column.strategy)])}"
        )
    if not train:
        yield f"{len(jobs_left)} cells to select, none to train"
        return
    seconds = pace.left([cost.of(*each) for each in jobs_left])
    if not any(column.cost for column in columns):
        time = "seconds, since no cell makes a step"
    elif seconds is None or not pace.images_a_second:
        time = "unknown, since no cell is finished yet"
    else:
        trained = plural(sum(images > 0 for images, _ in pace.done), "cell")
        speed = f"{pace.images_a_second:,.0f} images a second of {trained}"
        time = f"about {seconds / 60:.0f} min, at {speed}"
    yield f"{len(jobs_left)} cells to train, {images:,} images at most; time: {time}"


def _train(
    plan: Plan,
    fleet: Fleet,
    columns: Sequence[Column],
    folder: Path,
    failures: dict[tuple[str, str, int], str],
) -> list[str]:
    """Train and test the cells that are missing; a line for each that failed, and ``failures``."""
    failed: list[str] = []
    is_tested = not plan.experiment.on_validation
    if left := todo(columns):
        if is_tested:  # what an earlier command trained, and was stopped before its test
            _measure_all(columns)
        found = experiment_cells.results(columns, plan)

        def ended(each: Job, error: Failure | None, stop: Stop) -> None:
            own = [column for column in columns if column.is_of(*each)]
            seed = each[1].seed
            if error is not None:
                why = cells.reason(error)
                failures.update({(c.target, c.variation.label, seed): why for c in own})
                return
            if is_tested:
                _try(own[0], seed, stop)
            for column in own:
                if numbers := experiment_cells.measured(column, seed, on_validation=not is_tested):
                    labels = found.setdefault(column.target, {})
                    labels.setdefault(column.variation.label, {})[seed] = numbers
            experiment_cells.write_runs(folder, plan.experiment, found)

        job.bring(left)
        if is_tested:
            _import_torch()
        failed = cells.train_some(
            left,
            fleet,
            plan.jobs,
            done=[took for column in columns for took in column.costs()],
            ended=ended,
        )
    if is_tested:
        _measure_all(columns)
        _send_tests(columns[0].ws)
    return failed


def _import_torch() -> None:
    """Import what tests a model: beside trainings it takes so long that a stop would wait."""
    import uotft.pipeline.evaluate  # noqa: F401


def _measure_all(columns: Sequence[Column]) -> None:
    """Read the test part for all new models of rows that this command trains."""
    for column in columns:
        if column.own:
            _measure(column)


def _try(column: Column, seed: int, stop: Stop) -> None:
    """Test one cell while others are trained; what goes wrong is raised after those, not now."""
    try:
        _measure(column, [seed], stop)
    except UserError as error:
        logger.warning("seed %s of %s: not tested: %s", seed, column.variation.label, error)


def _measure(column: Column, seeds: Sequence[int] = (), stop: Stop = never) -> None:
    """Read the test part for the seeds that have new models, and for them alone.

    ``seeds`` limits them. Two commands share a row's file, so one waits for the other.
    """
    with job.testing(column.ws, column.target, column.strategy):
        new, known = experiment_cells.unmeasured(column)
        if wanted := [seed for seed in new if seed in seeds or not seeds]:
            progress = silently if seeds else track
            job.evaluate(column.ws, column.target, column.strategy, progress, known, wanted, stop)


def _send_tests(ws: Workspace) -> None:
    """Send test metrics that were measured before MLflow had their run."""
    if any((ws.tracking / outbox.OUTBOX).glob("test-*")):
        for _, line in delivery.sync(ws.tracking):
            logger.debug("%s", line)
