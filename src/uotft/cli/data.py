"""The commands uotft data …: list, fetch, check, show and export data sets.

uotft data prepare cub
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uotft.cli.options import (
    Dataset,
    Label,
    Names,
    Room,
    Seed,
    Shards,
    Strategy,
    Sums,
    workspace,
)  # fmt: skip
from uotft.cli.tables import print_table
from uotft.core.progress import track

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, fetch, check, show and export data sets.",
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name from `uotft data list`, or a data set of params.yaml."
    ),
]


@app.command("list")
def list_() -> None:
    """List the data sets, their sizes, and whether each is downloaded or prepared.

    Outside a project, the public ones alone. Says where ImageNet's images are, if that is known.
    """
    from uotft.pipeline.datasets import listing, remembered
    from uotft.pipeline.workspace import Workspace

    in_a_project = (Workspace.nearest() / "params.yaml").is_file()
    header, *rows = listing(workspace() if in_a_project else None)
    print_table(header, rows, width=140)
    for line in remembered():
        typer.echo(line)


@app.command()
def accept(
    name: Annotated[str, typer.Argument(metavar="NAME", help="imagenet.")],
) -> None:
    """Note that you have agreed to a data set's terms, so that its images may be fetched.

    Only ImageNet asks for it: first agree to its terms at https://image-net.org/download.php.
    """
    from uotft.data import class_downloads

    for line in class_downloads.accept(name):
        typer.echo(line)


@app.command()
def prepare(
    name: Name,
    from_: Annotated[
        Path | None,
        typer.Option("--from", file_okay=False, exists=True, help="A folder with its archives."),
    ] = None,
) -> None:
    """Fetch a data set's archives, check and unpack them, and make data/NAME.npz.

    Shows first how much disk space this takes. A broken download resumes. If files must be
    downloaded by hand, the message lists them and says where to put them.
    """
    from uotft.pipeline.fetch import fetch
    from uotft.pipeline.prepare import prepare

    ws = workspace()
    for line in fetch(ws, name, from_, track):
        typer.echo(line)
    typer.echo(prepare(ws, name, progress=track))


@app.command()
def fetch() -> None:
    """Fetch the images of the classes that selections keep, where the source comes by class.

    A stage of such projects. Asks for ImageNet's terms once; a broken download resumes.
    """
    from uotft.pipeline.source_classes import fetch

    for line in fetch(workspace(), track):
        typer.echo(line)


@app.command()
def verify(
    name: Annotated[
        str, typer.Argument(help="A data set; without one, all outputs in dvc.lock.")
    ] = "",
) -> None:
    """Hash every file of a data set again; list missing, changed, added and unreadable ones.

    Without a name, checks all outputs of the pipeline and DVC's copies of them. Exit code 1 if
    anything is wrong.
    """
    from uotft.pipeline import datasets
    from uotft.pipeline.verify import everything

    ws = workspace()
    summary, bad = datasets.verify(ws, name, track) if name else everything(ws, track)
    for line in bad:
        typer.echo(line)
    typer.echo(f"{summary}; {len(bad)} wrong")
    raise typer.Exit(1 if bad else 0)


@app.command()
def show(
    name: Name,
    output: Annotated[Path, typer.Option(dir_okay=False, help="A PNG file.")],
    classes: Annotated[int, typer.Option(min=1, max=100, help="Rows of the sheet.")] = 20,
) -> None:
    """Write a contact sheet: one row per class, with its first training images."""
    from uotft.pipeline import datasets

    typer.echo(datasets.show(workspace(), name, output, classes))


@app.command()
def overlap(
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="A data set or folder, to compare its own parts."),
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
        Path | None, typer.Option(dir_okay=False, help="A JSON file, for all pairs found.")
    ] = None,
) -> None:
    """Find the target's test images that are also in the source: same file or same picture.

    With a NAME instead: the test images of that set that are also in its own train or val.

    Does not find cropped, turned and mirrored copies. A folder needs no params.yaml. Without
    --source, uses the source of params.yaml and writes the pairs to overlap/.
    """
    from uotft.core.errors import UserError
    from uotft.pipeline.overlap import overlap, overlap_lines, within

    if bool(name) == bool(target or source):
        raise UserError("give either a NAME, or --target (with or without --source)")
    if name:
        for line in overlap_lines(within(name, output, progress=track)):
            typer.echo(line)
        return
    if not target:
        raise UserError("--source needs --target")
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
    seed: Seed = 0,
) -> None:
    """Write the images that a seed may train on, and those of val and test, as a data set.

    FILE.csv lists their path (or row in data/NAME.npz, for a set without files), label and split.
    A folder gets the images themselves, as shards.
    """
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
    from uotft.pipeline.data_export import export_source

    ws = workspace(dataset, strategy)
    typer.echo(export_source(ws, dataset, strategy, seed, output, per_shard, progress=track))


@app.command()
def keep(
    shards: Shards,
    selection: Annotated[
        Path,
        typer.Option(dir_okay=False, exists=True, help="The selection.json of a bank of them."),
    ],
    output: Annotated[Path, typer.Option(file_okay=False, help="A folder for the kept pictures.")],
    label: Label = "cls",
    names: Names = "",
    room: Room = 20.0,
    sums: Sums = "",
) -> None:
    """Fetch shards one after the other, and keep the pictures of the selected classes alone.

    What is kept is a data set of shards. The same command resumes at the shard; give it several
    times at once to share the work.
    """
    from uotft.data.shard_stream import listed
    from uotft.pipeline import shard_selection
    from uotft.pipeline.shard_banks import Reading

    every = listed(shards, output / ".work", round(room * 2**30), sums)
    reading = Reading(label)
    for line in shard_selection.keep(every, selection, reading, output, track, names=names):
        typer.echo(line)
