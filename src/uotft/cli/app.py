"""The command line: parse, call one stage, print. Heavy imports wait until a command needs them.

uotft --help
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from uotft.core import environment
from uotft.core.errors import Interrupted, UserError, WorkerFailed
from uotft.core.records import Cell

if TYPE_CHECKING:
    from uotft.pipeline.workspace import Workspace


class _Commands(typer.core.TyperGroup):
    """All commands; of Ctrl-C and SIGTERM typer would say nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; no file is half written") from error


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # help in 0.15 s instead of 0.5 s
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    help="Fine-tune image models on the target and the part of the pre-training data that helps.",
)

data = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at data.")
app.add_typer(data, name="data")
experiment = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="The paper's tables and figures, and beyond."
)
app.add_typer(experiment, name="experiment")

Dataset = Annotated[str, typer.Option(help="A data set with a section in params.yaml.")]
Strategy = Annotated[str, typer.Option(help="How source classes are selected.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the labelled images, order and weights.")]
Processes = Annotated[
    int, typer.Option(min=1, help="Worker processes of all machines; one a GPU, or on the CPU.")
]
Machines = Annotated[int, typer.Option(min=1, help="Machines that share the processes.")]
MachineRank = Annotated[int, typer.Option(min=0, help="This machine; 0 prepares and tracks.")]
MainIp = Annotated[str, typer.Option(help="The address of machine 0.")]
MainPort = Annotated[int, typer.Option(min=1, max=65535, help="A free port of machine 0.")]
Subset = Annotated[str, typer.Option(help="Short for --set subset.…, as in fraction=0.2.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="SETTING=VALUE, not params.yaml's, as train.lambda=0.3; repeatable."
    ),
]


@app.command()
def init(
    source: Annotated[str, typer.Option(help="Old images, to reuse some of: folder, zip or list.")],
    target: Annotated[str, typer.Option(help="Your labelled images, likewise.")],
    preset: Annotated[str, typer.Option(help="The settings to start from.")] = "paper",
) -> None:
    """Make this folder a project of its own, on two sets of images: params.yaml, dvc.yaml."""
    from uotft.pipeline import init as init_stage

    name = init_stage.init(Path.cwd(), preset, source, target)
    typer.echo(f"params.yaml has the settings; next: uotft train --dataset {name}, or dvc repro")


@app.command()
def prepare(
    dataset: Annotated[
        str, typer.Option(help="A data set with a section in params.yaml; DVC's stage says which.")
    ] = "",
) -> None:
    """Make the images of a data set: data/DATASET.npz."""
    from uotft.core.progress import track
    from uotft.pipeline import prepare as prepare_stage

    # of a stage of DVC, whose command must not hold a name: the shell would read it
    dataset = dataset or os.environ.get("DVC_STAGE", "").rpartition("@")[2]
    if not dataset:
        raise UserError("prepare needs --dataset")
    typer.echo(prepare_stage.prepare(_workspace(), dataset, progress=track))


@app.command()
def pretrain(
    num_processes: Processes = 1,
    num_machines: Machines = 1,
    machine_rank: MachineRank = 0,
    main_process_ip: MainIp = "",
    main_process_port: MainPort = 29500,
) -> None:
    """Train the backbone on all source classes: pretrained/SOURCE/."""
    from uotft.runs import job, processes

    place = num_machines, machine_rank, main_process_ip, main_process_port
    if line := job.pretrain(_workspace(), processes.fleet(num_processes, *place)):
        typer.echo(line)


@app.command()
def embed(dataset: Dataset, num_processes: Processes = 1) -> None:
    """Compute features of the training images with the pre-trained backbone: embeddings/."""
    from uotft.runs import job

    typer.echo(job.embed(_workspace(dataset), dataset, num_processes))


