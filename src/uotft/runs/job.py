"""The stages with workers, and the tracked ones: under one MLflow run, however many workers.

This process starts the workers, reads what they report, and talks to MLflow. A worker that dies
leaves a run marked FAILED, an interrupt one marked KILLED, and neither one that runs for ever.
Of several machines, only the first one prepares and tracks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from uotft.core import config, dvc, locks, storage
from uotft.core.errors import Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Selection
from uotft.pipeline import (
    compare as compare_stage,
    embed as embed_stage,
    evaluate as evaluate_stage,
    overlap as overlap_stage,
    pretrain as pretrain_stage,
    select as select_stage,
    train as train_stage,
    units,
    workspace,
)
from uotft.pipeline.workspace import Workspace
from uotft.runs import processes
from uotft.runs.processes import Fleet, Points
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
Training = tuple[list[str], Fleet, int]
POLL_S = 1.0  # between two looks at DVC's lock


def pretrain(ws: Workspace, fleet: Fleet) -> str:
    """Pre-train the backbone under one MLflow run; returns a line for the user."""
    if fleet.rank:
        return _join(["pretrain"], fleet)
    with owning(ws, ws.pretrained()) as lock:
        return _pretrain(ws, fleet, lock)


def _pretrain(ws: Workspace, fleet: Fleet, lock: int) -> str:
    params = config.flat({"backbone": ws.params.backbone, **ws.params.pretrain.model_dump()})
    tags = {"stage": "pretrain", "source": ws.params.source} | _left_out(ws, ws.params.source)
    name = f"pretrain-{ws.params.source}"
    belongs = pretrain_stage.pretrain_belongs(ws)
    training = ["pretrain"], fleet, lock
    with _tracked(ws, ws.pretrained(), training, belongs, ws.params.source, name, params, tags) as (
        run,
        follow,
    ):
        follow(lambda points: None)
        facts = _finish(run, ws.pretrained())
    return f"pre-trained on {ws.params.source}: {_validation(facts)}"


def embed(ws: Workspace, dataset: str, num_processes: int) -> str:
    """Compute features, which no run tracks; returns a line for the user."""
    embed_stage.embed_belongs(ws, dataset)  # says what is missing, once and not once a worker
    try:
        with (
            owning(ws, ws.features(dataset)) as lock,
            processes.workers(["embed", dataset], Fleet(num_processes), [lock]) as follow,
        ):
            follow(lambda points: None)
    except Interrupted as error:
        raise Interrupted(
            f"{error}; the same command goes on with the shards that are there"
        ) from error
    return embed_stage.embedded(ws, dataset)


def train(
    ws: Workspace,
    target: str,
    strategy: str,
    seed: int,
    fleet: Fleet,
    *,
    current: bool = False,
    watch: Watch = lambda points: None,
) -> str:
    """Fine-tune one cell under one MLflow run; returns a line for the user.

    What is missing upstream is brought up to date first, unless the caller says that all is
    ``current``. Inside a DVC stage DVC has just done so, and selected, and holds its own lock.
    ``watch`` gets the points as they are logged; what it raises stops the training.
    """
    cell = [target, strategy, str(seed)]
    words, name = ["train", *cell, *ws.words], "-".join([*cell, *Path(ws.variant).parts[1:]])
    if fleet.rank:
        return _join(words, fleet)
    with owning(ws, ws.cell("models", target, strategy, seed)) as lock:
        return _train(ws, target, strategy, seed, (words, fleet, lock), name, current, watch)


def _train(
    ws: Workspace,
    target: str,
    strategy: str,
    seed: int,
    training: Training,
    name: str,
    current: bool,
    watch: Watch,
) -> str:
    """``train``, in a cell that is ours."""
    fleet = training[1]
    if "DVC_STAGE" not in os.environ:
        if not current:
            upstream([ws], [target])
        print(f"uotft: selecting with {strategy}, seed {seed}", file=sys.stderr)  # noqa: T201
        select_stage.select(ws, target, strategy, seed)
    chosen = select_stage.read_selection(ws, target, strategy, seed)
    selector = config.selector_settings(ws.params, strategy).model_dump()
    unit = ws.params.select.unit
    params = config.flat(
        {
            "dataset": target,
            "source": ws.params.source,
            "strategy": strategy,
            "seed": seed,
            "processes": fleet.processes,
            "backbone": ws.params.backbone,
            "source_fraction": ws.params.source_fraction,
            "subset": ws.params.subset.words,
            "cluster": ws.params.cluster.model_dump() if unit == "cluster" else {},
            "select": ws.params.select.model_dump(),
            "strategy.kept": len(chosen["classes"]),
            "strategy.settings": selector,
            "train": ws.params.train.model_dump(by_alias=True),
            "objective": ws.params.objectives.get(ws.params.train.objective, {}),
        }
    )
    folder = ws.cell("selections", target, strategy, seed)
    tags = {
        "stage": "train",
        "source": ws.params.source,
        "target": target,
        "strategy": strategy,
        "seed": str(seed),
        "selection.sha256": storage.fingerprint(folder / "selection.json"),
        store.NOTE: run_notes.kept(strategy, ws.params.source, target, seed, chosen),
        **_left_out(ws, ws.params.source, target),
    }
    made, start = ws.cell("models", target, strategy, seed), monotonic()
    belongs = train_stage.train_belongs(ws, target, strategy, seed)
    cell_belongs = train_stage.cell_belongs(ws, target, strategy, seed, fleet.processes)
    (made / train_stage.BELONGS).unlink(missing_ok=True)
    with _tracked(ws, made, training, belongs, target, name, params, tags) as (run, follow):
        run.files(folder, "selection")
        run.table(chosen["classes"], ("rank", "name", "score"), "selected_classes.json")
        follow(watch)
        facts = _finish(run, made)
    if ws.words:  # of params.yaml's own cells DVC knows what they belong to
        whole = {"belongs": cell_belongs, "seconds": round(monotonic() - start, 3)}
        storage.write_json(made / train_stage.BELONGS, whole)
    return f"trained {name}: {_validation(facts)}"


def _join(words: list[str], fleet: Fleet) -> str:
    """Work for a training that another machine prepares and tracks."""
    with processes.workers(words, fleet) as follow:
        follow(lambda points: None)
    said = f"machine {fleet.rank} has finished {' '.join(words)}; machine 0 has the results"
    return "" if fleet.launched else said


def evaluate(
    ws: Workspace,
    target: str,
    strategy: str,
    progress: workspace.Progress,
    known: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
) -> list[str]:
    """Read the test part once a seed, and add the metrics to the runs that made the weights."""
    wanted: dict[str, Any] = {"known": known, "seeds": seeds}
    results = evaluate_stage.evaluate(ws, target, strategy, progress=progress, **wanted)
    answers, lines = storage.read_answers(ws.predictions(target, strategy)), []
    for seed, m in results.items():
        numbers = {"test/top1": m["top1"], "test/mean_per_class": m["mean_per_class"]}
        said = {int(seed): answers[int(seed)]}
        why = delivery.log_test(ws.root, target, m["model"], numbers, said, m["confusion"])
        note = f" ({why}{'' if why == delivery.NO_RUN else '; `uotft sync` adds it'})" * bool(why)
        lines.append(
            f"{target}-{strategy}-{seed}: test top-1 {m['top1']:.2f} %, "
            f"mean per class {m['mean_per_class']:.2f} %{note}"
        )
    return lines


def register(ws: Workspace, name: str, alias: str, run: str, cell: tuple[str, str, int]) -> str:
    """Put a run's model, or that of a cell, into MLflow's registry; returns a line for the user."""
    if run:
        return model_registry.register(ws.root, name, alias, run=run)
    facts = storage.read_json(ws.cell("models", *cell) / "model.json")
    return model_registry.register(ws.root, name, alias, weights=facts["sha256"])


def compare(ws: Workspace) -> dict[str, Any]:
    """Write reports/, and keep a copy in MLflow as a run of the experiment "reports"."""
    known = {}
    try:
        if store.is_there(ws.root):
            known = reader.origins(ws.root, ws.params.targets)
    except UserError as error:  # the comparison needs no store
        print(f"uotft: {error}; the page has no seconds and versions", file=sys.stderr)  # noqa: T201
    tables = compare_stage.compare(ws, known)
    with session.run(ws.root, "reports", "compare") as run:
        run.begin({}, {"stage": "compare", **store.versions(ws.root)})
        run.files(ws.root / "reports")
    return tables


def compare_runs(
    experiments: list[str],
    filter_string: str,
    tags: dict[str, str],
    by: list[str],
    output: Path | None,
) -> tuple[dict[str, Any], list[str]]:
    """Compare any finished runs of the store; returns the tables and what there is to say of them.

    The store is that of the project around the current folder, which has the images, too.
    """
    root = Workspace.nearest()
    ws = Workspace(root, config.load(root)) if (root / "params.yaml").is_file() else None
    made, out = reader.trials(root, experiments, filter_string, tags)
    names = {name for trial in made for name in trial.settings}
    for name in by:
        if name not in names:
            raise UserError(f"--by: got {name!r}; known are {', '.join(sorted(names))}")
    tables, notes = compare_stage.compare_runs(made, by, output, ws)
    left = [f"runs left out: {reader.left_out(out)}"] if out else []
    return tables, [f"{len(made)} runs", *left, *notes]


@contextmanager
def owning(ws: Workspace, made: Path) -> Iterator[int]:
    """Be the one process that makes the folder ``made``; another one is refused, and told of us.

    Yields the lock's file descriptor, for workers to inherit: they may outlive this process.
    """
    left = ws.unfinished(made)
    with locks.alone(left.with_name(f".{left.name}.lock"), f"{made} is being made") as lock:
        yield lock


def select(ws: Workspace, target: str, strategy: str, seed: int) -> Selection:
    """Select for one cell, unless its training is under way, which reads what it began with."""
    with owning(ws, ws.cell("models", target, strategy, seed)):
        return select_stage.select(ws, target, strategy, seed)


@contextmanager
def _tracked(
    ws: Workspace,
    made: Path,
    training: Training,
    belongs: dict[str, Any],
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
) -> Iterator[tuple[outbox.Run, processes.Follow]]:
    """Workers, started or going on, and the run that tracks them; ``made`` is what they write.

    ``training`` is the worker's words, the processes that hear them, and the lock that they hold.
    """
    left, (words, fleet, lock) = ws.unfinished(made), training
    with (
        _resumable(left, belongs) as run_id,
        session.run(ws.root, experiment, name, run_id=run_id, watched=True) as run,
        processes.workers(words, fleet, [lock, *run.open], run.points) as follow,
    ):
        checkpoints.remember_run(left, run.id, belongs)
        # the versions take a second to read: workers have started by then
        data = {str(role): tags[role] for role in ("target", "source") if role in tags}
        run.begin(params, tags | store.versions(ws.root), data)
        yield run, follow


@contextmanager
def _resumable(left: Path, belongs: dict[str, Any]) -> Iterator[str]:
    """Yields the run that a training with the unfinished folder ``left`` goes on with, or "".

    The folder goes when the training has finished, and stays on any exception.
    """
    if aside := checkpoints.claim(left, belongs):
        print(f"uotft: {aside}", file=sys.stderr)  # noqa: T201
    if found := checkpoints.newest(left):
        step = found[1]["step"]
        print(f"uotft: going on at step {step}, with {found[0]}", file=sys.stderr)  # noqa: T201
    try:
        yield checkpoints.run_id(left)
    except Interrupted as error:
        found = checkpoints.newest(left)
        where = f"goes on at step {found[1]['step']}" if found else "starts it anew"
        raise Interrupted(f"{error}; the same command {where}") from error
    if left.exists():
        checkpoints.remove(left)


def _finish(run: outbox.Run, folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = storage.read_json(folder / "model.json")
    overlap = {f"overlap.{name}": str(count) for name, count in facts.get("overlap", {}).items()}
    run.model(folder)
    run.tag({store.WEIGHTS: facts["sha256"], **overlap})  # after the model: who finds it, finds one
    return facts


def _validation(facts: dict[str, Any]) -> str:
    top1, mean = facts["validation"]["val/top1"], facts["validation"]["val/mean_per_class"]
    return f"validation top-1 {top1:.2f} %, mean per class {mean:.2f} %"


def upstream(workspaces: Sequence[Workspace], targets: Sequence[str]) -> None:
    """Bring units, embeddings and overlaps up to date with DVC, which knows what is stale.

    ``workspaces`` are variants of one; then come the units of those that need their own.
    """
    ws = workspaces[0]
    wanted = sorted({f"embed@{w.params.source}" if w.upstream else "units" for w in workspaces})
    wanted += [f"embed@{target}" for target in targets]
    wanted += [f"overlap@{target}" for target in targets if target in ws.params.targets]
    if not _made_already(ws, targets, wanted):
        _repro(ws, wanted)
    for target in targets:
        if target not in ws.params.targets:  # dvc.yaml has no such stage
            overlap_stage.overlap(
                ws.params.source, target, ws.overlap(target), progress=track, workspace=lambda: ws
            )
    for each in workspaces:
        if said := units.own_units(each):
            print(f"uotft: {said}", file=sys.stderr)  # noqa: T201


def _made_already(ws: Workspace, targets: Sequence[str], wanted: list[str]) -> bool:
    """Whether DVC is held by somebody else, and need not be asked; waits for it where it must be.

    What is there is then taken at dvc.lock's word, and the fingerprints in it must go together.
    """
    if not (held := dvc.holder(ws.root)):
        return False
    before = [f"{stage}@{ws.params.source}" for stage in ("prepare", "embed")]
    prepared = [f"prepare@{target}" for target in targets]
    unmade = dvc.unmade(ws.root, [*before, *prepared, "pretrain", *wanted])
    if not unmade:
        print(  # noqa: T201
            f"uotft: process {held} holds DVC's lock; by dvc.lock all is made with the settings of "
            "params.yaml, and changed images or code are not looked for",
            file=sys.stderr,
        )
        return True
    print(  # noqa: T201
        f"uotft: waiting for process {held}, which holds DVC's lock: to be made are "
        f"{', '.join(unmade)}",
        file=sys.stderr,
    )
    while dvc.holder(ws.root):
        sleep(POLL_S)
    return False


def _repro(ws: Workspace, wanted: list[str]) -> None:
    print(f"uotft: bringing up to date: dvc repro {' '.join(wanted)}", file=sys.stderr)  # noqa: T201
    # DVC's stages are processes of their own, not of the training that waits for them
    alone = {k: v for k, v in os.environ.items() if k not in processes.PLACE}
    environment = {**alone, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *wanted]
    environment |= processes.mark()
    # a session of its own: its stages are asked to stop, too, and waited for
    process = subprocess.Popen(command, cwd=ws.root, env=environment, start_new_session=True)
    try:
        process.wait()
    finally:
        processes.stop(process)
    if process.returncode:
        raise UserError(f"dvc repro {' '.join(wanted)} failed; its message stands above")


def _left_out(ws: Workspace, *datasets: str) -> dict[str, str]:
    """Tags that count the files of data sets that cannot be read, where there are any."""
    summaries = {name: storage.read_json(ws.data(name).with_suffix(".json")) for name in datasets}
    counts = {name: summary["images"].get("unreadable", 0) for name, summary in summaries.items()}
    return {f"unreadable.{name}": str(count) for name, count in counts.items() if count}
