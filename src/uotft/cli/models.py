"""Commands on a trained model: predict, export it to a file, register it in MLflow.

uotft predict --dataset digits photo.png
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uotft.cli.options import ModelFolder, ModelTarget, Seed, Strategy, model_folder, workspace
from uotft.cli.tables import print_table
from uotft.core import environment
from uotft.core.errors import UserError
from uotft.core.progress import track

if TYPE_CHECKING:
    from uotft.models.predict import Answer


def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, or folders of images."),
    ],
    dataset: ModelTarget = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    model: ModelFolder = "",
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Predict the classes of image files: the five likeliest of each, with probabilities."""
    from uotft.pipeline.predict_export import predict

    with environment.memory_kept():
        answers, bad = predict(
            model_folder("predict", model, dataset, strategy, seed), images, track
        )
    if json_:
        _print_json(answers)
    elif answers:
        _print_answers(answers)
    if bad:
        count = f"{len(bad):,} of {len(bad) + len(answers):,} files"
        raise UserError(f"{count} were left out:\n" + "\n".join(f"  {why}" for why in bad))


def _print_json(answers: list[Answer]) -> None:
    import json

    content = [
        {
            "file": answer.file,
            "classes": [{"label": label, "probability": p} for label, p in answer.classes],
        }
        for answer in answers
    ]
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _print_answers(answers: list[Answer]) -> None:
    rows, ends = list[tuple[str, str, str]](), set[int]()
    for answer in answers:
        for place, (label, share) in enumerate(answer.classes):
            rows.append(("" if place else answer.file, label, f"{100 * share:.2f}"))
        ends.add(len(rows) - 1)
    header = ("image", "class", "probability, %")
    print_table(header, rows, width=110, text_columns=2, lines_after=ends)


def export(
    format_: Annotated[str, typer.Option("--format", help="onnx, or torch (torch.export).")],
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The file to write; FILE.json describes it.")
    ],
    dataset: ModelTarget = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    model: ModelFolder = "",
) -> None:
    """Write a trained model for other programs, and compare its outputs with the original's."""
    from uotft.pipeline.predict_export import export

    about = export(model_folder("export", model, dataset, strategy, seed), format_, output)
    typer.echo(
        f"{output}: logits differ by at most {about['difference']:.1e} of the largest; "
        f"class names are in {output}.json"
    )


def register(
    name: Annotated[str, typer.Option(help="The model's name in MLflow's registry.")],
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="The id or name of a run.")] = "",
    dataset: Annotated[
        str, typer.Option(help="Or the target of a model in models/, in place of RUN.")
    ] = "",
    strategy: Strategy = "uot",
    seed: Seed = 0,
    alias: Annotated[str, typer.Option(help="A name for this version, such as champion.")] = "",
) -> None:
    """Register a run's model in MLflow, with its selection and accuracies.

    Registers the same weights only once.
    """
    from uotft.core.records import Cell
    from uotft.runs import job

    if bool(run) == bool(dataset):
        raise UserError("register needs RUN, or --dataset (with --strategy and --seed)")
    ws = workspace(dataset, strategy) if dataset else workspace()
    typer.echo(job.register(ws, name, alias, run, Cell(dataset, strategy, seed)))