@app.command()
def units(
    features: Annotated[str, typer.Option(help="Your own: npz with an array means, or npy.")] = "",
    output: Annotated[str, typer.Option(help="The bank that is made of them.")] = "",
    clusters: Annotated[int, typer.Option(help="K of k-means on them.")] = 2000,
    iterations: Annotated[int, typer.Option(help="Most passes over all points.")] = 20,
    seed: Seed = 0,
) -> None:
    """Make what strategies score: class means, clusters or single images of the source.

    With --features and --output: clusters of any features (images x features), for select
    --source-bank; needs no params.yaml.
    """
    from uotft.pipeline import units as units_stage

    if bool(features) != bool(output):
        raise UserError("units: --features and --output go together")
    wanted = {"clusters": clusters, "iterations": iterations, "seed": seed}
    typer.echo(
        units_stage.cluster_bank(features, output, wanted)
        if features
        else units_stage.units(_workspace())
    )


@app.command()
def select(
    dataset: Annotated[str, typer.Option(help="A target with a section in params.yaml.")] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    source_bank: Annotated[str, typer.Option(help="npz with an array means, or a npy.")] = "",
    target_bank: Annotated[str, typer.Option(help="The same of the target.")] = "",
    output: Annotated[str, typer.Option(help="Where selection.json goes.")] = "",
    metric: Annotated[str | None, typer.Option(help="cosine or l2.")] = None,
    cost_scale: Annotated[float | None, typer.Option(help="eps_c of uot.")] = None,
    top_k: Annotated[str | None, typer.Option(help="How many classes are kept, or auto.")] = None,
    max_per_class: Annotated[int | None, typer.Option(help="Cap for rows that are images.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, any setting of the strategy.")
    ] = None,
    expect: Annotated[
        list[str] | None, typer.Option(help="Names that should be found; prints their recall.")
    ] = None,
    table: Annotated[str, typer.Option(help="JSON or CSV of class labels for --expect.")] = "",
    pictures: Annotated[str, typer.Option(help="A folder for pictures.")] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which target classes each kept class serves.")
    ] = False,
) -> None:
    """Keep the K source classes that a strategy scores highest.

    With --dataset: a stage of the pipeline, set by params.yaml, that writes selections/.
    With --source-bank, --target-bank and --output: on any two files of class means (classes x
    features), with the options below; needs neither images nor a params.yaml.
    """
    from uotft.core import config
    from uotft.pipeline import select as select_stage
    from uotft.runs import job
    from uotft.selection import ranking

    files = [source_bank, target_bank, output]
    own = {"metric": metric, "cost_scale": cost_scale} | config.parsed(set_ or [])
    wanted = {"top_k": top_k and (int(top_k) if top_k.isdecimal() else top_k),
              "max_per_class": max_per_class}  # fmt: skip
    given = [{k: v for k, v in words.items() if v is not None} for words in (own, wanted)]
    if dataset:
        if any(files) or any(given) or expect or table or pictures:
            raise UserError("select --dataset goes with --strategy, --seed and --explain alone; "
                            "params.yaml has its settings")  # fmt: skip
        chosen = job.select(_workspace(dataset, strategy), dataset, strategy, seed)
    elif all(files):
        chosen, recall = select_stage.select_banks(
            select_stage.BankFiles(source_bank, target_bank, output),
            select_stage.bank_request(strategy, given[0], given[1], seed),
            select_stage.Extras(explain, tuple(expect or ()), table, pictures),
        )
        if recall:
            typer.echo(recall)
    else:
        raise UserError("select needs --dataset, or --source-bank, --target-bank and --output")
    names = [chosen.names[row] for row in chosen.kept]
    typer.echo(f"{strategy}: {len(names)} of {len(chosen.names)} kept: {_few(names)}")
    if explain:
        for name, served in zip(names, ranking.serves(chosen), strict=True):
            shares = ", ".join(f"{s['name']} {100 * s['share']:.0f} %" for s in served)
            typer.echo(f"{name}: {shares}")


