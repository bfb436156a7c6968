"""The stages with workers, and the tracked ones: under one MLflow run, however many workers.

This process starts the workers, reads what they report, and talks to MLflow. A worker that dies
leaves its run FAILED, an interrupted one leaves it KILLED; no run stays RUNNING.
Of several machines, only the first one prepares and tracks.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from typing import Any

from uotft.core import config, dvc, environment, locks, messages, removal, signals, storage
from uotft.core.errors import Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Cell, Progress, Selection, Stop, never
from uotft.core.text import some
from uotft.pipeline import (
    compatible,
    freshness,
    image_places,
    readers,
    select as select_stage,
    source_classes,
    units,
)
from uotft.pipeline.overlap import overlap
from uotft.pipeline.workspace import Workspace
from uotft.runs import outlook, processes
from uotft.runs.processes import Crew, Fleet, Points
from uotft.tracking import (
    delivery,
    model_registry,
    notes as run_notes,
    outbox,
    reader,
    session,
    store,
)
from uotft.training import checkpoints

Watch = Callable[[Points], None]
_SELECTING = Lock()
POLL_S = 1.0  # between two looks at DVC's lock
BUSY_S = 3600.0  # how long another process may read the test part for the same row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """One training as processes: what it makes, and of which inputs.

    ``made`` is the folder that it writes, ``fingerprint`` that of its inputs, ``locks`` are what
    this process holds meanwhile, and the workers of ``crew`` inherit; ``arguments`` are theirs.
    """

    arguments: list[str]
    crew: Crew
    locks: list[int]
    made: Path
    fingerprint: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What the MLflow run of a training is called, and what it holds from the start."""

    experiment: str
    name: str
    params: dict[str, Any]
    tags: dict[str, str]


def pretrain(ws: Workspace, fleet: Fleet) -> str:
    """Pre-train the backbone under one MLflow run; returns a line for the user."""
    with processes.crew(fleet, ws.root) as crew:
        if fleet.rank:
            return _join(["pretrain"], crew)
        for note in compatible.notes(ws):
            logger.warning(note)
        # it may make the source's features too
        with owning(ws, ws.pretrained()) as own, owning(ws, ws.features(ws.params.source)) as more:
            crew.start()
            return _pretrain(ws, crew, [own, more])


def _pretrain(ws: Workspace, crew: Crew, held: list[int]) -> str:
    params = config.flat({"backbone": ws.params.backbone, **ws.params.pretrain.model_dump()})
    tags = {"stage": "pretrain", "source": ws.params.source} | _left_out(ws, ws.params.source)
    name = f"pretrain-{ws.params.source}"
    fingerprint = freshness.of_pretraining(ws)
    training = Training(["pretrain"], crew, held, ws.pretrained(), fingerprint)
    about = Run(ws.params.source, name, params, tags)
    with _tracked(ws, training, about) as (run, follow):
        follow(lambda points: None)
        facts = _finish(run, ws.pretrained())
    source = ws.params.source
    if ws.by_class or len(facts["classes"]) == 1:
        return f"{source}: {outlook.weights(facts)}"
    line = f"pre-trained on {source}: {outlook.validation(ws, source, facts)}"
    return "\n".join(filter(None, [line, outlook.chance(ws, source, facts, ws.pretrained())]))


def embed(ws: Workspace, dataset: str, fleet: Fleet) -> str:
    """Compute features, which no run tracks; returns a line for the user."""
    from uotft.pipeline.embed import embedded

    if fleet.rank:
        with processes.crew(fleet, ws.root) as crew:
            return _join(["embed", dataset], crew)
    freshness.of_features(ws, dataset)  # says what is missing, once and not once a worker
    try:
        with (
            owning(ws, ws.features(dataset)) as lock,
            processes.crew(fleet, ws.root) as crew,
            crew.work(["embed", dataset], [lock]) as follow,
        ):
            follow(lambda points: None)
    except Interrupted as error:
        raise Interrupted(
            f"{error}; the same command goes on with the shards that are there"
        ) from error
    return embedded(ws, dataset)


