"""Hyper-parameter search: each trial trains several seeds; one MLflow run holds the search.

Validation images alone decide. No test image is read here.

    uotft search --dataset digits --strategy uot --space paper
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from uotft.analysis import figures
from uotft.analysis.statistics import interval
from uotft.core import locks, storage
from uotft.core.errors import Impossible, Pruned, UserError, WorkerFailed
from uotft.core.records import Cell
from uotft.core.text import some
from uotft.pipeline import freshness, units
from uotft.pipeline.workspace import Workspace
from uotft.runs import job, scheduler, study
from uotft.runs.pool import Failure, Pool, pool
from uotft.runs.processes import Crew, Fleet, Points
from uotft.runs.study import Setting, Space, State, Study, Trial
from uotft.tracking import outbox, session, store
from uotft.training import checkpoints

Say = Callable[[str], object]
Answer = tuple[list[tuple[str, ...]], tuple[str, ...]]
DECISIVE = ("source", "source_fraction", "backbone", "subset", "select", "cluster", "selectors",
            "objectives", "train")  # fmt: skip
VALUE = "val/top1"
USERS_MISTAKE = 2  # exit code of a training that diverged or has impossible settings
TRIALS = 20  # default of --trials with --sampler tpe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is searched, how, and on which seeds.

    ``trials`` is the largest number of trials; 0: the whole grid, or 20 with ``tpe``. ``jobs``
    trainings run at a time; 0: as many as GPUs or cores allow.
    """

    target: str
    strategy: str
    space: str
    tpe: bool
    seeds: list[int]
    trials: int = 0
    prune: bool = False
    study: str = ""
    jobs: int = 0


def search(ws: Workspace, plan: Plan, output: Path, fleet: Fleet, say: Say) -> Answer:
    """Run the missing trials and write the best settings to ``output``.

    Returns the table of trials and lines about it. After an interruption the same command goes on.
    Raises `UserError` for a plan that cannot be searched, or if another search has the study.
    """
    text = (ws.root / "params.yaml").read_text(encoding="utf-8")
    space = study.deciding(study.read_space(plan.space), ws.params, plan.strategy)
    default = study.standing(text, space)
    _check(ws, plan, space, fleet)
    scheduler.check(fleet, ws)
    folder = ws.root / "search" / (plan.study or f"{plan.target}-{plan.strategy}")
    busy = (
        f"{folder}: another `uotft search` is running this study: wait for it, or give yours "
        "a name of its own with --study"
    )
    with locks.exclusive(folder.with_name(f".{folder.name}.lock"), busy):
        trials = _run_missing(ws, plan, folder, space, default, fleet, say)
    best = study.best(trials)
    storage.write_bytes(output, study.rewritten(text, best.setting).encode())
    return study.table(trials), (
        f"seeds {', '.join(map(str, plan.seeds))}: {study.verdict(trials)}",
        f"{output} has the settings of trial {best.number}, for all rows",
        f"for {plan.strategy} alone, as a row of an experiment: "
        f"set: [{', '.join(study.overrides(best.setting))}]",
    )


def _run_missing(
    ws: Workspace, plan: Plan, folder: Path, space: Space, default: Setting, fleet: Fleet, say: Say
) -> list[Trial]:
    """Run the missing trials of the study in ``folder``, under its run; returns all trials."""
    job.upstream([ws], [plan.target])
    fingerprint = _fingerprint(ws, plan, space, fleet)
    if aside := freshness.claim(folder, fingerprint):
        logger.warning(aside)
    before = checkpoints.run_id(folder)
    about = ws.tracking, plan.target, f"search-{folder.name}"
    with session.run(*about, project=ws.project, run_id=before, watched=True) as run:
        checkpoints.remember_run(folder, run.id, fingerprint)
        start = {f"default.{name}": value for name, value in default.items()}
        run.begin({**_described(plan, space), **start}, _tags(ws, plan) | store.versions(ws.root))
        record = Study(folder / "study.db", space, default, tpe=plan.tpe)
        run.log(_points(record.trials()))  # points that the run has already are not sent again
        most = plan.trials or (TRIALS if plan.tpe else sys.maxsize)
        left = {trial.number for trial in record.trials() if trial.state == "running"}
        ahead = record.to_come(most) if fleet.scheduler and not (plan.tpe or plan.prune) else []
        number = len(plan.seeds) * max(1, len(ahead))
        with pool(fleet, ws, 1 if plan.prune else plan.jobs, number) as crews:
            failed = _train_ahead(ws, plan, ahead, crews)
            while trial := record.next(most):
                if trial.number in left:
                    say(f"going on with trial {trial.number}, which was interrupted")
                trial = _run(ws, plan, record, trial, crews, failed)
                say(_line(trial))
                run.log([p for p in _points(record.trials()) if p[0] == trial.number])
        _conclude(run, folder, record)
    return record.trials()