@app.command()
def train(
    dataset: Dataset,
    source: Annotated[
        str, typer.Option(help="Old images, a folder or zip; --dataset is one too, then.")
    ] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    num_processes: Processes = 1,
    num_machines: Machines = 1,
    machine_rank: MachineRank = 0,
    main_process_ip: MainIp = "",
    main_process_port: MainPort = 29500,
    set_: Changes = None,
    subset: Subset = "",
    current: Annotated[
        bool, typer.Option("--current", help="Bring nothing up to date: all is.", hidden=True)
    ] = False,
) -> None:
    """Fine-tune on a target and the selected classes, tracked in MLflow: models/.

    What is missing upstream (prepare, pretrain, embed, units, select) is brought up to date first.
    With two sets of images, --dataset and --source, in a project of their own: uotft-DATASET/.
    With --set, with other settings than the pipeline's: variants/WORDS/models/.
    """
    from uotft.core import registry
    from uotft.pipeline import init as init_stage
    from uotft.runs import job, processes

    if source:
        registry.check("strategies", strategy, "strategy")  # before anything is made
        folder, dataset = init_stage.project(Path.cwd(), source, dataset)
        typer.echo(f"uotft: in {folder}, with the settings of its params.yaml", err=True)
        os.chdir(folder)
    ws = _workspace(dataset, strategy).with_changes(_changes(set_, subset))
    place = num_machines, machine_rank, main_process_ip, main_process_port
    fleet = processes.fleet(num_processes, *place)
    if line := job.train(ws, dataset, strategy, seed, fleet, current=current):
        typer.echo(line)


@app.command()
def forecast(dataset: Dataset) -> None:
    """Say before training how far source gradients are from the target's: forecast/."""
    import numpy as np

    from uotft.core.progress import track
    from uotft.pipeline import forecast as forecast_stage

    cells = forecast_stage.forecast(_workspace(dataset), dataset, progress=track)
    for strategy, seeds in cells.items():
        delta2, cosine = (
            np.mean([cell["selected"][name] for cell in seeds.values()])
            for name in ("delta2", "cosine")
        )
        typer.echo(f"{dataset}-{strategy}: delta^2 {delta2:.4g}, cosine {cosine:+.3f}")


@app.command()
def evaluate(
    dataset: Dataset, strategy: Strategy = "uot", set_: Changes = None, subset: Subset = ""
) -> None:
    """Read the test part once for every seed of a strategy: metrics/.

    With --set, of the models that train --set made: variants/WORDS/metrics/.
    """
    from uotft.core.progress import track
    from uotft.runs import job

    ws = _workspace(dataset, strategy).with_changes(_changes(set_, subset))
    for line in job.evaluate(ws, dataset, strategy, track):
        typer.echo(line)