def train(
    ws: Workspace,
    cell: Cell,
    crew: Crew,
    *,
    current: bool = False,
    again: bool = False,
    watch: Watch = lambda points: None,
    begins: Callable[[str], object] = lambda where: None,
) -> str:
    """Fine-tune one cell under one MLflow run, by the workers of ``crew``; lines for the user.

    What is missing upstream is brought up to date first, unless the caller says that all is
    ``current``. Inside a DVC stage DVC has just done so, and selected, and holds its own lock.
    A model of the same inputs that is there stays, unless it is to be trained ``again``: not for
    such callers, which know what they want, and not where other machines wait for this one. They
    asked before this process had the cell to itself, so a variant that was finished since stays.
    ``watch`` gets the points as they are logged; what it raises stops the training. ``begins`` is
    called as the training begins, and again if it is lost with its machine; it gets "", or where.
    """
    if crew.elsewhere:
        return crew.elsewhere(ws, cell, watch, begins)
    begins("")
    ws, fleet = _of_row(ws, cell.strategy), crew.fleet
    if fleet.rank:
        return _join(_arguments(ws, cell), crew)
    stage = environment.dvc_stage()
    by_hand = not (stage or current)
    with owning(ws, ws.cell("models", cell)) as lock:
        if by_hand:
            compatible.check(ws, [cell.target], [cell.strategy])
            upstream([ws], [cell.target], crew)
        if not stage:
            logger.info("selecting with %s, seed %s", cell.strategy, cell.seed)
            _select(ws, cell)
            source_images(ws, [cell])
        if facts := None if again else _there(ws, cell, fleet, by_hand=by_hand):
            accuracy = outlook.validation(ws, cell.target, facts)
            line = (
                f"{_name(ws, cell)} is trained already, on these images with these settings: "
                f"{accuracy}{'; --again trains it anew' if by_hand else ''}"
            )
        else:
            facts, line = _train(ws, cell, crew, lock, watch)
    lines = [line]
    if by_hand:
        lines.append(outlook.norms(ws, cell.target))
        lines.append(outlook.made(ws, cell, readers.read_selection(ws, cell)))
    lines.append(outlook.chance(ws, cell.target, facts, ws.cell("models", cell)))
    lines.append(outlook.fallen(ws, cell))
    return "\n".join(line for line in lines if line)


def _there(ws: Workspace, cell: Cell, fleet: Fleet, *, by_hand: bool) -> dict[str, Any] | None:
    """The facts of a model that stays, since it is of the same inputs; None if there is none."""
    if fleet.machines > 1 or fleet.launched or environment.dvc_stage():
        return None
    if by_hand:
        return freshness.trained(ws, cell, fleet.processes)
    if not freshness.finished(ws, cell, fleet.processes):
        return None
    facts: dict[str, Any] = storage.read_json(ws.cell("models", cell) / "model.json")
    return facts


def _of_row(ws: Workspace, strategy: str) -> Workspace:
    """The workspace of a row; a warning names settings of --set that its control replaces.

    Not those that params.yaml has anyway: with such a one, a row of an experiment without settings
    has a folder of its own.
    """
    given = config.parsed(ws.overrides)
    if replaced := sorted(given.keys() & config.fixed(ws.params, strategy)):
        standing = config.flat({"train": config.load(ws.root).train.model_dump(by_alias=True)})
        replaced = [name for name in replaced if given[name] != standing[name]]
    for name in replaced:
        own = f"controls.{strategy}.{name.removeprefix('train.')}"
        logger.warning("--set %s has no effect on %s: %s sets it", name, strategy, own)
    return ws.of(strategy)


def _arguments(ws: Workspace, cell: Cell) -> list[str]:
    """What a worker is told to train one cell."""
    return ["train", cell.target, cell.strategy, str(cell.seed), *ws.overrides]


