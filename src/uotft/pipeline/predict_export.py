"""The commands predict and export: predictions for image files, and a model as a file."""

from __future__ import annotations

import logging
import os
import shlex
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uotft.core import paths, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, Progress, silently
from uotft.data.files import View
from uotft.data.walk import walk
from uotft.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from uotft.models.predict import Answer

logger = logging.getLogger(__name__)


def predict(
    model: Path, files: list[str], progress: Progress = silently
) -> tuple[list[Answer], list[str]]:
    """Predict with the model in the folder ``model``.

    Returns the likeliest classes of each readable image file in order, and a line on each other
    one. A folder stands for all images below it; warnings count its other files. Raises
    `UserError` if ``model`` holds no model.
    """
    _check_model(model)  # before torch, which takes seconds to import
    images = [image for file in files for image in _images_of(file)]
    from uotft.models import model_io
    from uotft.models.predict import answers, reader

    network, facts = model_io.read(model)
    good: list[Answer] = []
    bad: list[str] = []
    for answer in answers(network, reader(facts), facts["classes"], images, progress):
        if isinstance(answer, UserError):
            bad.append(str(answer))
        else:
            good.append(answer)
    return good, bad


def _check_model(folder: Path) -> None:
    """Raise UserError unless ``folder`` holds a trained model."""
    if not (folder / "model.json").is_file():
        raise UserError(
            f"{folder} is not the folder of a trained model: it needs model.json and "
            "model.safetensors. Trained models are in models/TARGET/STRATEGY/SEED/ of a project"
        )


def _images_of(file: str) -> list[str]:
    """The file itself, or the images below a folder, of which there must be some."""
    folder = Path(file)
    if not folder.is_dir():
        return [file]
    tree = walk(folder)
    images = [str(folder / os.fsdecode(name)) for name in tree.images()]
    notes = tree.notes()
    if not images:
        raise UserError(f"{file}: no image in this folder or below ({'; '.join(notes) or 'empty'})")
    for note in notes:
        logger.warning("%s: %s", file, note)
    return images


def model_of(ws: Workspace, cell: Cell) -> Path:
    """The folder of a cell's model. Without one, `UserError` names the trained ones."""
    folder = ws.cell("models", cell)
    if (folder / "model.json").is_file():
        return folder
    options = f"--dataset {cell.target} --strategy {cell.strategy} --seed {cell.seed}"
    makes = f"it is no cell of params.yaml; `uotft train {options}` makes it"
    asked, params = (cell.target, cell.strategy, cell.seed), ws.params
    if asked in product(params.targets, params.strategies, params.seeds):
        makes = f"`dvc repro` makes it, or `uotft train {options}`"
    there = sorted(ws.root.glob(f"models/{cell.target}/*/*/model.json"))
    there += sorted(ws.root.glob(f"variants/*/models/{cell.target}/*/*/model.json"))
    lines = [f"  {_named(ws, path.parent)}" for path in there]
    trained = (
        f"trained models of {cell.target}:"
        if there
        else f"no model of {cell.target} is trained yet"
    )
    raise UserError("\n".join([f"{folder}/model.json is missing: {makes}; {trained}", *lines]))


def _named(ws: Workspace, folder: Path) -> str:
    """The command-line options that select a trained model."""
    kind, *names = folder.relative_to(ws.root).parts
    if kind != "models":
        return f"--model {shlex.quote(str(folder))}"
    target, strategy, seed = names
    return f"--dataset {target} --strategy {strategy} --seed {seed}"


def export(model: Path, form: str, output: Path) -> dict[str, Any]:
    """Write the model as ``form`` (onnx, torch) to ``output``, and its metadata to OUTPUT.json."""
    _check_model(model)
    from uotft.models import model_io
    from uotft.models.export import FORMATS, TOLERANCE, export
    from uotft.models.predict import dataset_of

    if form not in FORMATS:
        raise UserError(f"--format: got {form!r}; known are {', '.join(FORMATS)}")
    description = output.with_name(f"{output.name}.json")
    for path in (output, description):
        paths.must_not_replace(path, (model / name for name in model_io.FILES))
    network, facts = model_io.read(model)
    content, difference = export(network, facts["image_size"], form)
    _, settings = dataset_of(facts)
    # share: tests used the centred square of this share of the shorter side
    names = {"share", "background", "white"}
    seen = settings.model_dump(include=names) if isinstance(settings, View) else {}
    about = {
        "format": form,
        "input": {"pixels": "uint8", "shape": ["images", *facts["image_size"]], **seen},
        "output": {"logits": "float32", "shape": ["images", len(facts["classes"])]},
        "classes": facts["classes"],
        "model": facts["sha256"],
        "difference": difference,
        "tolerance": TOLERANCE,
    }
    description.unlink(missing_ok=True)  # an older one must not stand beside the new model
    storage.write_bytes(output, content)
    storage.write_json(description, about)
    return about
