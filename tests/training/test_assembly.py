"""What an objective is given before the first step, of a source by class and of a whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from support.projects import tiny_params
from uotft.core import config
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, ImageSet, SourcePart
from uotft.models import model_io
from uotft.models.inputs import to_input
from uotft.selection import parts
from uotft.training import assembly, objectives, runtime

FEW, EACH = (3, 6, 8), 4  # the classes of ten that are here; images of each, one of them held out
RNG = np.random.default_rng(0)
BANK = ClassBank(RNG.normal(size=(10, 8)), tuple("abcdefghij"), np.ones(10, np.int64))


def pixels(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 16, 16), dtype=np.uint8)


def source(*classes: int) -> ImageSet:
    """A source with images of these classes, which has their names alone."""
    labels = np.repeat(np.arange(len(classes)), EACH)
    splits = np.tile(np.array(["train"] * (EACH - 1) + ["val"]), len(classes))
    return ImageSet(pixels(len(labels)), labels, splits, tuple(BANK.names[c] for c in classes))


def seen_source(
    part: SourcePart, objective: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels of the images that the temperature is fitted on; their wanted logits."""
    raw, given = tiny_params(), []
    raw["train"] |= {"objective": objective, "target_head": "random", "source_head": "random"}
    params = config.checked(raw, "params.yaml")
    torch.manual_seed(0)
    network = model_io.build(params.backbone, 10).eval()
    target = ImageSet(pixels(20), np.arange(20) % 10, np.full(20, "train"), tuple("0123456789"))
    material = assembly.Material(
        params, 0, network, target, np.arange(20), part, np.empty(0, np.int64), Path(),
        lambda: np.empty((0, 0)), lambda: (np.empty((0, 0)), np.empty(0)),
    )  # fmt: skip
    monkeypatch.setattr(objectives, "ready", lambda module, settings, start: given.append(start))
    found = assembly.objective_for(params, part)
    names = part.names if "source" in found.parts else BANK.names
    context = Context(runtime.start(0, 1), progress=lambda items, label: items)
    assembly.assemble(material, found, names, context)
    images = part.data.images[part.data.rows("val")]
    with torch.no_grad():
        logits = network.head("target")(network.backbone(to_input(torch.as_tensor(images))))
    return *given[0].seen_source(), logits


@pytest.mark.parametrize("objective", ["co_tuning", "joint_co_tuning"])
def test_a_source_by_class_is_labelled_by_the_rows_of_the_classifier(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, and of the kept classes alone: other selections bring more into the same folder."""
    part = parts.part_of(BANK, source(*FEW), np.array([8, 3]))
    logits, labels, every = seen_source(part, objective, monkeypatch)
    assert labels.tolist() == [3, 8]
    assert torch.allclose(logits, every[[0, 2]], atol=1e-5)


def test_a_whole_source_counts_with_all_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = source(*range(10))
    members = images.labels[images.rows("train")]
    whole = ClassBank(BANK.means, BANK.names, BANK.counts, members=members)
    part = parts.part_of(whole, images, np.array([8, 3]))
    logits, labels, every = seen_source(part, "co_tuning", monkeypatch)
    assert labels.tolist() == [*range(10)]
    assert torch.allclose(logits, every, atol=1e-5)


@pytest.mark.parametrize("here", [(), FEW])
def test_without_an_image_there_is_no_temperature(
    here: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = parts.part_of(BANK, source(*here), np.empty(0, np.int64))
    with pytest.raises(UserError, match=r"set objectives\.co_tuning\.calibrate: false"):
        seen_source(part, "co_tuning", monkeypatch)