def _train(
    ws: Workspace, cell: Cell, crew: Crew, lock: int, watch: Watch
) -> tuple[dict[str, Any], str]:
    """``train``, in a cell that is ours and has a selection: the model's facts, and a line."""
    chosen, processes = readers.read_selection(ws, cell), crew.fleet.processes
    about = _about(ws, cell, processes, chosen)
    start, made = monotonic(), ws.cell("models", cell)
    fingerprint = freshness.of_training(ws, cell)
    training = Training(_arguments(ws, cell), crew, [lock], made, fingerprint)
    finished = freshness.of_cell(ws, cell, processes)
    # workers read params.yaml anew
    today = Workspace.find(ws.root).with_changes(ws.overrides).of(cell.strategy)
    if today.params != ws.params:  # in anything; hashing all inputs again takes time
        _must_be_same(freshness.of_training(today, cell), fingerprint, "since this command began")
    (made / freshness.FINGERPRINT).unlink(missing_ok=True)
    with _tracked(ws, training, about) as (run, follow):
        run.files(ws.cell("selections", cell), "selection")
        run.table(chosen["classes"], ("rank", "name", "score"), "selected_classes.json")
        follow(watch)
        facts = _finish(run, made)
        used = {name: facts["made_of"].get(name) for name in fingerprint}
        _must_be_same(used, fingerprint, f"while {cell} was trained")
        top1 = facts["validation"]["val/top1"]
        line = run_notes.headline(cell.strategy, str(cell.seed), "val", top1)
        why = outlook.ending(ws, cell, facts)
        run.tag({run_notes.SOURCE: line, **({store.WARNING: why} if why else {})})
    seconds = monotonic() - start
    if ws.overrides:  # DVC keeps the fingerprints of the cells of params.yaml itself
        freshness.write_finished(ws, cell, finished, seconds)
    accuracy = outlook.validation(ws, cell.target, facts)
    return facts, f"trained {about.name}: {accuracy}"


def _must_be_same(used: freshness.Fingerprint, wanted: freshness.Fingerprint, when: str) -> None:
    """Raise `UserError` if inputs changed: the run would name others than those it used."""
    if names := freshness.differences(used, wanted):
        which = some(names, freshness.NAMED)
        raise UserError(f"inputs changed {when}: {which}; give the command again")


def _name(ws: Workspace, cell: Cell) -> str:
    """What the run of a cell is called."""
    return "-".join([str(cell), *Path(ws.variant).parts[1:]])


def _about(ws: Workspace, cell: Cell, processes: int, chosen: dict[str, Any]) -> Run:
    """The MLflow run of one cell: all settings that decide its result."""
    source, unit = ws.params.source, ws.params.select.unit
    own = config.selector_settings(ws.params, cell.strategy).model_dump()
    names = dict.fromkeys([*ws.params.strategies, *ws.params.selectors])
    others = [config.selector_settings(ws.params, name).model_dump() for name in names]
    # a strategy that ignores K has none in its selection.json
    ignored = {"top_k": run_notes.NONE} if chosen["settings"]["top_k"] is None else {}
    unread = outlook.unread(ws) if chosen["classes"] else ""
    reused = [] if unread else [str(c["name"]) for c in chosen["classes"]]
    params = config.flat(
        {
            "dataset": cell.target,
            "source": source,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "processes": processes,
            "backbone": ws.params.backbone,
            "source_fraction": ws.params.source_fraction,
            "source_means": ws.params.source_means,
            "subset": ws.params.subset.given,
            "cluster": ws.params.cluster.model_dump() if unit == "cluster" else {},
            "select": ws.params.select.model_dump() | ignored,
            "strategy.kept": len(reused),
            run_notes.CLASSES: run_notes.classes(reused, unit),
            "strategy.settings": own | run_notes.lacking(own, others),
            "train": ws.params.train.model_dump(by_alias=True),
            "objective": ws.params.objectives.get(ws.params.train.objective, {}),
        }
    )
    tags = {
        "stage": "train",
        "source": source,
        "target": cell.target,
        "strategy": cell.strategy,
        "seed": str(cell.seed),
        "selection.sha256": storage.fingerprint(ws.cell("selections", cell) / "selection.json"),
        run_notes.SOURCE: run_notes.headline(cell.strategy, str(cell.seed)),
        store.NOTE: "\n\n".join(filter(None, [run_notes.kept(cell, source, chosen), unread])),
        **_left_out(ws, source, cell.target),
    }
    return Run(cell.target, _name(ws, cell), params, tags)