def _check(ws: Workspace, plan: Plan, space: Space, fleet: Fleet) -> None:
    """Raise UserError for a plan that cannot be searched, before anything long starts."""
    if fleet.launched:
        raise UserError(
            "search starts its own processes: use --num-processes instead of another launcher"
        )
    if plan.prune and plan.jobs > 1:
        raise UserError(
            f"--jobs {plan.jobs}: with --prune each result decides what is trained next, so one "
            "training runs at a time: leave out one of the two"
        )
    if not re.fullmatch(r"(\w[\w.-]*)?", plan.study):
        raise UserError(f"--study: got {plan.study!r}; give it one word, such as {plan.target}-2")
    if not space:
        raise UserError(f"--space {plan.space}: none of its settings has an effect with the "
                        f"strategy {plan.strategy}")  # fmt: skip
    if len(set(plan.seeds)) < max(2, len(plan.seeds)):
        raise UserError(f"--seeds: got {plan.seeds}; give two or more different ones: "
                        "without them a difference has no interval")  # fmt: skip
    if both := sorted(set(plan.seeds) & set(ws.params.seeds)):
        raise UserError(
            f"--seeds: got {plan.seeds}; {both} are seeds of params.yaml: settings look better "
            "than they are on the seeds that chose them. Take other seeds"
        )
    for name, axis in space.items():
        for value in axis.ends:
            try:
                ws.with_changes(study.overrides({name: value}))
            except UserError as error:
                raise UserError(f"--space {plan.space}: {error}") from error
    if not plan.tpe:
        study.grid(space)


def _fingerprint(ws: Workspace, plan: Plan, space: Space, fleet: Fleet) -> dict[str, Any]:
    """The inputs of a study: settings, and the SHA-256 of each file that trainings read.

    Not the images of a source by class, which grow with the selections of the study itself.
    """
    names = [ws.params.source, plan.target]
    files = [ws.data(name) for name in (names[1:] if ws.by_class else names)]
    files += [ws.embedding(name) for name in names]
    return {
        "target": plan.target,
        "strategy": plan.strategy,
        "sampler": "tpe" if plan.tpe else "grid",
        "seeds": plan.seeds,
        "prune": plan.prune,
        "space": {name: axis.model_dump(exclude_none=True) for name, axis in space.items()},
        **ws.of(plan.strategy).params.model_dump(by_alias=True, include=set(DECISIVE)),
        "files": freshness.of_files(ws, [*files, ws.pretrained() / "model.json"]),
        # batch norm sees the share of a batch that a process has
        **({"processes": fleet.processes} if fleet.processes > 1 else {}),
    }


def _described(plan: Plan, space: Space) -> dict[str, Any]:
    """The parameters of the parent run."""
    return {
        "strategy": plan.strategy,
        "sampler": "tpe" if plan.tpe else "grid",
        "seeds": ", ".join(map(str, plan.seeds)),
        "prune": plan.prune,
        **{
            f"space.{name}": str(axis.model_dump(exclude_defaults=True))
            for name, axis in space.items()
        },
    }


def _tags(ws: Workspace, plan: Plan) -> dict[str, str]:
    return {
        "stage": "search",
        "source": ws.params.source,
        "target": plan.target,
        "strategy": plan.strategy,
    }


def _train_ahead(
    ws: Workspace, plan: Plan, settings: Sequence[Setting], crews: Pool
) -> dict[tuple[str, int], Failure]:
    """Train the trials of a grid at the same time, since none depends on another.

    The trials then find their trainings finished. Returns those that failed, by variant and seed.
    """
    wanted: list[tuple[Workspace, Cell]] = []
    for setting in settings:
        with suppress(Impossible):  # its trial says so
            there = _variant(ws, setting)
            cells = [(there, Cell(plan.target, plan.strategy, seed)) for seed in plan.seeds]
            job.bring(cells)
            wanted += cells
    if not wanted:
        return {}

    def one(crew: Crew, each: tuple[Workspace, Cell]) -> None:
        _measure(each[0], plan, each[1].seed, crew, lambda points: None)

    with closing(crews.run(one, wanted)) as results:
        ends = zip(wanted, results, strict=True)
        return {(v.variant, cell.seed): why for (v, cell), why in ends if why is not None}


