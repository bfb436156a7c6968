"""The commands predict and export: a model's answers for image files, and a file of the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.data.files import View

if TYPE_CHECKING:
    from uotft.models.predict import Answer


def predict(model: Path, files: list[str]) -> tuple[list[Answer], list[str]]:
    """The likeliest classes of each image file, and why the others cannot be read."""
    from uotft.models import model_io
    from uotft.models.predict import best, reader

    network, facts = model_io.read(model)
    read_image, pixels, bad = reader(facts), {}, []
    for file in files:
        try:
            pixels[file] = read_image(Path(file))
        except UserError as error:
            bad.append(str(error))
    if not pixels:
        return [], bad
    return best(network, np.stack([*pixels.values()]), facts["classes"], [*pixels]), bad


def export(model: Path, form: str, output: Path) -> dict[str, Any]:
    """Write the model as ``form`` (onnx, torch) to ``output``, and its facts to OUTPUT.json."""
    from uotft.models import model_io
    from uotft.models.export import FORMATS, TOLERANCE, export
    from uotft.models.predict import dataset_of

    if form not in FORMATS:
        raise UserError(f"--format: got {form!r}; known are {', '.join(FORMATS)}")
    network, facts = model_io.read(model)
    content, difference = export(network, facts["image_size"], form)
    _, settings = dataset_of(facts)
    # a model of image files saw, in tests, the centred square of this share of the shorter side
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
    storage.write_bytes(output, content)
    storage.write_json(output.with_name(f"{output.name}.json"), about)
    return about