def _join(arguments: list[str], crew: Crew) -> str:
    """Work for a training that another machine prepares and tracks; returns a line for the user."""
    with crew.work(arguments) as follow:
        follow(lambda points: None)
    if crew.fleet.launched:
        return ""
    return (
        f"machine {crew.fleet.rank} has finished {' '.join(arguments)}; machine 0 has the results"
    )


def evaluate(
    ws: Workspace,
    target: str,
    strategy: str,
    progress: Progress,
    known: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
    stop: Stop = never,
) -> list[str]:
    """Read the test part once a seed, and add the metrics to the runs that made the weights.

    Those of ``known`` seeds have been added before. Without ``seeds`` all that have a model.
    """
    from uotft.pipeline.evaluate import evaluate as read_test_part  # torch, which takes seconds

    seeds = seeds or _trained(ws, target, strategy)
    wanted: dict[str, Any] = {"known": known, "seeds": seeds, "stop": stop}
    with environment.memory_kept():
        results = read_test_part(ws, target, strategy, progress=progress, **wanted)
    answers, lines = storage.read_answers(ws.predictions(target, strategy)), []
    for seed, m in results.items():
        if seed in (known or {}):
            continue
        numbers = {"test/top1": m["top1"], "test/mean_per_class": m["mean_per_class"]}
        numbers |= {f"{store.CLEAN}{name}": value for name, value in m.get("clean", {}).items()}
        said = {int(seed): answers[int(seed)]}
        why = delivery.log_test(
            ws.tracking, target, m["model"], numbers, said, m["confusion"], project=ws.project
        )
        note = f" ({why}{'' if why == delivery.NO_RUN else '; `uotft sync` adds it'})" * bool(why)
        lines.append(
            f"{target}-{strategy}-{seed}: test top-1 {m['top1']:.2f} %, "
            f"mean per class {m['mean_per_class']:.2f} %{note}"
        )
    return lines


def _trained(ws: Workspace, target: str, strategy: str) -> list[int]:
    """The seeds that have a model; all, without any or in a DVC stage: what lacks is an error."""
    seeds = ws.seeds(target, strategy)
    models = {seed: ws.cell("models", Cell(target, strategy, seed)) for seed in seeds}
    there = [seed for seed, folder in models.items() if (folder / "model.json").is_file()]
    if environment.dvc_stage() or len(there) in (0, len(seeds)):
        return seeds
    absent = ", ".join(str(seed) for seed in seeds if seed not in there)
    logger.warning("%s-%s: not tested, since not trained yet: seed %s; `uotft train` with --seed "
                   "trains one, `dvc repro` all", target, strategy, absent)  # fmt: skip
    return there


def test(ws: Workspace, cell: Cell, progress: Progress) -> str:
    """Read the test part for one model, unless that has been done; a line for the user."""
    summary = storage.read_json(ws.data(cell.target).with_suffix(".json"))
    if not summary["images"].get("test"):
        return f"{cell}: not tested, since {cell.target} has no test image"
    file = ws.metrics(cell.target, cell.strategy)
    with testing(ws, cell.target, cell.strategy):
        data = storage.fingerprint(ws.data(cell.target))
        known = {
            seed: found
            for seed, found in (storage.read_json(file) if file.is_file() else {}).items()
            if _is_of_today(ws, replace(cell, seed=int(seed)), found, data)
        }
        if own := known.get(str(cell.seed)):
            top1, mean = own["top1"], own["mean_per_class"]
            return f"{cell}: test top-1 {top1:.2f} %, mean per class {mean:.2f} %"
        lines = evaluate(ws, cell.target, cell.strategy, progress, known, [cell.seed])
    return next(line for line in lines if line.startswith(f"{cell}:"))


def testing(ws: Workspace, target: str, strategy: str) -> AbstractContextManager[None]:
    """A lock on the test metrics of a strategy: one file holds those of all its seeds."""
    return locks.waiting(ws.unfinished(ws.metrics(target, strategy)).with_suffix(".lock"), BUSY_S)


