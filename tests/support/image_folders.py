"""Folders of small pictures, as a user has them: one folder a class, each class a colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(folder: Path, classes: int, each: int, side: int = 20, seed: int = 0) -> Path:
    """``classes`` folders of ``each`` noisy pictures, of ``side`` pixels and a few more."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        inside = folder / f"class {label}"
        inside.mkdir(parents=True)
        colour = rng.integers(40, 215, 3)
        for number in range(each):
            height, width = side + rng.integers(0, 6, 2)
            pixels = (colour + rng.normal(0, 30, (height, width, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(inside / f"{number}.png")
    return folder


def small(params: dict, *, epochs: int = 2) -> dict:
    """The settings of a preset, made small: pictures of 12 pixels, a tiny network, few images."""
    for section in params["datasets"].values():
        section |= {"stored": 16, "size": 12}
    params["backbone"] = {"name": "small_resnet", "widths": [4, 8], "blocks": 1}
    for stage in ("pretrain", "train"):
        params[stage]["recipe"] |= {"epochs": epochs, "steps": 0, "log_every": 1, "eval_every": 0}
    params["pretrain"]["batch_size"] = 16
    params["train"] |= {"target_batch": 8, "source_batch": 8}
    return params | {"strategies": ["none", "uot"], "seeds": [0, 1], "cpu_threads": 1}
