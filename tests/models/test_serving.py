"""What a model in MLflow takes, without MLflow around it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from uotft.models import serving
from uotft.models.predict import AT_ONCE


@pytest.fixture
def model(tiny: Path) -> serving.Classifier:
    made = serving.Classifier()
    made.load_context(SimpleNamespace(artifacts={"model": str(tiny / "pretrained/glyphs")}))
    return made


def test_many_images_and_none(model: serving.Classifier, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (AT_ONCE + 3, 16, 16), np.uint8)
    together = model.predict(None, images)
    one_by_one = [model.predict(None, images[i : i + 1]).iloc[0] for i in range(len(images))]
    assert together["label"].tolist() == [row["label"] for row in one_by_one]
    found = [row["probability"] for row in one_by_one]
    assert np.allclose(together["probability"], found, atol=1e-6)
    assert together.equals(model.predict(None, images.tolist())), "as JSON brings them"
    assert len(model.predict(None, images[:0])) == 0

    Image.fromarray(images[0]).save(tmp_path / "one.png")
    [row] = model.predict(None, [tmp_path / "one.png"]).to_dict("records")
    assert row["label"] == together["label"][0]
