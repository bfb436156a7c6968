"""Hyper-parameter search: trials through `launch`, under one MLflow run with a child a training.

Validation images alone decide. The test part is `uotft evaluate`'s, which is never called here.

    uotft search --dataset digits --strategy uot --space paper
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from uotft.analysis import figures
from uotft.analysis.statistics import interval
from uotft.core import locks, storage
from uotft.core.errors import Pruned, UserError, WorkerFailed
from uotft.pipeline import train, units
from uotft.pipeline.workspace import Workspace
from uotft.runs import job, study as space_and_study
from uotft.runs.processes import Fleet, Points
from uotft.tracking import outbox, session, store
from uotft.training import checkpoints

Say = Callable[[str], object]
Answer = tuple[list[tuple[str, ...]], tuple[str, ...]]
DECISIVE = ("source", "source_fraction", "backbone", "subset", "select", "cluster", "selectors",
            "objectives", "train")  # fmt: skip
VALUE = "val/top1"
USERS_MISTAKE = 2  # the exit code of a training that diverged, or whose settings cannot be
TRIALS = 20  # of --sampler tpe, where nobody says how many


@dataclass(frozen=True)
class Plan:
    """What is searched, how, and on which seeds; ``trials`` 0: the whole grid, or 20."""

    target: str
    strategy: str
    space: str
    tpe: bool
    seeds: list[int]
    trials: int = 0
    prune: bool = False
    study: str = ""


def search(ws: Workspace, plan: Plan, output: Path, fleet: Fleet, say: Say) -> Answer:
    """Run the trials that are missing, write the best settings.

    Returns the table of trials and what to say of it. The same words go on after an interruption.
    """
    text = (ws.root / "params.yaml").read_text(encoding="utf-8")
    space = space_and_study.deciding(space_and_study.read_space(plan.space), plan.strategy)
    default = space_and_study.standing(text, space)
    _check(ws, plan, space, fleet)
    name = plan.study or f"{plan.target}-{plan.strategy}"
    folder = ws.root / "search" / name
    busy = (
        f"{folder}: another `uotft search` is at work on this study: wait for it, or give this one "
        "a name of its own with --study"
    )
    with locks.alone(folder.with_name(f".{folder.name}.lock"), busy):
        job.upstream([ws], [plan.target])
        belongs = _belongs(ws, plan, space)
        if aside := checkpoints.claim(folder, belongs):
            print(f"uotft: {aside}", file=sys.stderr)  # noqa: T201
        before = checkpoints.run_id(folder)
        about = ws.root, plan.target, f"search-{name}"
        with session.run(*about, run_id=before, watched=True) as run:
            checkpoints.remember_run(folder, run.id, belongs)
            words = {f"default.{k}": v for k, v in default.items()}
            tags = _tags(ws, plan) | store.versions(ws.root)
            run.begin({**_described(plan, space), **words}, tags)
            study = space_and_study.Study(folder / "study.db", space, default, tpe=plan.tpe)
            run.log(_points(study.trials()))  # those that it has are not sent again
            most = plan.trials or (TRIALS if plan.tpe else sys.maxsize)
            left = {trial.number for trial in study.trials() if trial.state == "running"}
            while trial := study.next(most):
                if trial.number in left:
                    say(f"going on with trial {trial.number}, which was left half done")
                trial = _run(ws, plan, study, trial, fleet)
                say(_line(trial))
                run.log([p for p in _points(study.trials()) if p[0] == trial.number])
            _conclude(run, folder, study)
    trials = study.trials()
    storage.write_bytes(
        output, space_and_study.rewritten(text, space_and_study.best(trials).setting).encode()
    )
    return space_and_study.table(trials), (
        f"seeds {', '.join(map(str, plan.seeds))}: {space_and_study.verdict(trials)}",
        f"{output} has the settings of trial {space_and_study.best(trials).number}",
    )


def _check(ws: Workspace, plan: Plan, space: space_and_study.Space, fleet: Fleet) -> None:
    """Refuse what cannot be searched, before anything long starts."""
    if fleet.launched:
        raise UserError("search starts its own processes: give --num-processes, and no launcher")
    if not re.fullmatch(r"(\w[\w.-]*)?", plan.study):
        raise UserError(f"--study: got {plan.study!r}; a word is needed, like {plan.target}-2")
    if not space:
        raise UserError(f"--space {plan.space}: none of its settings decides anything for the "
                        f"strategy {plan.strategy}")  # fmt: skip
    if len(set(plan.seeds)) < max(2, len(plan.seeds)):
        raise UserError(f"--seeds: got {plan.seeds}; two or more different ones are needed, for "
                        "without them a difference has no interval")  # fmt: skip
    if both := sorted(set(plan.seeds) & set(ws.params.seeds)):
        raise UserError(
            f"--seeds: got {plan.seeds}; {both} are seeds of params.yaml: settings chosen on their "
            "images look better on them than they are. Take others"
        )
    for name, axis in space.items():
        for value in axis.ends:
            try:
                ws.with_changes(space_and_study.words({name: value}))
            except UserError as error:
                raise UserError(f"--space {plan.space}: {error}") from error
    if not plan.tpe:
        space_and_study.grid(space)


def _belongs(ws: Workspace, plan: Plan, space: space_and_study.Space) -> dict[str, Any]:
    """What a study belongs to: settings, and fingerprints of what its trainings read."""
    names = ws.params.source, plan.target
    files = [path(name) for path in (ws.data, ws.embedding) for name in names]
    return {
        "target": plan.target,
        "strategy": plan.strategy,
        "sampler": "tpe" if plan.tpe else "grid",
        "seeds": plan.seeds,
        "prune": plan.prune,
        "space": {name: axis.model_dump(exclude_none=True) for name, axis in space.items()},
        **ws.params.model_dump(by_alias=True, include=set(DECISIVE)),
        "files": ws.fingerprints([*files, ws.pretrained() / "model.json"]),
    }


def _described(plan: Plan, space: space_and_study.Space) -> dict[str, Any]:
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


def _run(
    ws: Workspace,
    plan: Plan,
    study: space_and_study.Study,
    trial: space_and_study.Trial,
    fleet: Fleet,
) -> space_and_study.Trial:
    """Train the seeds of a trial that are missing, until it is complete, pruned or failed."""
    there = ws.with_changes(space_and_study.words(trial.setting))
    if said := units.own_units(there):
        print(f"uotft: {said}", file=sys.stderr)  # noqa: T201
    for place, seed in enumerate(plan.seeds):
        if seed in trial.values:
            continue
        number = trial.number

        def watch(points: Points, number: int = number, place: int = place) -> None:
            for step, numbers in points:
                if VALUE in numbers:
                    study.report(number, place, step, numbers[VALUE])
                    if plan.prune and step < study.length() and study.hopeless(number):
                        raise Pruned

        try:
            trial = study.measured(number, seed, _measure(there, plan, seed, fleet, watch))
        except Pruned:
            return _drop(there, plan, study, number, seed, "pruned")
        except WorkerFailed as error:
            # what params.yaml cannot do is no matter of settings, nor is a lack of memory
            if not number or error.code != USERS_MISTAKE:
                raise
            return _drop(there, plan, study, number, seed, "failed")
        if plan.prune and seed != plan.seeds[-1] and study.hopeless(number):
            return study.close(number, "pruned")
    return study.close(trial.number, "complete")


def _measure(there: Workspace, plan: Plan, seed: int, fleet: Fleet, watch: job.Watch) -> float:
    """Validation top-1 in percent after a training; one that is done is not done again."""
    cell = plan.target, plan.strategy, seed
    made = there.cell("models", *cell)
    if train.finished(there, *cell, fleet.processes):
        history = storage.read_csv(made / "history.csv")
        watch([(int(row["step"]), {VALUE: float(row[VALUE])}) for row in history if row[VALUE]])
    else:
        job.train(there, *cell, fleet, current=True, watch=watch)
    return float(storage.read_json(made / "model.json")["validation"][VALUE])


def _drop(
    there: Workspace,
    plan: Plan,
    study: space_and_study.Study,
    number: int,
    seed: int,
    state: space_and_study.State,
) -> space_and_study.Trial:
    """Close a trial whose training has stopped for good, and remove what it has left."""
    made = there.cell("models", plan.target, plan.strategy, seed)
    shutil.rmtree(there.unfinished(made), ignore_errors=True)
    return study.close(number, state)


def _line(trial: space_and_study.Trial) -> str:
    """One trial in words."""
    said = f"trial {trial.number}, {' '.join(space_and_study.words(trial.setting))}: {trial.state}"
    if not trial.values:
        return said
    return f"{said}, validation top-1 {interval(list(trial.values.values()))} %"


def _points(trials: list[space_and_study.Trial]) -> Points:
    """What the parent run shows, with the number of a trial as its step."""
    complete = [trial for trial in trials if trial.state == "complete"]
    best = accumulate((trial.mean for trial in complete), max)
    return [
        (trial.number, {"trial/top1": trial.mean, "best/top1": top1})
        for trial, top1 in zip(complete, best, strict=True)
    ]


def _conclude(run: outbox.Run, folder: Path, study: space_and_study.Study) -> None:
    """The table and the picture of all trials, into the study's folder and the parent run."""
    trials = study.trials()
    best = space_and_study.best(trials)
    header, *rows = space_and_study.table(trials)
    shown = folder / "report"
    storage.write_csv(shown / "trials.csv", [dict(zip(header, row, strict=True)) for row in rows])
    means = {t.number: (t.mean, t.state == "complete") for t in trials if t.values}
    storage.write_bytes(shown / "trials.png", figures.search_picture(means, study.importance()))
    run.files(shown)
    gain = space_and_study.gain(trials)
    run.tag(
        {
            "best.trial": str(best.number),
            "best.top1": f"{best.mean:.2f}",
            "best.gain": gain.signed(),
            **{f"best.{name}": str(value) for name, value in best.setting.items()},
        }
    )
