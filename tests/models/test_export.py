"""Exports say what the network says; one that does not never gets its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.models import export, model_io
from uotft.models.network import Network, separate_norms
from uotft.pipeline import predict_export

BACKBONES = [
    ({"name": "small_resnet", "widths": [4, 8]}, [16, 16]),
    ({"name": "small_resnet", "widths": [4, 8]}, [16, 16, 3]),
    ({"name": "resnet18"}, [32, 32]),
    ({"name": "timm", "model": "test_vit.r160_in1k", "image_size": 32}, [32, 32, 3]),
]


def network(backbone: dict) -> Network:
    torch.manual_seed(0)
    return model_io.build(backbone, 5, 3).eval()


@pytest.mark.slow
@pytest.mark.parametrize("form", export.FORMATS)
@pytest.mark.parametrize(("backbone", "shape"), BACKBONES)
def test_backbones_export(backbone: dict, shape: list[int], form: str) -> None:
    model = network(backbone)
    if backbone["name"] != "timm":
        separate_norms(model)  # as training leaves it
    content, difference = export.export(model, shape, form)
    assert difference <= export.TOLERANCE
    pixels = torch.randint(0, 256, (7, *shape), dtype=torch.uint8)
    with torch.no_grad():
        logits = export.FORMATS[form][1](content)(pixels)
        wanted = export.Classifier(model).eval()(pixels)
    assert logits.shape == (7, 5)
    assert torch.allclose(logits, wanted, atol=1e-4)


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_other_logits_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: float
) -> None:
    facts = {
        "backbone": BACKBONES[0][0],
        "classes": list("abcde"),
        "source_classes": list("xyz"),
        "image_size": [16, 16],
    }
    model_io.write(tmp_path / "model", network(BACKBONES[0][0]), facts)
    write, load = export.FORMATS["torch"]
    wrong = (write, lambda content: lambda pixels: load(content)(pixels) + fault)
    monkeypatch.setitem(export.FORMATS, "torch", wrong)
    with pytest.raises(RuntimeError, match="nothing was written"):
        predict_export.export(tmp_path / "model", "torch", tmp_path / "m.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    for name in ("model", "model.safetensors", "model.json"):
        with pytest.raises(UserError, match=r"would replace .*, which is read: name another"):
            predict_export.export(tmp_path / "model", "torch", tmp_path / "model" / name)
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    about = predict_export.export(tmp_path / "model", "torch", tmp_path / "m.pt2")
    assert about == storage.read_json(tmp_path / "m.pt2.json")
