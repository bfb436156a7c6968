"""Options that several commands share, and what they mean: a workspace, a fleet, other settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uotft.core.errors import UserError

if TYPE_CHECKING:
    from uotft.pipeline.workspace import Workspace

Dataset = Annotated[str, typer.Option(help="A data set with a section in params.yaml.")]
ModelTarget = Annotated[str, typer.Option(help="The target that the model was trained on.")]
ModelFolder = Annotated[str, typer.Option(help="Or a folder with model.safetensors.")]
Strategy = Annotated[str, typer.Option(help="How source classes are selected.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the labelled images, order and weights.")]
Processes = Annotated[
    int, typer.Option(min=1, help="Worker processes over all machines: one a GPU, or on the CPU.")
]
Jobs = Annotated[
    int, typer.Option(min=0, help="Trainings at a time; 0: as many as GPUs or cores allow.")
]
All = Annotated[bool, typer.Option("--all", help="Every strategy and every seed of params.yaml.")]
Machines = Annotated[int, typer.Option(min=1, help="Machines that share the processes.")]
MachineRank = Annotated[int, typer.Option(min=0, help="This machine; 0 prepares and tracks.")]
MainIp = Annotated[str, typer.Option(help="The address of machine 0.")]
MainPort = Annotated[int, typer.Option(min=1, max=65535, help="A free port of machine 0.")]
Subset = Annotated[str, typer.Option(help="Short for --set subset.…, such as fraction=0.2.")]
Preset = Annotated[
    str,
    typer.Option(help="Settings to start from: paper, or small: few pixels, no weights needed."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="SETTING=VALUE instead of params.yaml's, such as train.lambda=0.3; repeatable.",
    ),
]
Expected = Annotated[
    list[str] | None,
    typer.Option(help="Source classes that should be found; prints their recall; repeatable."),
]
LabelTable = Annotated[str, typer.Option(help="JSON or CSV of class labels for --expect.")]


def workspace(
    dataset: str | None = None, strategy: str | None = None, *, start: Path | None = None
) -> Workspace:
    """The workspace around the current folder, or around ``start``.

    A data set and a strategy are checked here, before anything long starts.
    """
    from uotft.core import config
    from uotft.pipeline.workspace import Workspace

    ws = Workspace.find(start)
    if dataset is not None:
        config.dataset_settings(ws.params, dataset)
    if strategy is not None:
        config.selector_settings(ws.params, strategy)
    return ws


def overrides(settings: list[str] | None, subset: str) -> list[str]:
    """What --set says, with --subset as one more setting."""
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
        raise UserError(f"{option}: got {text!r}; NAME=VALUE is needed")
    return name, value
