"""What a model in MLflow takes, without MLflow around it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from uotft.core.errors import UserError
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


def test_one_path_alone_and_an_empty_table(model: serving.Classifier, tmp_path: Path) -> None:
    Image.new("L", (16, 16), 90).save(tmp_path / "one.png")
    listed = model.predict(None, [tmp_path / "one.png"])
    for alone in (tmp_path / "one.png", str(tmp_path / "one.png")):
        assert model.predict(None, alone).equals(listed)
    for nothing in (pd.DataFrame({"file": []}), pd.DataFrame({"file": []}, dtype=str)):
        assert model.predict(None, nothing).to_dict("list") == {"label": [], "probability": []}


SIDE = np.zeros((16, 16), np.uint8)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"file": ["one.png"]}, "dict"),
        ([b"one.png"], "bytes"),
        ([None], "NoneType"),
        (["one.png", None], "NoneType"),
        (pd.DataFrame({"file": ["one.png", float("nan")]}), "float"),
        (pd.DataFrame({"file": ["one.png"], "size": [3]}), r"object \(1, 2\)"),
        ([SIDE, SIDE[:-1]], "rows of different shapes"),
        ([SIDE, SIDE[:, :-1]], "rows of different shapes"),
        ([["a.png"], ["b.png", "c.png"]], "rows of different shapes"),
        (SIDE, r"uint8 \(16, 16\)"),
        (SIDE[None] / 255, r"float64 \(1, 16, 16\)"),
        (SIDE[None] + np.int64(256), r"int64 \(1, 16, 16\)"),
        (3, r"int64 \(1,\)"),
    ],
)
def test_what_it_does_not_take(model: serving.Classifier, given: object, what: str) -> None:
    with pytest.raises(UserError, match=f"images: got {what}; known are uint8 images .n, 16, 16.,"):
        model.predict(None, given)


def test_a_path_of_no_file(model: serving.Classifier) -> None:
    with pytest.raises(UserError, match="absent.png: No such file"):
        model.predict(None, "absent.png")
