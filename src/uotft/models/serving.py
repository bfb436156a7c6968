"""The script inside every logged model: images or image files in, label and probability out.

model = mlflow.pyfunc.load_model("models:/NAME/1")   # or "runs:/RUN_ID/model"
model.predict(images)                                # uint8 (n, H, W) or (n, H, W, 3)
model.predict(["photo.png", "other.jpg"])            # or one path; read as `uotft predict` reads it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from numpy.typing import NDArray


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Predicts the target class of images of the size that the model was trained on."""

    def load_context(self, context: Any) -> None:
        """Read the weights from the model's own artifacts."""
        from uotft.models import model_io, predict

        self.network, self.facts = model_io.read(Path(context.artifacts["model"]))
        self.read = predict.reader(self.facts)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """uint8 images, n paths, one path, or a table with one column of paths -> a table.

        It has a row for each image; its columns are label and probability.
        """
        import pandas as pd

        from uotft.models.predict import AT_ONCE, best

        try:
            given, rows = np.atleast_1d(np.asarray(model_input)), []
        except ValueError as error:
            raise self._wrong("rows of different shapes") from error
        files = given.shape == (0, 1) or (given.dtype.kind in "OSTU" and given.size == len(given))
        images: Any = self._paths(given.ravel()) if files else self._checked(given)
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE]
            pixels = np.stack([self.read(path) for path in part]) if files else part
            answers = best(self.network, pixels, self.facts["classes"], [""] * len(part), top=1)
            rows += [answer.classes[0] for answer in answers]
        return pd.DataFrame(rows, columns=["label", "probability"])

    def _checked(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        """The images as uint8; JSON brings them as other integers."""
        shape, span = tuple(self.facts["image_size"]), np.iinfo(np.uint8)
        if (
            images.dtype.kind not in "iu"
            or images.shape[1:] != shape
            or (images.size and (images.min() < span.min or images.max() > span.max))
        ):
            raise self._wrong(f"{images.dtype} {images.shape}")
        return images.astype(np.uint8)

    def _paths(self, files: NDArray[Any]) -> list[Path]:
        """The same as paths. Raises `UserError` for what is no text and no path."""
        items: list[Any] = files.tolist()
        for item in items:
            if not isinstance(item, str | Path):
                raise self._wrong(type(item).__name__)
        return [Path(item) for item in items]

    def _wrong(self, given: str) -> Exception:
        """The error for an input that is neither images nor paths of them."""
        from uotft.core.errors import UserError

        shape = ", ".join(map(str, self.facts["image_size"]))
        return UserError(
            f"images: got {given}; known are uint8 images (n, {shape}), or paths of image files: "
            "one, n of them, or a table with one column"
        )


mlflow.models.set_model(Classifier())
