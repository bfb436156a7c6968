"""The commands of the pipeline in its order, from prepare (images) to compare (tables).

uotft train --dataset digits --strategy uot --seed 0
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uotft.cli.options import (
    Again,
    All,
    Backbone,
    Current,
    Dataset,
    DryRun,
    Expected,
    ImageNetCopy,
    Jobs,
    LabelTable,
    MachineRank,
    Machines,
    MainIp,
    MainPort,
    OtherSource,
    Overrides,
    OwnPreset,
    Processes,
    Scheduler,
    Seed,
    Strategy,
    Subset,
    TargetOrImages,
    check_all,
    given,
    name_and_value,
    overrides,
    workspace,
)
from uotft.cli.tables import print_table
from uotft.core import environment
from uotft.core.errors import UserError
from uotft.core.progress import track
from uotft.core.seeds import LAST_SEED

if TYPE_CHECKING:
    from uotft.core.records import Selection
    from uotft.runs.plan import Plan

NAMES = 20  # kept classes that `uotft select` prints by name

logger = logging.getLogger(__name__)


def prepare(
    dataset: Annotated[
        str,
        typer.Option(help="A data set with a section in params.yaml; not needed in a DVC stage."),
    ] = "",
) -> None:
    """Read, check and split the images of a data set: data/DATASET.npz."""
    from uotft.pipeline import compatible
    from uotft.pipeline.prepare import prepare

    # DVC runs commands through a shell, where a name could do harm; DVC_STAGE holds it safely
    dataset = dataset or environment.dvc_stage().rpartition("@")[2]
    if not dataset:
        raise UserError("prepare needs --dataset, a data set with a section in params.yaml")
    ws = workspace()
    compatible.check(ws, ws.params.targets, ws.params.strategies)  # before any stage takes time
    typer.echo(prepare(ws, dataset, progress=track))


def pretrain(
    num_processes: Processes = 1,
    num_machines: Machines = 1,
    machine_rank: MachineRank = 0,
    main_process_ip: MainIp = "",
    main_process_port: MainPort = 29500,
) -> None:
    """Train the backbone on all source classes, or take published weights: pretrained/SOURCE/."""
    from uotft.runs import job, processes

    ws = workspace()
    fleet = processes.fleet(
        num_processes, num_machines, machine_rank, main_process_ip, main_process_port
    )
    if line := job.pretrain(ws, fleet):
        typer.echo(line)


def embed(
    dataset: Dataset,
    num_processes: Processes = 1,
    num_machines: Machines = 1,
    machine_rank: MachineRank = 0,
    main_process_ip: MainIp = "",
    main_process_port: MainPort = 29500,
) -> None:
    """Compute features of training images with the pre-trained backbone: embeddings/."""
    from uotft.runs import job, processes

    ws = workspace(dataset)
    fleet = processes.fleet(
        num_processes, num_machines, machine_rank, main_process_ip, main_process_port
    )
    if line := job.embed(ws, dataset, fleet):
        typer.echo(line)


def units(
    features: Annotated[
        str, typer.Option(help="Features of your own: an npz with an array means, or an npy.")
    ] = "",
    output: Annotated[str, typer.Option(help="The file of cluster means to write.")] = "",
    clusters: Annotated[
        int | None, typer.Option(help="The number of clusters; 2000 if not given.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="The most iterations of k-means; 20 if not given.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=LAST_SEED, help="Seed of the first centroids; 0 if not given."),
    ] = None,
) -> None:
    """Make the units that strategies score: class means, clusters or single images of the source.

    With --features and --output it clusters any features (images x features), to use as select
    --source-bank. This needs no params.yaml. Else the section cluster of params.yaml has the
    settings.
    """
    from uotft.core import paths
    from uotft.pipeline import bank_files
    from uotft.pipeline.units import cluster_bank, units

    if bool(features) != bool(output):
        raise UserError("units: --features and --output go together")
    settings = _given({"clusters": clusters, "iterations": iterations, "seed": seed})
    if features:
        bank_files.check_name(Path(output))
        paths.must_not_replace(Path(output), [features])
        typer.echo(cluster_bank(features, output, settings))
    elif settings:
        raise UserError(
            "units: without --features and --output, params.yaml has the settings: in place of "
            f"{', '.join(f'--{name}' for name in settings)}, change "
            f"{', '.join(f'cluster.{name}' for name in settings)} there"
        )
    else:
        typer.echo(units(workspace()))


def select(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Option(help="A target with a section in params.yaml.")] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    source_bank: Annotated[
        str, typer.Option(help="Class means: npz, npy, safetensors; or imagenet:BACKBONE.")
    ] = "",
    target_bank: Annotated[str, typer.Option(help="The same of the target.")] = "",
    target: Annotated[
        str, typer.Option(help="Or a folder of images, embedded by the bank's backbone.")
    ] = "",
    backbone: Annotated[
        str, typer.Option(help="With --target, what made the bank, such as resnet18.")
    ] = "",
    size: Annotated[int, typer.Option(min=8, help="With --target, pixels a side it sees.")] = 224,
    output: Annotated[str, typer.Option(help="Where selection.json goes.")] = "",
    metric: Annotated[str | None, typer.Option(help="cosine or l2.")] = None,
    cost_scale: Annotated[float | None, typer.Option(help="eps_c of uot.")] = None,
    top_k: Annotated[str | None, typer.Option(help="How many classes are kept, or auto.")] = None,
    max_per_class: Annotated[int | None, typer.Option(help="Cap for rows that are images.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, any setting of the strategy.")
    ] = None,
    expect: Expected = None,
    table: LabelTable = "",
    pictures: Annotated[str, typer.Option(help="A folder for pictures.")] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which target classes each kept class serves.")
    ] = False,
    all_: All = False,
) -> None:
    """Keep the K source classes that a strategy scores highest.

    With --dataset: a stage of the pipeline, set by params.yaml, that writes selections/.
    With --source-bank, --target-bank and --output: on two files of class means, without a project.
    With --source-bank and --target: for a folder of images, from a bank or, with
    imagenet:BACKBONE, from ImageNet's 1000 classes without any image of them; K is then 100.
    """
    from uotft.core import config

    _check_select(ctx, dataset, strategy)
    settings = _given({"metric": metric, "cost_scale": cost_scale} | config.parsed(set_ or []))
    wanted = _given({"top_k": _number(top_k), "max_per_class": max_per_class})
    sides, extras = (source_bank, target, target_bank, backbone), (expect or [], table, pictures)
    if not dataset:
        request = strategy, settings, wanted, seed
        chosen = _select_brought(sides, size, output, request, (explain, *extras))
    else:
        from uotft.core.records import Cell
        from uotft.runs import cells, job

        ws = workspace(dataset, strategy)
        if all_:
            for line in cells.select(ws, dataset):
                typer.echo(line)
            return
        chosen = job.select(ws, Cell(dataset, strategy, seed))
    _print_selection(chosen, explain=explain)


def _check_select(ctx: typer.Context, dataset: str, strategy: str) -> None:
    """Raise `UserError` for options that a selection would ignore."""
    from uotft.selection import choosing

    check_all(ctx, "strategy", "seed", "explain")
    if dataset and given(ctx) - {"dataset", "strategy", "seed", "explain", "all_"}:
        raise UserError("select --dataset goes with --strategy, --seed and --explain alone; "
                        "params.yaml has its settings")  # fmt: skip
    if "top_k" in given(ctx) and choosing.ignores_k(strategy):
        raise UserError(f"select: --strategy {strategy} keeps as many classes as its own settings "
                        "say, whatever K is: leave out --top-k")  # fmt: skip


def _select_brought(
    sides: tuple[str, str, str, str],
    size: int,
    output: str,
    request: tuple[str, dict[str, Any], dict[str, Any], int],
    extras: tuple[bool, list[str], str, str],
) -> Selection:
    """Select from what the options name, without a project; prints the recall, if any is wanted."""
    from uotft.core import paths
    from uotft.pipeline.select import IMAGENET, BankFiles, Extras, bank_request, select_banks

    source, target, target_bank, backbone = sides
    if target and target_bank:
        raise UserError("select: --target and --target-bank exclude each other")
    paths.must_not_replace(Path(output), [source, target_bank, extras[2]])
    if Path(output).is_dir() and output:
        raise UserError(f"--output {output}: a folder; name the file for selection.json")
    if backbone and not target:
        raise UserError("select: --backbone goes with --target, a folder of images to embed")
    strategy, settings, wanted, seed = request
    explain, expect, table, pictures = extras
    said = Extras(explain, tuple(expect), table, pictures)
    is_rows = source.startswith(IMAGENET)
    if source and (target or (is_rows and target_bank)):
        from uotft.core import registry
        from uotft.pipeline import banks  # torch
        from uotft.pipeline.init import PAPERS_K
        from uotft.selection.classifier import COST_SCALE

        wanted = {**({"top_k": PAPERS_K} if is_rows else {}), **wanted}
        module = registry.load("strategies", strategy, "strategy")
        if is_rows and "cost_scale" in module.Settings.model_fields:
            settings = {"cost_scale": COST_SCALE, **settings}
        made = bank_request(strategy, settings, wanted, seed)
        chosen, recall = banks.select(banks.Sides(*sides, size), output, made, said, track)
    elif source and target_bank and output:
        made = bank_request(strategy, settings, wanted, seed)
        chosen, recall = select_banks(BankFiles(source, target_bank, output), made, said)
    else:
        raise UserError("select needs --dataset, or --source-bank, --target-bank and --output, or "
                        "--source-bank and --target")  # fmt: skip
    if recall:
        typer.echo(recall)
    return chosen


def _print_selection(chosen: Selection, *, explain: bool) -> None:
    """Print the classes kept; with ``explain``, also the target classes that each one serves."""
    from uotft.core.text import some
    from uotft.selection.ranking import serves

    kept = [chosen.names[row] for row in chosen.kept]
    names = f": {some(kept, NAMES)}" if kept else ""
    typer.echo(f"{chosen.strategy}: {len(kept)} of {len(chosen.names)} kept{names}")
    if explain:
        for name, served in zip(kept, serves(chosen), strict=True):
            shares = ", ".join(f"{s['name']} {100 * s['share']:.0f} %" for s in served)
            typer.echo(f"{name}: {shares}")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def _number(text: str | None) -> int | str | None:
    """``text`` as a number if it is one; the settings check any other text."""
    return int(text) if text and text.isdecimal() else text


def train(
    ctx: typer.Context,
    dataset: TargetOrImages,
    source: OtherSource = "",
    preset: OwnPreset = "",
    backbone: Backbone = "",
    imagenet: ImageNetCopy = None,
    dry_run: DryRun = False,
    strategy: Strategy = "uot",
    seed: Seed = 0,
    num_processes: Processes = 1,
    num_machines: Machines = 1,
    machine_rank: MachineRank = 0,
    main_process_ip: MainIp = "",
    main_process_port: MainPort = 29500,
    set_: Overrides = None,
    subset: Subset = "",
    again: Again = False,
    all_: All = False,
    jobs: Jobs = 0,
    current: Current = False,
) -> None:
    """Fine-tune on a target and the selected classes, tracked in MLflow: models/.

    A public set or your own images get a project of their own, uotft-DATASET/. A plan comes first;
    then everything is fetched, trained and tested that is missing. The same command goes on after
    an interruption. Without --source, classes of ImageNet are selected by the weights alone, and
    only their images are fetched.

    In a project, what is missing upstream (prepare, pretrain, embed, units, select) is brought up
    to date first. With --all, every cell of params.yaml on this target that has no model yet,
    --jobs at a time. With --set, with other settings: variants/SETTINGS/models/.
    """
    from uotft.core.records import Cell
    from uotft.runs import cells, job, plan, processes, whole

    check_all(ctx, "strategy", "seed", "again")
    changes = overrides(set_, subset)
    cell = Cell((not source and whole.section(dataset)) or dataset, strategy, seed)
    order = whole.order(cell, source, preset, backbone, changes)
    cell = order.cell if order else cell
    if imagenet:
        whole.note_imagenet(imagenet, order, remember=not dry_run)
    if dry_run:
        ws = order.preview() if order else workspace(cell.target, strategy)
        ws = whole.at(ws, imagenet).with_changes(changes)
        _show(plan.plan(ws, cells.asked(ws, cell, every=all_)))
        return
    folder = whole.ready(order, _show, every=all_) if order else None
    ws = workspace(cell.target, strategy, start=folder).with_changes(changes)
    here = num_processes, num_machines, machine_rank, main_process_ip, main_process_port
    fleet = processes.fleet(*here)
    if all_:
        typer.echo(cells.train(ws, cell.target, fleet, jobs))
    else:
        with processes.crew(fleet, ws.root) as crew:
            if lines := job.train(ws, cell, crew, current=current, again=again):
                typer.echo(lines)
    for each in cells.asked(ws, cell, every=all_) if order and not fleet.rank else ():
        typer.echo(job.test(ws, each, track))


def _show(found: Plan) -> None:
    """A plan: the table of what is to be fetched, and lines."""
    header, *rows = found.rows()
    typer.echo(found.title)
    if rows:
        print_table(header, rows, width=150)
    for line in found.lines():
        typer.echo(line)


def forecast(dataset: Dataset) -> None:
    """Measure before training how far source gradients are from the target's: forecast/."""
    from statistics import fmean

    from uotft.pipeline.forecast import forecast

    with environment.memory_kept():
        cells = forecast(workspace(dataset), dataset, progress=track)
    for strategy, seeds in cells.items():
        delta2, cosine = (
            fmean(cell["selected"][name] for cell in seeds.values())
            for name in ("delta2", "cosine")
        )
        typer.echo(f"{dataset}-{strategy}: delta^2 {delta2:.4g}, cosine {cosine:+.3f}")
    if not cells:
        typer.echo(
            f"{dataset}: no forecast; it needs a strategy that keeps classes or clusters, of a "
            "source that is here as a whole and has two classes or more"
        )