def _is_of_today(ws: Workspace, cell: Cell, tested: dict[str, Any], data: str) -> bool:
    """Whether test metrics are of the model on the disk, and that of the data set ``data``."""
    try:
        facts = storage.read_json(ws.cell("models", cell) / "model.json")
    except UserError:
        return False
    return bool(tested.get("model") == facts["sha256"] and facts["data"] == data)


def register(ws: Workspace, name: str, alias: str, run: str, cell: Cell) -> str:
    """Put a run's model, or that of a cell, into MLflow's registry; returns a line for the user."""
    if run:
        return model_registry.register(ws.tracking, name, alias, run=run, project=ws.project)
    facts = storage.read_json(ws.cell("models", cell) / "model.json")
    own = {"weights": facts["sha256"], "project": ws.project}
    return model_registry.register(ws.tracking, name, alias, **own)


def compare(ws: Workspace) -> tuple[dict[str, Any], list[str]]:
    """Write reports/, and keep a copy in MLflow as a run of the experiment "reports".

    Returns the tables, and the cautions below them.
    """
    from uotft.pipeline import compare as compare_stage

    known = {}
    try:
        if store.is_there(ws.tracking):
            known = reader.origins(ws.tracking, ws.params.targets, ws.project)
    except UserError as error:  # the comparison needs no store
        logger.warning("%s; the page has no seconds and versions", error)
    tables, below = compare_stage.compare(ws, known)
    with session.run(ws.tracking, "reports", "compare", project=ws.project) as run:
        run.begin({}, {"stage": "compare", **store.versions(ws.root)})
        run.files(ws.root / "reports")
    return tables, below


def compare_runs(
    experiments: list[str],
    filter_string: str,
    tags: dict[str, str],
    by: list[str],
    output: Path | None,
) -> tuple[dict[str, Any], list[str]]:
    """Compare any finished runs of the store; returns the tables and what there is to say of them.

    The store is that of the project around the current folder, which has the images, too; or one
    that projects share, in this folder or above.
    """
    from uotft.pipeline import compare as compare_stage

    home, ws = Workspace.with_store()

    def images(target: str) -> str:
        path = ws.data(target) if ws else None
        return storage.fingerprint(path) if path and path.is_file() else ""

    own = ws.project if ws else None
    made, out = reader.trials(home, experiments, filter_string, tags, project=own, here=images)
    names = {name for trial in made for name in trial.settings}
    for name in by:
        if name not in names:
            raise UserError(f"--by: got {name!r}; known are {', '.join(sorted(names))}")
    tables, notes = compare_stage.compare_runs(made, by, output, ws)
    left = [f"runs left out: {reader.left_out(out)}"] if out else []
    return tables, [f"{len(made)} runs", *left, *notes]


@contextmanager
def owning(ws: Workspace, made: Path) -> Iterator[int]:
    """Hold the lock on the folder ``made``; a second process is refused, with the owner's name.

    Yields the lock's file descriptor. Workers inherit it, since they may outlive this process.
    """
    left = ws.unfinished(made)
    with locks.exclusive(left.with_name(f".{left.name}.lock"), f"{made} is being made") as lock:
        yield lock


def select(ws: Workspace, cell: Cell) -> Selection:
    """Select for one cell, unless its training is under way, which reads what it began with."""
    with owning(ws, ws.cell("models", cell)):
        return _select(ws, cell)


def _select(ws: Workspace, cell: Cell) -> Selection:
    """Select, one thread at a time.

    Pictures are drawn on the way, and matplotlib is not made for threads.
    """
    with _SELECTING:
        return select_stage.select(ws, cell)