def _run(
    ws: Workspace,
    plan: Plan,
    record: Study,
    trial: Trial,
    crews: Pool,
    failed: Mapping[tuple[str, int], Failure],
) -> Trial:
    """Train the missing seeds of a trial; returns it complete, pruned or failed.

    ``failed`` are trainings that have failed before, which are not tried again.

    Seeds are trained at the same time. With pruning they are trained one after the other, since
    each result decides whether the next seed is worth training.
    """
    number = trial.number
    todo = [(place, seed) for place, seed in enumerate(plan.seeds) if seed not in trial.values]
    try:
        there = _variant(ws, trial.setting)
        job.bring([(there, Cell(plan.target, plan.strategy, seed)) for _, seed in todo])
    except Impossible as error:
        if number and _is_of_settings(error, number):
            return record.close(number, "failed")
        raise

    def one(crew: Crew, what: tuple[int, int]) -> float:
        place, seed = what

        def watch(points: Points) -> None:
            for step, numbers in points:
                if VALUE in numbers and plan.prune:
                    record.report(number, place, step, numbers[VALUE])
                    if step < record.length() and record.hopeless(number):
                        raise Pruned

        if error := failed.get((there.variant, seed)):
            raise error
        return _measure(there, plan, seed, crew, watch)

    for part in [[what] for what in todo] if plan.prune else [todo]:
        failure = None
        with closing(crews.run(one, part)) as results:  # closing stops the other seeds
            for (_, seed), found in zip(part, results, strict=True):
                if isinstance(found, Exception):
                    failure = found
                    break
                record.measured(number, seed, found)
        if isinstance(failure, Pruned):
            return _drop(there, plan, record, number, "pruned")
        if number and _is_of_settings(failure, number):
            return _drop(there, plan, record, number, "failed")
        if failure:
            # trial 0 is params.yaml itself; other exit codes (memory) are no fault of settings
            raise failure
        if plan.prune and part[-1][1] != plan.seeds[-1] and record.hopeless(number):
            return record.close(number, "pruned")
    return record.close(number, "complete")


def _is_of_settings(failure: Failure | None, number: int) -> bool:
    """Whether a trial failed by its settings. Logs why, unless a worker has printed it."""
    if isinstance(failure, Impossible):
        logger.warning("trial %s: %s", number, failure)
        return True
    return isinstance(failure, WorkerFailed) and failure.code == USERS_MISTAKE


def _variant(ws: Workspace, setting: Setting) -> Workspace:
    """The project with a trial's settings, and its units; `Impossible` if they do not fit."""
    try:
        there = ws.with_changes(study.overrides(setting))
    except UserError as error:
        raise Impossible(str(error)) from error
    if message := units.own_units(there):
        logger.info(message)
    return there


def _measure(there: Workspace, plan: Plan, seed: int, crew: Crew, watch: job.Watch) -> float:
    """Validation top-1 in percent of one training, which is skipped if its model is finished."""
    cell = Cell(plan.target, plan.strategy, seed)
    made = there.cell("models", cell)
    if freshness.finished(there, cell, crew.fleet.processes):
        history = storage.read_csv(made / "history.csv")
        watch([(int(row["step"]), {VALUE: float(row[VALUE])}) for row in history if row[VALUE]])
    else:
        job.train(there, cell, crew, current=True, watch=watch, begins=_begins(cell))
        used = storage.read_json(made / freshness.FINGERPRINT)["belongs"]
        wanted = freshness.of_cell(there, cell, crew.fleet.processes)
        if names := freshness.differences(used, wanted):  # the value would be of other settings
            which = some(names, freshness.NAMED)
            raise UserError(f"inputs changed while {cell} was trained: {which}; give the command "
                            "again")  # fmt: skip
    return float(storage.read_json(made / "model.json")["validation"][VALUE])


def _begins(cell: Cell) -> Callable[[str], None]:
    """What says where a training begins, if that is elsewhere."""

    def begins(where: str) -> None:
        if where:
            logger.info("%s%s", cell, where)

    return begins


def _drop(there: Workspace, plan: Plan, record: Study, number: int, state: State) -> Trial:
    """Close a trial that is given up, and remove its unfinished trainings."""
    for seed in plan.seeds:
        made = there.cell("models", Cell(plan.target, plan.strategy, seed))
        shutil.rmtree(there.unfinished(made), ignore_errors=True)
    return record.close(number, state)


def _line(trial: Trial) -> str:
    """One trial as a line for the user."""
    line = f"trial {trial.number}, {' '.join(study.overrides(trial.setting))}: {trial.state}"
    if not trial.values:
        return line
    return f"{line}, validation top-1 {interval(list(trial.values.values()))} %"


def _points(trials: list[Trial]) -> Points:
    """The points of the parent run, with the number of the trial as the step."""
    complete = [trial for trial in trials if trial.state == "complete"]
    best = accumulate((trial.mean for trial in complete), max)
    return [
        (trial.number, {"trial/top1": trial.mean, "best/top1": top1})
        for trial, top1 in zip(complete, best, strict=True)
    ]


def _conclude(run: outbox.Run, folder: Path, record: Study) -> None:
    """Write the table and picture of all trials to the study's folder, and add them to its run."""
    trials = record.trials()
    best = study.best(trials)
    header, *rows = study.table(trials)
    shown = folder / "report"
    storage.write_csv(shown / "trials.csv", [dict(zip(header, row, strict=True)) for row in rows])
    means = {t.number: (t.mean, t.state == "complete") for t in trials if t.values}
    storage.write_bytes(shown / "trials.png", figures.search_picture(means, record.importance()))
    run.files(shown)
    gain = study.gain(trials)
    run.tag(
        {
            "best.trial": str(best.number),
            "best.top1": f"{best.mean:.2f}",
            "best.gain": gain.signed(),
            **{f"best.{name}": str(value) for name, value in best.setting.items()},
        }
    )
