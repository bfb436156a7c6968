"""The script inside every logged model: images in, label and probability out.

mlflow.pyfunc.load_model("runs:/RUN_ID/model").predict(images)   # uint8 (n, H, W) or (n, H, W, 3)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Predicts the target class of images of the size that the model was trained on."""

    def load_context(self, context: Any) -> None:
        """Read the weights from the model's own artifacts."""
        from uotft import checkpoint

        self.network, self.facts = checkpoint.read(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """uint8 (n, H, W) or (n, H, W, 3) -> a table with one row an image: label, probability."""
        import numpy as np
        import pandas as pd
        import torch

        from uotft.images import to_input

        images = torch.as_tensor(np.asarray(model_input, np.uint8))
        with torch.no_grad():
            best = self.network(to_input(images, self.network.channels))["target"].softmax(1).max(1)
        labels = [self.facts["classes"][i] for i in best.indices.tolist()]
        return pd.DataFrame({"label": labels, "probability": best.values.double().numpy()})


mlflow.models.set_model(Classifier())