@contextmanager
def _tracked(
    ws: Workspace, training: Training, about: Run
) -> Iterator[tuple[outbox.Run, processes.Follow]]:
    """Start workers, or go on with what they left, and the run that tracks them."""
    left, fingerprint = ws.unfinished(training.made), training.fingerprint
    with (
        _resumable(left, fingerprint) as run_id,
        session.run(
            ws.tracking,
            about.experiment,
            about.name,
            project=ws.project,
            run_id=run_id,
            watched=True,
        ) as run,
        training.crew.work(training.arguments, [*training.locks, *run.open], run.points) as follow,
    ):
        checkpoints.remember_run(left, run.id, fingerprint)
        # the versions take a second to read: workers have started by then
        roles = ("target", "source")
        data = {role: about.tags[role] for role in roles if role in about.tags}
        run.begin(about.params, about.tags | store.versions(ws.root), data)
        yield run, follow


@contextmanager
def _resumable(left: Path, fingerprint: dict[str, Any]) -> Iterator[str]:
    """Yields the run that a training with the unfinished folder ``left`` goes on with, or "".

    The folder goes when the training has finished, and stays on any exception.
    """
    if aside := freshness.claim(left, fingerprint):
        logger.warning(aside)
    if found := checkpoints.newest(left):
        step = found[1]["step"]
        logger.info("going on at step %s, with %s", step, found[0])
    try:
        yield checkpoints.run_id(left)
    except Interrupted as error:
        found = checkpoints.newest(left)
        where = f"goes on at step {found[1]['step']}" if found else "starts its steps anew"
        raise Interrupted(f"{error}; the same command {where}") from error
    if left.exists():
        removal.remove(left)