def evaluate(
    ctx: typer.Context,
    dataset: Dataset,
    strategy: Strategy = "uot",
    set_: Overrides = None,
    subset: Subset = "",
    all_: All = False,
) -> None:
    """Measure accuracy on the test images, for every seed of a strategy that has a model: metrics/.

    With --set, for the models that train --set made: variants/SETTINGS/metrics/.
    """
    from uotft.runs import cells, job

    check_all(ctx, "strategy")
    ws = workspace(dataset, strategy).with_changes(overrides(set_, subset))
    if all_:
        lines: Iterable[str] = cells.evaluate(ws, dataset)
    else:
        lines = job.evaluate(ws, dataset, strategy, track)
    for line in lines:
        typer.echo(line)


def search(
    dataset: Dataset,
    strategy: Strategy = "uot",
    space: Annotated[str, typer.Option(help="paper, wide, or a YAML file of settings.")] = "paper",
    sampler: Annotated[
        str, typer.Option(help="grid tries all choices; tpe is Optuna's sampler.")
    ] = "grid",
    trials: Annotated[
        int, typer.Option(min=0, help="The most trials; 0: the whole grid, or 20 with tpe.")
    ] = 0,
    seeds: Annotated[
        str, typer.Option(help="Seeds of each trial; none may be in params.yaml.")
    ] = "100,101,102,103,104",
    prune: Annotated[
        bool, typer.Option("--prune", help="Stop trials below the median of the others.")
    ] = False,
    study: Annotated[
        str, typer.Option(help="A folder in search/, by default DATASET-STRATEGY.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Where the best settings go: params.best.yaml."),
    ] = None,
    num_processes: Processes = 1,
    jobs: Jobs = 0,
    scheduler: Scheduler = "",
) -> None:
    """Search for good settings on validation images alone: learning rate, lambda, K or any other.

    After an interruption the same command goes on. The best settings become a params file. All
    trials are in search/ and in one MLflow run with a child run a training. No test image is read.
    """
    from uotft.runs import processes, search

    if sampler not in ("grid", "tpe"):
        raise UserError(f"--sampler: got {sampler!r}; choose grid or tpe")
    numbers = seeds.split(",")
    if not all(n.strip().isdecimal() and int(n) <= LAST_SEED for n in numbers):
        raise UserError(f"--seeds: got {seeds!r}; give whole numbers up to {LAST_SEED}, such as "
                        "100,101,102")  # fmt: skip
    ws = workspace(dataset, strategy)
    plan = search.Plan(
        dataset,
        strategy,
        space,
        sampler == "tpe",
        [int(n) for n in numbers],
        trials,
        prune,
        study,
        jobs,
    )
    fleet = replace(processes.fleet(num_processes), scheduler=scheduler)
    best = output or ws.root / "params.best.yaml"
    (header, *rows), lines = search.search(ws, plan, best, fleet, typer.echo)
    print_table(header, rows, width=160)
    for line in lines:
        typer.echo(line)


