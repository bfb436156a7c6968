"""After training: a model's answers for image files, and the model in a file for other programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uotft import config, store
from uotft.errors import UserError

if TYPE_CHECKING:
    from uotft.predict import Answer


def predict(model: Path, files: list[str]) -> tuple[list[Answer], list[str]]:
    """The likeliest classes of each image file, and why the others cannot be read."""
    import numpy as np

    from uotft import checkpoint, predict as room

    network, facts = checkpoint.read(model)
    resize = None
    if "dataset" in facts:
        module, settings = config.dataset_section(facts["dataset"], "the model's data set")
        if hasattr(module, "from_picture"):
            resize = partial(module.from_picture, settings=settings)
    pixels, bad = {}, []
    for file in files:
        try:
            pixels[file] = room.read(Path(file), facts["image_size"], resize)
        except UserError as error:
            bad.append(str(error))
    if not pixels:
        return [], bad
    return room.best(network, np.stack([*pixels.values()]), facts["classes"], [*pixels]), bad


def export(model: Path, form: str, output: Path) -> dict[str, Any]:
    """Write the model as ``form`` (onnx, torch) to ``output`` and what it is to OUTPUT.json."""
    from uotft import checkpoint, export as room

    if form not in room.FORMATS:
        raise UserError(f"--format: got {form!r}; known are {', '.join(room.FORMATS)}")
    network, facts = checkpoint.read(model)
    content, difference = room.export(network, facts["image_size"], form)
    about = {
        "format": form,
        "input": {"pixels": "uint8", "shape": ["images", *facts["image_size"]]},
        "output": {"logits": "float32", "shape": ["images", len(facts["classes"])]},
        "classes": facts["classes"],
        "model": facts["sha256"],
        "difference": difference,
        "tolerance": room.TOLERANCE,
    }
    store.write_bytes(output, content)
    store.write_json(output.with_name(f"{output.name}.json"), about)
    return about
