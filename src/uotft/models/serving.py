"""The script inside every logged model: images or image files in, label and probability out.

model = mlflow.pyfunc.load_model("models:/NAME/1")   # or "runs:/RUN_ID/model"
model.predict(images)                                # uint8 (n, H, W) or (n, H, W, 3)
model.predict(["photo.png", "other.jpg"])            # read as `uotft predict` reads them
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
        """uint8 images, or n paths, or a table with one column of paths -> a table of n rows.

        Its columns are label and probability.
        """
        import pandas as pd

        from uotft.models.predict import AT_ONCE, best

        given, rows = np.asarray(model_input), []
        files = given.dtype.kind in "OSTU" and given.size == len(given)
        images = given.ravel() if files else self._checked(given)
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE]
            pixels = np.stack([self.read(Path(path)) for path in part]) if files else part
            answers = best(self.network, pixels, self.facts["classes"], [""] * len(part), top=1)
            rows += [answer.classes[0] for answer in answers]
        return pd.DataFrame(rows, columns=["label", "probability"])

    def _checked(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        """The images as uint8; JSON brings them as other integers."""
        from uotft.core.errors import UserError

        shape, span = tuple(self.facts["image_size"]), np.iinfo(np.uint8)
        if (
            images.dtype.kind not in "iu"
            or images.shape[1:] != shape
            or (images.size and (images.min() < span.min or images.max() > span.max))
        ):
            raise UserError(
                f"images: got {images.dtype} {images.shape}; known are uint8 images (n, "
                f"{', '.join(map(str, shape))}), or paths of image files: n of them, or a table "
                "with one column"
            )
        return images.astype(np.uint8)


mlflow.models.set_model(Classifier())
