"""The class means that the paper's authors' networks make of ImageNet and CUB, where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from uotft.core.records import ClassBank

PAPER = Path(__file__).parents[3] / "shared" / "paper"
BIRDS = {*range(7, 25), *range(80, 101), *range(127, 147)}  # the 59 bird classes of ImageNet
MODELS = {"supervised": "resnet18_supervised", "moco": "resnet50_mocov2"}
needs_paper = pytest.mark.skipif(
    not PAPER.is_dir(), reason=f"the paper's class means are not at {PAPER}"
)


def banks(model: str) -> tuple[ClassBank, ClassBank]:
    """Means of ImageNet's 1000 classes and of CUB's 200."""
    with np.load(PAPER / f"class_means_{MODELS[model]}.npz") as means:
        return tuple(
            ClassBank(
                means[name].astype(float),
                tuple(f"{i:04}" for i in range(len(means[name]))),
                np.ones(len(means[name]), int),
            )
            for name in ("imagenet", "cub")
        )