@app.command()
def search(
    dataset: Dataset,
    strategy: Strategy = "uot",
    space: Annotated[str, typer.Option(help="paper, wide, or a YAML file of settings.")] = "paper",
    sampler: Annotated[str, typer.Option(help="grid: all choices; tpe: Optuna's.")] = "grid",
    trials: Annotated[int, typer.Option(min=0, help="Most of them; 0: the grid, or 20.")] = 0,
    seeds: Annotated[
        str, typer.Option(help="Seeds of each trial, none of them in params.yaml.")
    ] = "100,101,102,103,104",
    prune: Annotated[
        bool, typer.Option("--prune", help="Stop trials below the median of the others.")
    ] = False,
    study: Annotated[str, typer.Option(help="A name for search/; DATASET-STRATEGY if none.")] = "",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The best settings; params.best.yaml.")
    ] = None,
    num_processes: Processes = 1,
) -> None:
    """Search settings on validation images alone: learning rate, weight decay, lambda, K, any.

    The same words go on after an interruption. The best settings become a params file, and
    search/ and a run in MLflow with a child a training have all trials. No test image is read.
    """
    from rich.console import Console
    from rich.table import Table

    from uotft.runs import processes, search as tune

    if sampler not in ("grid", "tpe"):
        raise UserError(f"--sampler: got {sampler!r}; grid or tpe is needed")
    numbers = seeds.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise UserError(f"--seeds: got {seeds!r}; whole numbers with commas between are needed")
    ws = _workspace(dataset, strategy)
    plan = tune.Plan(
        dataset, strategy, space, sampler == "tpe", [int(n) for n in numbers], trials, prune, study
    )
    fleet = processes.fleet(num_processes)
    where = output or ws.root / "params.best.yaml"
    (header, *rows), lines = tune.search(ws, plan, where, fleet, typer.echo)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    for line in lines:
        typer.echo(line)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    dataset: Annotated[str, typer.Option(help="The target that the model was trained on.")] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    model: Annotated[str, typer.Option(help="Or a folder with model.safetensors.")] = "",
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Say which classes image files show: the five likeliest of each, with probabilities."""
    import json

    from rich.console import Console
    from rich.table import Table

    from uotft.pipeline import predict_export

    answers, bad = predict_export.predict(_model("predict", model, dataset, strategy, seed), images)
    if json_:
        said = [
            {"file": a.file, "classes": [{"label": c, "probability": p} for c, p in a.classes]}
            for a in answers
        ]
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False))
    elif answers:
        table = Table("image", "class", "probability, %")
        table.columns[-1].justify = "right"
        for answer in answers:
            for place, (label, share) in enumerate(answer.classes):
                last = place == len(answer.classes) - 1
                file = "" if place else answer.file
                table.add_row(file, label, f"{100 * share:.2f}", end_section=last)
        Console(width=None if sys.stdout.isatty() else 110, markup=False).print(table)
    if bad:
        raise UserError("these files were left out:\n" + "\n".join(f"  {why}" for why in bad))


@app.command()
def export(
    format_: Annotated[str, typer.Option("--format", help="onnx, or torch (torch.export).")],
    output: Annotated[Path, typer.Option(dir_okay=False, help="The file; FILE.json describes it.")],
    dataset: Annotated[str, typer.Option(help="The target that the model was trained on.")] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    model: Annotated[str, typer.Option(help="Or a folder with model.safetensors.")] = "",
) -> None:
    """Write a trained model for other programs, checked against the original's answers."""
    from uotft.pipeline import predict_export

    folder = _model("export", model, dataset, strategy, seed)
    about = predict_export.export(folder, format_, output)
    typer.echo(
        f"{output}: logits differ by {about['difference']:.1e} of the largest at most; "
        f"class names in {output}.json"
    )


@app.command()
def register(
    name: Annotated[str, typer.Option(help="The model's name in MLflow's registry.")],
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="The id or the name of a run.")] = "",
    dataset: Annotated[str, typer.Option(help="Or the target of a model in models/.")] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    alias: Annotated[str, typer.Option(help="A name for this version, such as champion.")] = "",
) -> None:
    """Put a run's model into MLflow's registry, with its selection and accuracies.

    The same weights are registered once.
    """
    from uotft.runs import job

    if bool(run) == bool(dataset):
        raise UserError("register needs RUN, or --dataset (with --strategy and --seed)")
    ws = _workspace(dataset, strategy) if dataset else _workspace()
    typer.echo(job.register(ws, name, alias, run, (dataset, strategy, seed)))


@app.command()
def compare(
    experiment: Annotated[
        list[str] | None, typer.Option(help="MLflow experiments, by default all.")
    ] = None,
    filter_: Annotated[str, typer.Option("--filter", help="A search string of MLflow.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of runs wanted.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Parameters that make rows, by default all that vary.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="A folder for tables and the page.")
    ] = None,
) -> None:
    """Compare strategies over seeds, with intervals: a table, pictures and a page in reports/.

    With any option: finished runs of the MLflow store instead, those of other settings too.
    """
    from rich.console import Console
    from rich.table import Table

    from uotft.analysis.comparison import HEADER
    from uotft.runs import job

    said: list[str] = []
    if experiment or filter_ or tag or by or output:
        words = experiment or [], filter_, dict(map(_tag, tag or [])), by or []
        tables, said = job.compare_runs(*words, output)
        page = output / "index.html" if output else None
    else:
        ws = _workspace()
        tables, page = job.compare(ws), ws.root / "reports" / "index.html"
    for target, rows in tables.items():
        table = Table(title=f"{target}: test accuracy, mean ± 95 % interval")
        for column in HEADER:
            table.add_column(column, justify="left" if column == "strategy" else "right")
        for row in rows:
            table.add_row(*row.cells())
        Console(width=None if sys.stdout.isatty() else 130, markup=False).print(table)
    for line in said:
        typer.echo(line)
    if page:
        typer.echo(f"pictures and tables: {page}")


Named = Annotated[
    str, typer.Argument(metavar="NAME", help="A set of `uotft data list`, or one of params.yaml.")
]


@data.command("list")
def list_() -> None:
    """Say which data sets there are, how large they are, and how far each is."""
    from rich.console import Console
    from rich.table import Table

    from uotft.pipeline import datasets

    header, *rows = datasets.listing(_workspace())
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)


