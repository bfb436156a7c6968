"""Options that several commands share, and the workspace and settings that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uotft.core.errors import UserError
from uotft.core.seeds import LAST_SEED

if TYPE_CHECKING:
    from uotft.pipeline.workspace import Workspace

Dataset = Annotated[str, typer.Option(help="A data set with a section in params.yaml.")]
ModelTarget = Annotated[str, typer.Option(help="The target that the model was trained on.")]
ModelFolder = Annotated[
    str, typer.Option(help="Or a folder with model.safetensors, in place of --dataset.")
]
Strategy = Annotated[str, typer.Option(help="How source classes are selected; or a control.")]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=LAST_SEED,
        help="Seed of the labelled images, their order and the random weights.",
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        min=1, help="Worker processes on all machines together: one per GPU, or on the CPU."
    ),
]
Jobs = Annotated[
    int, typer.Option(min=0, help="Trainings at a time; 0: as many as GPUs or cores allow.")
]
Scheduler = Annotated[
    str,
    typer.Option(
        help="Train on the workers of a Dask scheduler: tcp://HOST:8786, or the .json file that it "
        "wrote."
    ),
]
All = Annotated[bool, typer.Option("--all", help="Every strategy and every seed of params.yaml.")]
Machines = Annotated[int, typer.Option(min=1, help="Machines that share the processes.")]
MachineRank = Annotated[
    int, typer.Option(min=0, help="Number of this machine; 0 prepares and tracks.")
]
MainIp = Annotated[str, typer.Option(help="The address of machine 0.")]
MainPort = Annotated[int, typer.Option(min=1, max=65535, help="A free port of machine 0.")]
Subset = Annotated[str, typer.Option(help="Short for --set subset.…: fraction=0.2, for example.")]
Shards = Annotated[
    str,
    typer.Option(
        help="Tar files that fit no disk: an address or a path, where {000..127} stands for many."
    ),
]
Label = Annotated[
    str, typer.Option(help="With --shards, the member with the class: cls, txt or json.FIELD.")
]
Names = Annotated[
    str, typer.Option(help="With --shards, a file of class names: labels are its line numbers.")
]
Room = Annotated[
    float, typer.Option(min=0, help="With --shards, GiB of disk for tar files of this process.")
]
Sums = Annotated[
    str, typer.Option(help="With --shards, a list of their SHA-256, as sha256sum writes it.")
]
TargetOrImages = Annotated[
    str,
    typer.Option(
        help="A data set of params.yaml; or, in a project of its own, a public one such as dogs, "
        "or your folder, zip or list of images."
    ),
]
OtherSource = Annotated[
    str,
    typer.Option(
        help="Older images to reuse, named likewise; by default ImageNet's selected classes."
    ),
]
OwnPreset = Annotated[
    str,
    typer.Option(
        help="Settings that such a project begins with: paper; few (labelled photographs); or "
        "small (few pixels, no weights)."
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        help="Its network: resnet18, resnet50, timm:NAME, moco:PATH; the preset's if none."
    ),
]
ImageNetCopy = Annotated[
    Path | None,
    typer.Option(
        help="Your copy of ImageNet's training images, or a folder to fetch classes into; "
        "remembered."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only say what would be fetched, and how long it would take."),
]
Again = Annotated[
    bool, typer.Option("--again", help="Train anew what is there with the same settings.")
]
Current = Annotated[
    bool, typer.Option("--current", help="Bring nothing up to date: all is.", hidden=True)
]
Preset = Annotated[
    str,
    typer.Option(
        help="Settings to start from: paper; few (labelled photographs); or small (few pixels, no "
        "weights to download)."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="SETTING=VALUE in place of params.yaml's, such as train.lambda=0.3; repeatable.",
    ),
]
Expected = Annotated[
    list[str] | None,
    typer.Option(
        help="Source classes that selection should find; prints their recall; repeatable."
    ),
]
LabelTable = Annotated[str, typer.Option(help="JSON or CSV of class labels for --expect.")]


def workspace(
    dataset: str | None = None, strategy: str | None = None, *, start: Path | None = None
) -> Workspace:
    """The workspace around the current folder, or around ``start``.

    Checks the names of a data set and a strategy before anything long starts.
    """
    from uotft.core import config
    from uotft.pipeline.workspace import Workspace

    ws = Workspace.find(start)
    if dataset is not None:
        config.dataset_settings(ws.params, dataset)
    if strategy is not None:
        config.selector_settings(ws.params, strategy)
    return ws


def given(ctx: typer.Context) -> set[str]:
    """The options that the command line itself gives, by the names of their parameters."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def check_all(ctx: typer.Context, *ignored: str) -> None:
    """Raise `UserError` for options that --all would ignore, or that are ignored without it."""
    if "jobs" in given(ctx) and not ctx.params["all_"]:
        raise UserError("train: --jobs goes with --all; without it there is one training")
    if ctx.params["all_"] and (beside := sorted(given(ctx) & {*ignored})):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in beside)
        raise UserError(f"{ctx.info_name}: --all is every strategy and every seed of params.yaml: "
                        f"leave out {names}")  # fmt: skip


def overrides(settings: list[str] | None, subset: str) -> list[str]:
    """The settings of --set, with --subset as one more."""
    from uotft.core import config

    if subset:
        config.subset_settings(subset)  # checks it, with a message about --subset
    return [*(settings or []), *([f"subset.{subset}"] if subset else [])]


def model_folder(command: str, model: str, dataset: str, strategy: str, seed: int) -> Path:
    """The folder of a trained model: the one named, or that of a cell of the pipeline."""
    if bool(model) == bool(dataset):
        raise UserError(f"{command} needs --dataset (with --strategy and --seed), or --model")
    if model:
        return Path(model)
    from uotft.core.records import Cell
    from uotft.pipeline.predict_export import model_of

    return model_of(workspace(dataset, strategy), Cell(dataset, strategy, seed))


def name_and_value(option: str, text: str) -> tuple[str, str]:
    """``a=b`` -> (a, b)."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"{option}: got {text!r}; write NAME=VALUE")
    return name, value
