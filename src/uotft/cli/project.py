"""Commands around a project: make one, check its machine, open MLflow, send what was not sent.

uotft init --source old --target birds
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from uotft.cli.options import Backbone, OtherSource, Preset, Strategy, given
from uotft.core.progress import track

logger = logging.getLogger(__name__)


def init(
    target: Annotated[
        str, typer.Option(help="Your labelled images: a folder, zip or list; or a public set.")
    ],
    source: Annotated[
        str,
        typer.Option(
            help="Source images, to reuse some of: the same, or imagenet, of which the selected "
            "classes are fetched. Without it the target is trained alone."
        ),
    ] = "",
    preset: Preset = "paper",
    backbone: Backbone = "",
) -> None:
    """Make this folder a project on two sets of images: write params.yaml and dvc.yaml."""
    from uotft.pipeline.init import Wanted, init

    here = Path.cwd()
    wanted = Wanted(preset, source, target, here, backbone, alone=not source)
    name = init(here, wanted, track)
    typer.echo(f"settings are in params.yaml; next: uotft train --dataset {name}, or dvc repro")


def sync() -> None:
    """Send to MLflow what could not be sent before, and mark runs whose process died.

    Exit code 1 if something could still not be sent.
    """
    from uotft.pipeline.workspace import Workspace
    from uotft.tracking import delivery

    complete = True
    for sent, line in delivery.sync(Workspace.with_store()[0]):
        complete &= sent
        typer.echo(line)
    raise typer.Exit(0 if complete else 1)


def ui(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Serve the MLflow page of this project's runs, on this machine only, until Ctrl-C.

    Or of the runs of all projects below this folder, if they share a tracking store here.
    """
    from uotft.pipeline.workspace import Workspace
    from uotft.tracking import delivery, server

    if host not in server.HERE:
        logger.warning("--host %s: everyone who can reach it can read, change and delete runs; "
                       "MLflow asks for no password", host)  # fmt: skip
    home, _ = Workspace.with_store()
    for _, line in delivery.sync(home):
        typer.echo(line)
    server.serve(home, host, port, say=typer.echo)


def doctor(
    ctx: typer.Context,
    for_: Annotated[
        str,
        typer.Option(
            "--for", help="A data set or your images: what `uotft train --dataset` with it needs."
        ),
    ] = "",
    source: OtherSource = "",
    backbone: Backbone = "",
    strategy: Strategy = "uot",
) -> None:
    """Show what is installed, which devices there are, and which data is found.

    With --for: what is there, and what is still missing, for that training. Exit code 1 if
    something is not as it should be.
    """
    from uotft.core.errors import UserError
    from uotft.runs import doctor

    if given(ctx) and not for_:
        raise UserError("doctor: --source, --backbone and --strategy go with --for, the data set "
                        "of a training; without it there is none to check")  # fmt: skip
    found = doctor.findings()
    if for_:
        found = doctor.of_training(for_, source, backbone, strategy)
    healthy = True
    for good, name, state in found:
        healthy &= good
        typer.echo(f"{'ok ' if good else '-- '} {name:<14} {state}")
    raise typer.Exit(0 if healthy else 1)