@data.command("prepare")
def prepare_(
    name: Named,
    from_: Annotated[
        Path | None,
        typer.Option("--from", file_okay=False, exists=True, help="A folder with its archives."),
    ] = None,
) -> None:
    """Fetch a data set's archives, check and unpack them, and make data/NAME.npz.

    Says first what it takes on the disk. A broken download goes on where it stopped. What must be
    fetched by hand is named, with the place to put it.
    """
    from uotft.core.progress import track
    from uotft.pipeline import (
        fetch,
        prepare as prepare_stage,
    )

    ws = _workspace()
    for line in fetch.fetch(ws, name, from_, track):
        typer.echo(line)
    typer.echo(prepare_stage.prepare(ws, name, progress=track))


@data.command()
def verify(
    name: Annotated[str, typer.Argument(help="A data set; without: all that dvc.lock has.")] = "",
) -> None:
    """Hash every file of a data set again: what is missing, changed, added or unreadable.

    Without a name, all that the pipeline has made, and DVC's copies. Exit code 1 if anything is.
    """
    from uotft.core.progress import track
    from uotft.pipeline import datasets, verify as verify_stage

    ws = _workspace()
    looked, bad = datasets.verify(ws, name, track) if name else verify_stage.everything(ws, track)
    for line in bad:
        typer.echo(line)
    typer.echo(f"{looked}; {len(bad)} not as they should be")
    raise typer.Exit(1 if bad else 0)


@data.command()
def show(
    name: Named,
    output: Annotated[Path, typer.Option(dir_okay=False, help="A PNG file.")],
    classes: Annotated[int, typer.Option(min=1, max=100, help="Lines of the sheet.")] = 20,
) -> None:
    """Draw a contact sheet: a line a class, with its first training images."""
    from uotft.pipeline import datasets

    typer.echo(datasets.show(_workspace(), name, output, classes))


@data.command()
def overlap(
    target: Annotated[
        str,
        typer.Option(help="A folder of images (only its test/, if it has one) or a data set."),
    ],
    source: Annotated[
        str,
        typer.Option(help="A folder of images (only its train/, if it has one) or a data set."),
    ] = "",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A JSON file for every pair found.")
    ] = None,
) -> None:
    """Find the target's test images that are in the source too: same file or same picture.

    Cropped, turned and mirrored copies are not found. A folder needs no params.yaml. Without
    --source it is that of params.yaml, and the pairs go into overlap/.
    """
    from uotft.core.progress import track
    from uotft.pipeline import overlap as overlap_stage

    if not source:
        ws = _workspace(target)
        source, output = ws.params.source, output or ws.overlap(target)
    result = overlap_stage.overlap(source, target, output, progress=track)
    for line in overlap_stage.overlap_lines(result):
        typer.echo(line)


