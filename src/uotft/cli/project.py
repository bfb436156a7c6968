"""Commands around a project: make one, look at its machine, its MLflow page and what was not sent.

uotft init --source old --target birds
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from uotft.cli.options import Preset, workspace

logger = logging.getLogger(__name__)


def init(
    source: Annotated[str, typer.Option(help="Old images, to reuse some of: folder, zip or list.")],
    target: Annotated[str, typer.Option(help="Your labelled images, likewise.")],
    preset: Preset = "paper",
) -> None:
    """Make this folder a project of its own, on two sets of images: params.yaml, dvc.yaml."""
    from uotft.core.progress import track
    from uotft.pipeline.init import init

    name = init(Path.cwd(), preset, source, target, track)
    typer.echo(f"params.yaml has the settings; next: uotft train --dataset {name}, or dvc repro")


def sync() -> None:
    """Send to MLflow what it did not take before, and mark the runs that died.

    Exit code 1 if it does not take all of it now.
    """
    from uotft.tracking import delivery

    complete = True
    for sent, line in delivery.sync(workspace().root):
        complete &= sent
        typer.echo(line)
    raise typer.Exit(0 if complete else 1)


def ui(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open the MLflow page on this project's runs, for this machine only, until Ctrl-C."""
    from uotft.tracking import delivery, server

    if host not in server.HERE:
        logger.warning("--host %s: everyone who reaches it may read, change and delete runs; "
                       "MLflow asks for no password", host)  # fmt: skip
    root = workspace().root
    for _, line in delivery.sync(root):
        typer.echo(line)
    server.serve(root, host, port, say=typer.echo)


def doctor() -> None:
    """Say what is installed, which devices are there, and which data is found."""
    from uotft.runs.doctor import findings

    healthy = True
    for good, name, state in findings():
        healthy &= good
        typer.echo(f"{'ok ' if good else '-- '} {name:<14} {state}")
    raise typer.Exit(0 if healthy else 1)
