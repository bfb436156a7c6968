"""The command line: parse, call one stage, print. Heavy imports wait until a command needs them.

uotft --help
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from uotft.errors import Interrupted, UserError, WorkerFailed

if TYPE_CHECKING:
    from uotft.stages import Workspace

app = typer.Typer(
    rich_markup_mode=None,  # help in 0.15 s instead of 0.5 s
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    help="Fine-tune image models on the target and the part of the pre-training data that helps.",
)

Dataset = Annotated[str, typer.Option(help="A data set with a section in params.yaml.")]
Strategy = Annotated[str, typer.Option(help="How source classes are selected.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the labelled images, order and weights.")]
Processes = Annotated[
    int, typer.Option(min=1, help="Training processes; one a GPU, or on the CPU.")
]


@app.command()
def prepare(dataset: Dataset) -> None:
    """Make the images of a data set: data/DATASET.npz."""
    from uotft import stages
    from uotft.progress import track

    typer.echo(stages.prepare(_workspace(), dataset, progress=track))


@app.command()
def pretrain(num_processes: Processes = 1) -> None:
    """Train the backbone on all source classes: pretrained/SOURCE/."""
    from uotft import launch

    typer.echo(launch.pretrain(_workspace(), num_processes))


@app.command()
def embed(dataset: Dataset) -> None:
    """Compute features of the training images with the pre-trained backbone: embeddings/."""
    from uotft import stages
    from uotft.progress import track

    typer.echo(stages.embed(_workspace(dataset), dataset, progress=track))


@app.command()
def select(dataset: Dataset, strategy: Strategy = "uot", seed: Seed = 0) -> None:
    """Keep the K source classes that a strategy scores highest: selections/."""
    from uotft import stages

    chosen = stages.select(_workspace(dataset, strategy), dataset, strategy, seed)
    names = [chosen.names[row] for row in chosen.kept]
    typer.echo(f"{dataset}-{strategy}-{seed}: {len(names)} classes: {', '.join(names) or 'none'}")


@app.command()
def train(
    dataset: Dataset, strategy: Strategy = "uot", seed: Seed = 0, num_processes: Processes = 1
) -> None:
    """Fine-tune on a target and the selected classes, tracked in MLflow: models/.

    What is missing upstream (prepare, pretrain, embed, select) is brought up to date first.
    """
    from uotft import launch

    ws = _workspace(dataset, strategy)
    launch.upstream(ws, dataset, strategy, seed)
    typer.echo(launch.train(ws, dataset, strategy, seed, num_processes))


@app.command()
def forecast(dataset: Dataset) -> None:
    """Say before training how far source gradients are from the target's: forecast/."""
    import numpy as np

    from uotft import stages
    from uotft.progress import track

    cells = stages.forecast(_workspace(dataset), dataset, progress=track)
    for strategy, seeds in cells.items():
        delta2, cosine = (
            np.mean([cell["selected"][name] for cell in seeds.values()])
            for name in ("delta2", "cosine")
        )
        typer.echo(f"{dataset}-{strategy}: delta^2 {delta2:.4g}, cosine {cosine:+.3f}")


@app.command()
def evaluate(dataset: Dataset, strategy: Strategy = "uot") -> None:
    """Read the test part once for every seed of a strategy: metrics/."""
    from uotft import launch
    from uotft.progress import track

    for line in launch.evaluate(_workspace(dataset, strategy), dataset, strategy, track):
        typer.echo(line)


@app.command()
def compare() -> None:
    """Compare strategies over seeds, with intervals: a table, pictures and a page in reports/."""
    from rich.console import Console
    from rich.table import Table

    from uotft import launch
    from uotft.compare import HEADER

    ws = _workspace()
    for target, rows in launch.compare(ws).items():
        table = Table(title=f"{target}: test accuracy, mean ± 95 % interval")
        for column in HEADER:
            table.add_column(column, justify="left" if column == "strategy" else "right")
        for row in rows:
            table.add_row(*row.cells())
        Console(width=None if sys.stdout.isatty() else 110).print(table)
    typer.echo(f"pictures and tables: {ws.root / 'reports' / 'index.html'}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open the MLflow tracking server on this project's runs, for this machine only."""
    from uotft import tracking

    command = tracking.server(_workspace().root, port)
    typer.echo(f"MLflow: http://127.0.0.1:{port} (Ctrl-C stops it)")
    os.execv(command[0], command)


@app.command()
def doctor() -> None:
    """Say what is installed, which devices are there, and which data is found."""
    from uotft import doctor as room

    healthy = True
    for good, name, state in room.findings():
        healthy &= good
        typer.echo(f"{'ok ' if good else '-- '} {name:<14} {state}")
    raise typer.Exit(0 if healthy else 1)


def _workspace(dataset: str | None = None, strategy: str | None = None) -> Workspace:
    """The workspace, with the user's words checked before anything long starts."""
    from uotft import config
    from uotft.stages import Workspace

    ws = Workspace.find()
    if dataset is not None:
        config.dataset_settings(ws.params, dataset)
    if strategy is not None:
        config.selector_settings(ws.params, strategy)
    return ws


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"uotft: {error}", err=True)
        sys.exit(2)
    except WorkerFailed as error:
        typer.echo(f"uotft: {error}", err=True)
        sys.exit(error.code if error.code > 0 else 128 - error.code)
    except Interrupted as error:
        typer.echo(f"uotft: {error}", err=True)
        sys.exit(130)