@data.command("subset")
def data_subset(
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="A prepared data set.")],
    output: Annotated[Path, typer.Option(help="FILE.csv, or a new folder for shards.")],
    subset: Annotated[str, typer.Option(help="shots=N, fraction=SHARE or longtail=IMBALANCE.")],
    seed: Annotated[int, typer.Option(min=0, help="Draws the images.")] = 0,
) -> None:
    """Write the images that a seed may train on, and those of val and test, as a data set.

    FILE.csv lists them: path (of sets without files, the row in data/NAME.npz), label and split.
    A folder gets the images themselves, as shards.
    """
    from uotft.core.progress import track
    from uotft.pipeline import data_export

    words = _workspace(dataset), dataset, subset, seed, output
    for line in data_export.write_subset(*words, progress=track):
        typer.echo(line)


@data.command("export")
def data_export(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(file_okay=False, help="A new or empty folder.")],
    strategy: Strategy = "uot",
    seed: Seed = 0,
    per_shard: Annotated[int, typer.Option(min=1, help="Most images in one tar file.")] = 1000,
) -> None:
    """Write the source images that training reuses as WebDataset shards: tar files."""
    from uotft.core.progress import track
    from uotft.pipeline import data_export

    ws = _workspace(dataset, strategy)
    said = data_export.export_source(ws, dataset, strategy, seed, output, per_shard, progress=track)
    typer.echo(said)


@experiment.command("list")
def experiment_list() -> None:
    """Say which experiments there are: one a table or figure of the paper."""
    from uotft.analysis import paper_tables

    for name in paper_tables.names():
        typer.echo(f"{name:<17} {paper_tables.load(name).title}")


@experiment.command("show")
def experiment_show(name: Annotated[str, typer.Argument(help="One of the list.")]) -> None:
    """Show an experiment's definition, and the paper's numbers where it has some."""
    from uotft.analysis import paper_tables

    shown = paper_tables.load(name)
    typer.echo(f"{shown.title}\n{shown.says}\n")
    typer.echo(f"backbone: {shown.backbone}\ntargets: {', '.join(shown.targets) or 'all'}")
    typer.echo(f"seeds: {shown.seeds}\n")
    for variation in shown.variations:
        typer.echo(f"{variation.label:<18} {variation.strategy} {' '.join(variation.words)}")
    for numbers in (shown.paper, shown.recalls):
        for where, values in numbers.items():
            said = ", ".join(f"{label} {value:.2f}" for label, value in values.items())
            typer.echo(f"the paper, {where}{', recall' * (numbers is shown.recalls)}: {said}")


@experiment.command("run")
def experiment_run(
    name: Annotated[str, typer.Argument(help="One of the list.")],
    on: Annotated[
        list[str] | None, typer.Option(help="A target, not the definition's; repeatable.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N-1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it takes.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cells that are trained at once.")] = 1,
    num_processes: Processes = 1,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only select, for the recall of --expect.")
    ] = False,
    expect: Annotated[
        list[str] | None, typer.Option(help="Source classes that should be found; repeatable.")
    ] = None,
    table: Annotated[str, typer.Option(help="JSON or CSV of class labels for --expect.")] = "",
    source_bank: Annotated[str, typer.Option(help="Class means, for recall alone.")] = "",
    target_bank: Annotated[str, typer.Option(help="The same of the target.")] = "",
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Of files of class means: a folder.")
    ] = None,
) -> None:
    """Run an experiment on what is here: train what is missing, measure, write the tables.

    With --source-bank, --target-bank and --expect: recall from class means, without any training
    and without a params.yaml.
    """
    from uotft.analysis import paper_tables
    from uotft.pipeline import experiment_cells
    from uotft.runs import experiment_runner

    shown, wanted = paper_tables.load(name), expect or []
    if source_bank or target_bank:
        found = experiment_cells.bank_results(shown, source_bank, target_bank, wanted, table)
        rows = paper_tables.rows(shown, "", found)
        _print(shown.title, paper_tables.cells(shown, rows))
        if output:
            experiment_cells.write_results(
                output, shown, {"recall": found}, {}, f"From {source_bank}."
            )
        return
    ws, number = _workspace(), seeds or shown.seeds
    if dry_run:
        targets = experiment_cells.targets(ws, name, on or [])
        columns = experiment_cells.columns(ws, shown, targets, number, num_processes, wanted, table)
        for line in (experiment_cells.scale(ws), *experiment_runner.forecast(columns, jobs)):
            typer.echo(line)
        return
    tables, failed = experiment_runner.run(
        ws, name, on or [], number, jobs=jobs, num_processes=num_processes, train=not no_train,
        expect=wanted, table=table,
    )  # fmt: skip
    typer.echo(experiment_cells.scale(ws))
    for target, words in tables:
        _print(f"{shown.title}: {target}", words)
    typer.echo(f"tables and a picture: {ws.root / 'reports' / 'experiments' / name}")
    for line in failed:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def sync() -> None:
    """Send to MLflow what it did not take before, and mark the runs that died.

    Exit code 1 if it does not take all of it now.
    """
    from uotft.tracking import delivery

    well = True
    for sent, line in delivery.sync(_workspace().root):
        well &= sent
        typer.echo(line)
    raise typer.Exit(0 if well else 1)


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open the MLflow page on this project's runs, for this machine only, until Ctrl-C."""
    from uotft.tracking import delivery, server

    if host not in server.HERE:
        typer.echo(f"uotft: --host {host}: whoever reaches it may read, change and delete runs; "
                   "MLflow asks for no password", err=True)  # fmt: skip
    root = _workspace().root
    for _, line in delivery.sync(root):
        typer.echo(line)
    server.serve(root, host, port, say=typer.echo)


