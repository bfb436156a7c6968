"""Every cell of params.yaml on one target: select, train some at a time, read the test part.

A cell is one strategy with one seed. A DVC stage handles all cells of a target in one process. It
skips cells whose finished model was made from today's inputs, so a new seed or a new strategy
trains its own cells only.

uotft train --dataset digits --all
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from time import monotonic

from uotft.core import config, environment
from uotft.core.errors import Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Cell, Stop
from uotft.core.text import plural
from uotft.pipeline import compatible, cost, freshness, select as select_stage
from uotft.pipeline.workspace import Workspace
from uotft.runs import job
from uotft.runs.pace import Pace
from uotft.runs.pool import Failure, pool
from uotft.runs.processes import Crew, Fleet

Job = tuple[Workspace, Cell]

logger = logging.getLogger(__name__)


def of(ws: Workspace, target: str) -> list[Cell]:
    """The cells of a target: each strategy with each seed of params.yaml."""
    p = ws.params
    return [Cell(target, strategy, seed) for strategy in p.strategies for seed in p.seeds]


def asked(ws: Workspace, cell: Cell, *, every: bool) -> list[Cell]:
    """What a command asks for: one cell, or ``every`` cell of its target."""
    return of(ws, cell.target) if every else [cell]


def select(ws: Workspace, target: str) -> Iterator[str]:
    """Select for every cell; yields one line a strategy, for the user."""
    for strategy in ws.params.strategies:
        kept: list[str] = []
        for seed in track(ws.params.seeds, f"selecting with {strategy}"):
            chosen = job.select(ws, Cell(target, strategy, seed))
            kept.append(str(len(chosen.kept)))
        seeds = ", ".join(map(str, ws.params.seeds))
        counts = kept[0] if len({*kept}) == 1 else ", ".join(kept)
        yield f"{strategy}: {counts} of {len(chosen.names)} kept, seeds {seeds}"


def train(ws: Workspace, target: str, fleet: Fleet, jobs: int = 0) -> str:
    """Train every cell that has no model of today's inputs; returns a line for the user.

    Trains ``jobs`` cells at a time; 0 takes as many as GPUs or cores allow. A failed cell does not
    stop the others: once they have ended, `UserError` names those that failed.
    """
    if fleet.machines > 1 or fleet.launched:
        raise UserError("--all starts its own processes on this machine: leave out --num-machines "
                        "and other launchers, or train one cell at a time")  # fmt: skip
    every = of(ws, target)
    if not environment.dvc_stage():
        compatible.check(ws, [target], ws.params.strategies)
        job.upstream([ws], [target])
        for cell in every:
            select_stage.select(ws, cell)
        job.source_images(ws, every)
    todo = [cell for cell in every if not freshness.trained(ws, cell, fleet.processes)]
    known = f"{target}: {len(every) - len(todo)} of {len(every)} cells are trained already"
    if not todo:
        return known
    logger.info("%s", known)
    failed = train_some([(ws, cell) for cell in todo], fleet, jobs)
    if failed:
        which = "\n  ".join([f"{target}: {len(failed)} of {len(todo)} trainings failed", *failed])
        raise UserError(f"{which}\nthe others are kept; the same command trains these alone")
    return f"{target}: all {len(every)} cells are trained"


def train_some(
    jobs: Sequence[Job],
    fleet: Fleet,
    at_once: int = 0,
    done: Sequence[tuple[int, float]] = (),
    ended: Callable[[Job, Failure | None, Stop], None] = lambda each, error, stop: None,
) -> list[str]:
    """Train cells of one project; returns a line for each cell that failed.

    Trains ``at_once`` cells at a time; 0 takes ``jobs`` of params.yaml, or as many as GPUs or cores
    allow; with a scheduler, as many as its workers do. Raises `Interrupted` after a request to
    stop. ``done`` are the (images, seconds) of earlier cells: lines say how long the others take.
    ``ended`` is called here, in the order of ``jobs``, for each cell that has ended; others are
    trained meanwhile.
    """
    left = [cost.of(*each) for each in jobs]

    def one(crew: Crew, numbered: tuple[int, Job]) -> None:
        number, (there, cell) = numbered
        images, since = cost.of(there, cell), monotonic()

        def begins(where: str) -> None:
            nonlocal since
            since = monotonic()
            logger.info("cell %s of %s: %s%s", number, len(jobs), name_of((there, cell)), where)

        try:
            line = job.train(there, cell, crew, current=True, begins=begins)
            pace.add(images, monotonic() - since)
        finally:
            left.remove(images)
        logger.info("%s", line)
        if left:
            logger.info("%s", _to_go(pace, left, len(jobs)))

    try:
        with pool(fleet, jobs[0][0], at_once, len(jobs)) as crews:
            pace = Pace(crews.at_once, [*done])
            if told := pace.told(left):
                logger.info("%s to train, %s", plural(len(jobs), "cell"), told)
            with closing(crews.run(one, [*enumerate(jobs, 1)])) as results:
                failed = []
                for each, error in zip(jobs, results, strict=True):
                    ended(each, error, crews.is_stopping)
                    failed += [f"{name_of(each)}: {reason(error)}"] if error is not None else []
                return failed
    except Interrupted as error:
        raise Interrupted("interrupted; the same command goes on") from error


def reason(error: Failure) -> str:
    """Why a training failed: of a worker, the error that it printed if it is known."""
    return getattr(error, "why", "") or str(error)


def name_of(each: Job) -> str:
    """The name of a cell in messages, with the settings that differ from params.yaml."""
    ws, cell = each
    return " ".join([str(cell), *settings_of(ws, cell.strategy)])


def settings_of(ws: Workspace, strategy: str) -> list[str]:
    """The overrides of a variant that rows called ``strategy`` have; a control may replace some."""
    fixed = config.fixed(ws.params, strategy)
    return [override for override in ws.overrides if override.partition("=")[0] not in fixed]


def _to_go(pace: Pace, left: Sequence[int], total: int) -> str:
    """How many cells are done, and how long the others take; ``left`` holds their costs."""
    told = pace.told(left)
    return f"{total - len(left)} of {total} are done{f', {told}' if told else ''}"


def evaluate(ws: Workspace, target: str) -> Iterator[str]:
    """Read the test part once for every cell; yields one line a cell, for the user."""
    for strategy in ws.params.strategies:
        yield from job.evaluate(ws, target, strategy, track)
