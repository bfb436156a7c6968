"""The commands uotft data …: list, fetch, check and show data sets, and write parts of them.

uotft data prepare cub
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uotft.cli.options import Dataset, Seed, Strategy, workspace
from uotft.cli.tables import print_table

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at data.")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A set of `uotft data list`, or one of params.yaml.")
]


@app.command("list")
def list_() -> None:
    """Say which data sets there are, how large they are, and how far each is."""
    from uotft.pipeline.datasets import listing

    header, *rows = listing(workspace())
    print_table(header, rows, width=140)


@app.command()
def prepare(
    name: Name,
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
    from uotft.pipeline.fetch import fetch
    from uotft.pipeline.prepare import prepare

    ws = workspace()
    for line in fetch(ws, name, from_, track):
        typer.echo(line)
    typer.echo(prepare(ws, name, progress=track))


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="A data set; without: all that dvc.lock has.")] = "",
) -> None:
    """Hash every file of a data set again: what is missing, changed, added or unreadable.

    Without a name, all that the pipeline has made, and DVC's copies. Exit code 1 if anything is.
    """
    from uotft.core.progress import track
    from uotft.pipeline import datasets
    from uotft.pipeline.verify import everything

    ws = workspace()
    summary, bad = datasets.verify(ws, name, track) if name else everything(ws, track)
    for line in bad:
        typer.echo(line)
    typer.echo(f"{summary}; {len(bad)} not as they should be")
    raise typer.Exit(1 if bad else 0)


@app.command()
def show(
    name: Name,
    output: Annotated[Path, typer.Option(dir_okay=False, help="A PNG file.")],
    classes: Annotated[int, typer.Option(min=1, max=100, help="Rows of the sheet.")] = 20,
) -> None:
    """Draw a contact sheet: one row a class, with its first training images."""
    from uotft.pipeline import datasets

    typer.echo(datasets.show(workspace(), name, output, classes))


@app.command()
def overlap(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A data set or folder to compare with itself.")
    ] = "",
    target: Annotated[
        str,
        typer.Option(help="A folder of images (only its test/, if it has one) or a data set."),
    ] = "",
    source: Annotated[
        str,
        typer.Option(help="A folder of images (only its train/, if it has one) or a data set."),
    ] = "",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A JSON file for every pair found.")
    ] = None,
) -> None:
    """Find the target's test images that are in the source too: same file or same picture.

    With a NAME instead, the test images of that set that are in its own train or val.

    Cropped, turned and mirrored copies are not found. A folder needs no params.yaml. Without
    --source it is that of params.yaml, and the pairs go into overlap/.
    """
    from uotft.core.errors import UserError
    from uotft.core.progress import track
    from uotft.pipeline.overlap import overlap, overlap_lines, within

    if bool(name) == bool(target or source):
        raise UserError("name one data set, or --target with or without --source")
    if name:
        for line in overlap_lines(within(name, output, progress=track)):
            typer.echo(line)
        return
    if not target:
        raise UserError("--target is needed beside --source")
    if not source:
        ws = workspace(target)
        source, output = ws.params.source, output or ws.overlap(target)
    for line in overlap_lines(overlap(source, target, output, progress=track)):
        typer.echo(line)


@app.command()
def subset(
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
    from uotft.pipeline.data_export import write_subset

    ws = workspace(dataset)
    for line in write_subset(ws, dataset, subset, seed, output, progress=track):
        typer.echo(line)


@app.command()
def export(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(file_okay=False, help="A new or empty folder.")],
    strategy: Strategy = "uot",
    seed: Seed = 0,
    per_shard: Annotated[int, typer.Option(min=1, help="Most images in one tar file.")] = 1000,
) -> None:
    """Write the source images that training reuses as WebDataset shards: tar files."""
    from uotft.core.progress import track
    from uotft.pipeline.data_export import export_source

    ws = workspace(dataset, strategy)
    typer.echo(export_source(ws, dataset, strategy, seed, output, per_shard, progress=track))