@app.command()
def doctor() -> None:
    """Say what is installed, which devices are there, and which data is found."""
    from uotft.runs.doctor import findings

    healthy = True
    for good, name, state in findings():
        healthy &= good
        typer.echo(f"{'ok ' if good else '-- '} {name:<14} {state}")
    raise typer.Exit(0 if healthy else 1)


def _changes(words: list[str] | None, subset: str) -> list[str]:
    """The words of --set, that of --subset among them."""
    from uotft.core import config

    if subset:
        config.subset_settings(subset)  # has a message of its own
    return [*(words or []), *([f"subset.{subset}"] if subset else [])]


def _print(title: str, rows: list[tuple[str, ...]]) -> None:
    """A table in the terminal; the first row is its header."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150, markup=False).print(table)


def _tag(text: str) -> tuple[str, str]:
    """ "a=b" -> ("a", "b")."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"--tag: got {text!r}; NAME=VALUE is needed")
    return name, value


def _few(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"


def _workspace(dataset: str | None = None, strategy: str | None = None) -> Workspace:
    """The workspace, with the user's words checked before anything long starts."""
    from uotft.core import config
    from uotft.pipeline.workspace import Workspace

    ws = Workspace.find()
    if dataset is not None:
        config.dataset_settings(ws.params, dataset)
    if strategy is not None:
        config.selector_settings(ws.params, strategy)
    return ws


def _model(command: str, model: str, dataset: str, strategy: str, seed: int) -> Path:
    """The folder of a trained model, named or one cell of the pipeline."""
    if bool(model) == bool(dataset):
        raise UserError(f"{command} needs --dataset (with --strategy and --seed), or --model")
    ws = _workspace(dataset, strategy) if dataset else None
    return ws.cell("models", Cell(dataset, strategy, seed)) if ws else Path(model)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does, by an exception that lets it tidy up.

    The alarm is for one that does not hear of it: in code of C, or in a destructor.
    """
    from uotft.runs.processes import GRACE_S

    signal.alarm(GRACE_S)
    raise KeyboardInterrupt


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2."""
    environment.prepare()
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        app()
    except UserError as error:
        typer.echo(f"uotft: {error}", err=True)
        sys.exit(2)
    except WorkerFailed as error:
        typer.echo(f"uotft: {error}", err=True)
        sys.exit(error.code)
    except Interrupted as error:
        typer.echo(f"uotft: {error}", err=True)
        sys.exit(130)
    except OSError as error:  # a folder that may not be written, a disk that is full
        if error.filename is None:
            raise
        typer.echo(f"uotft: {os.fsdecode(error.filename)}: {error.strerror}", err=True)
        sys.exit(2)