def _finish(run: outbox.Run, folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = storage.read_json(folder / "model.json")
    overlap = {f"overlap.{name}": str(count) for name, count in facts.get("overlap", {}).items()}
    run.model(folder)
    run.tag({store.WEIGHTS: facts["sha256"], **overlap})  # after the model: who finds it, finds one
    return facts


def upstream(
    workspaces: Sequence[Workspace], targets: Sequence[str], crew: Crew | None = None
) -> None:
    """Bring units, embeddings and overlaps up to date with DVC, which knows what is stale.

    ``workspaces`` are variants of one; then come the units of those that need their own. If
    nothing seems to be missing, ``crew`` starts, and imports torch while DVC looks.
    """
    ws = workspaces[0]
    wanted = sorted({f"embed@{w.params.source}" if w.upstream else "units" for w in workspaces})
    wanted += [f"embed@{target}" for target in targets]
    wanted += [f"overlap@{target}" for target in targets if target in ws.params.targets]
    if ws.by_class:  # the rest comes once classes are selected: `source_images`
        wanted = ["units", *(f"embed@{target}" for target in targets)]
    for dataset in (*([] if ws.by_class else [ws.params.source]), *targets):
        image_places.must_be_there(ws, dataset)  # DVC's own message does not say what to do
    if not _made_already(ws, targets, wanted):
        if line := outlook.first(ws, targets[0]):
            logger.info(line)
        elif crew:
            crew.start()
        _repro(ws, wanted)
    if not ws.by_class:
        _overlaps(ws, targets)
    for each in workspaces:
        if message := units.own_units(each):
            logger.info(message)


def source_images(ws: Workspace, cells: Sequence[Cell]) -> None:
    """Bring the images of the classes that ``cells`` keep, where the source comes by class.

    Only their own stages of DVC run then: the stages before them would select for every cell.
    """
    if not ws.by_class:
        return
    targets = sorted({cell.target for cell in cells})
    with _SELECTING:
        before = source_classes.listed_classes(ws)
        for line in source_classes.fetch(ws, track, cells):
            logger.info(line)
        wanted = [f"prepare@{ws.params.source}"]
        wanted += [f"overlap@{target}" for target in targets if target in ws.params.targets]
        if source_classes.listed_classes(ws) != before or dvc.unmade(ws.root, wanted):
            _repro(ws, wanted, alone=True)
        _overlaps(ws, targets)


def bring(jobs: Sequence[tuple[Workspace, Cell]]) -> None:
    """Select for all cells that train at a time, and bring their images, if these come by class.

    While they train, no images may be added: that would change what they read.
    """
    for ws, cell in jobs:
        if ws.by_class:
            _select(ws, cell)
    for ws in {ws.variant: ws for ws, _ in jobs}.values():
        source_images(ws, [cell for other, cell in jobs if other.variant == ws.variant])


def _overlaps(ws: Workspace, targets: Sequence[str]) -> None:
    """Look for overlaps of targets that dvc.yaml has no stage for."""
    for target in targets:
        if target not in ws.params.targets:
            overlap(
                ws.params.source, target, ws.overlap(target), progress=track, workspace=lambda: ws
            )


def _made_already(ws: Workspace, targets: Sequence[str], wanted: list[str]) -> bool:
    """Whether all is made while another process holds DVC's lock, so that DVC need not be asked.

    Outputs are then believed to be what dvc.lock says. If some are missing, waits for the lock.
    """
    if not (held := _runs_dvc(ws)):
        return False
    before = [f"{stage}@{ws.params.source}" for stage in ("prepare", "embed") if not ws.by_class]
    prepared = [f"prepare@{target}" for target in targets]
    unmade = dvc.unmade(ws.root, [*before, *prepared, "pretrain", *wanted])
    if not unmade:
        logger.warning(
            "process %s holds DVC's lock; by dvc.lock all is made with the settings of "
            "params.yaml, and changed images or code are not looked for",
            held,
        )
        return True
    logger.info(
        "waiting for process %s, which holds DVC's lock: to be made are %s",
        held,
        ", ".join(unmade),
    )
    while _runs_dvc(ws):
        sleep(POLL_S)
    return False


def _dvc_lock(ws: Workspace) -> Path:
    """Our own lock around DVC, whose locks take a process of another machine for dead."""
    return ws.unfinished(ws.root / ".dvc.lock")


def _runs_dvc(ws: Workspace) -> str:
    """The process that runs DVC in this project, here or on another machine; "" if none does."""
    return dvc.holder(ws.root) or locks.holder(_dvc_lock(ws))


def _repro(ws: Workspace, wanted: list[str], *, alone: bool = False) -> None:
    """Run DVC; where this process is stopped, DVC and its stages are stopped first.

    The stages that ``wanted`` depend on run before, unless these are to run ``alone``.
    """
    if absent := dvc.absent_settings(ws.root):
        defaults = config.load(ws.root).model_dump(mode="json", by_alias=True)
        lines = ", ".join(f"`{key}: {_default(defaults, key)}`" for key in absent)
        raise UserError(
            f"{ws.root / 'params.yaml'} lacks settings that dvc.yaml needs written down, as files "
            f"of older versions do: add {lines}"
        )
    wanted = ["--single-item"] * alone + wanted
    if held := locks.holder(_dvc_lock(ws)):
        logger.info("waiting for process %s, which runs DVC in this project", held)
    logger.info("bringing up to date: dvc repro %s", " ".join(wanted))
    quiet = ["--quiet"] if messages.are_quiet() else []
    dvc.keep_indexes_apart(ws.root)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *quiet, *wanted]
    with (
        locks.waiting(_dvc_lock(ws), inf),
        signals.running(command, cwd=ws.root, env=environment.unlaunched()) as process,
    ):
        process.wait()
    if process.returncode:
        raise UserError(f"dvc repro {' '.join(wanted)} failed; its message stands above")


def _default(defaults: dict[str, Any], key: str) -> str:
    """The setting ``a.b`` as params.yaml has it; an empty section has its defaults."""
    value: Any = reduce(lambda found, word: found.get(word, {}), key.split("."), defaults)
    return "{}" if isinstance(value, dict) else json.dumps(value)


def _left_out(ws: Workspace, *datasets: str) -> dict[str, str]:
    """Tags that count the files of data sets that cannot be read, where there are any."""
    files = {name: ws.data(name).with_suffix(".json") for name in datasets}
    # a source by class has its images later than its weights
    summaries = {
        n: storage.read_json(p) for n, p in files.items() if p.is_file() or not ws.by_class
    }
    counts = {name: summary["images"].get("unreadable", 0) for name, summary in summaries.items()}
    return {f"unreadable.{name}": str(count) for name, count in counts.items() if count}
