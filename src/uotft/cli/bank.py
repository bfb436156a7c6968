"""The commands uotft bank …: make, fetch and show banks of class means that travel.

uotft bank show birds.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uotft.cli.options import Label, Names, Room, Shards, Sums, workspace
from uotft.core.errors import UserError
from uotft.core.progress import track

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make, fetch and show banks of class means, to select from without source images.",
)

Backbone = Annotated[
    str,
    typer.Option(
        help="resnet18, resnet50, moco:WEIGHTS, timm:MODEL or any NAME:WEIGHTS; it sees the images."
    ),
]
Size = Annotated[int, typer.Option(min=8, help="Pixels a side that the network sees.")]


@app.command()
def make(
    output: Annotated[Path, typer.Option(dir_okay=False, help="A .safetensors or .npz file.")],
    images: Annotated[
        str, typer.Option(help="A folder with one folder a class; or its zip, tar or list.")
    ] = "",
    backbone: Backbone = "",
    classifier: Annotated[
        bool, typer.Option("--classifier", help="No images: rows of the pre-trained classifier.")
    ] = False,
    dataset: Annotated[
        str, typer.Option(help="Or a data set that this project has embedded, by its backbone.")
    ] = "",
    size: Size = 224,
    shards: Shards = "",
    label: Label = "cls",
    names: Names = "",
    room: Room = 20.0,
    sums: Sums = "",
    unreadable: Annotated[
        str, typer.Option(help="With --shards: error, or skip to leave out and count.")
    ] = "error",
    features: Annotated[
        bool,
        typer.Option("--features", help="With --shards: keep all features, to be clustered."),
    ] = False,
) -> None:
    """Make a bank: class means of training images, or the rows of a pre-trained classifier.

    The bank names the weights that made it; means of other weights are refused beside it.
    With --shards, tar files are fetched one after the other, and dropped once they are embedded.
    The same command resumes at the shard; give it several times at once to share the work.
    """
    from uotft.pipeline import banks

    if bool(images) + classifier + bool(dataset) + bool(shards) != 1:
        raise UserError("bank make needs one of --images, --shards, --classifier and --dataset")
    if bool(dataset) == bool(backbone):
        raise UserError("bank make: --images, --shards and --classifier need --backbone, and "
                        "--dataset has the project's own")  # fmt: skip
    if unreadable not in ("error", "skip"):
        raise UserError(f"--unreadable: got {unreadable!r}; choose error or skip")
    if shards:
        from uotft.data.shard_stream import listed
        from uotft.pipeline import shard_banks

        every = listed(shards, shard_banks.work_folder(output), round(room * 2**30), sums)
        reading = shard_banks.Reading(label, size, unreadable == "skip")
        line = shard_banks.make(
            every, backbone, reading, output, track, names=names, keep_features=features
        )
    elif dataset:
        line = banks.make_of_dataset(workspace(dataset), dataset, output)
    elif classifier:
        line = banks.make_of_classifier(backbone, output)
    else:
        line = banks.make(images, backbone, size, output, track)
    typer.echo(line)


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="The address of a bank.")],
    sha256: Annotated[
        str, typer.Option(help="Its SHA-256, from its publisher: 64 hexadecimal digits.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The file; by default the address's name.")
    ] = None,
) -> None:
    """Download a bank that somebody published, check its bytes, and show it.

    A broken download resumes.
    """
    from uotft.pipeline import bank_files

    for line in bank_files.fetch(url, sha256, output, track):
        typer.echo(line)


@app.command()
def show(file: Annotated[Path, typer.Argument(metavar="FILE", help="A bank.")]) -> None:
    """Show a bank: its classes, features, weights, and whether its rows can be used."""
    from uotft.pipeline import bank_files

    for line in bank_files.show(file):
        typer.echo(line)