def compare(
    experiment: Annotated[
        list[str] | None, typer.Option(help="MLflow experiments, by default all.")
    ] = None,
    filter_: Annotated[
        str,
        typer.Option("--filter", help="A filter string of MLflow, such as 'params.seed = \"0\"'."),
    ] = "",
    tag: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: only runs with this tag.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Parameters that tell rows apart, by default all that vary."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the tables and the page.")
    ] = None,
) -> None:
    """Compare strategies over seeds, with 95 % intervals: tables, pictures and a page in reports/.

    With any option it compares finished runs of the MLflow store instead, of any settings.
    """
    from uotft.analysis import comparison
    from uotft.runs import job

    if experiment or filter_ or tag or by or output:
        tags = dict(name_and_value("--tag", text) for text in tag or [])
        tables, notes = job.compare_runs(experiment or [], filter_, tags, by or [], output)
        page = output / "index.html" if output else None
    else:
        ws = workspace()
        tables, notes = job.compare(ws)
        page = ws.root / "reports" / "index.html"
    for target, rows in tables.items():
        title = f"{target}: test accuracy, mean ± 95 % interval"
        header, *cells = comparison.cells(rows, seen=False)
        print_table(header, cells, width=150, title=title, text_columns=1)
        header, *costs = comparison.costs(rows)
        print_table(header, costs, width=150, title="cost of one training", text_columns=1)
        for line in comparison.endings_of(target, rows):
            typer.echo(line)
    for line in notes:
        typer.echo(line)
    if page:
        typer.echo(f"pictures and tables: {page}")
