"""A tiny training that tests stop, kill and let go on, in this process or in children of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from support.projects import tiny_params, workspace, write_params
from uotft.core.context import Context
from uotft.core.records import Cell
from uotft.pipeline import train as train_stage
from uotft.training import checkpoints, runtime

STEPS, EVERY = 24, 5
CELL = ("digits", "uot", 0)
MADE = ("model.safetensors", "model.json", "history.csv")


def change(root: Path, **recipe: object) -> None:
    """The tiny training with a checkpoint every fifth step, and these settings."""
    params = tiny_params()
    often = {"steps": STEPS, "log_every": 1, "checkpoint_every": EVERY}
    params["train"]["recipe"] |= often | recipe
    write_params(root, params)


def train(root: Path, *, progress: Callable = lambda items, label: items, **more: object) -> list:
    """Train in this process, and remove the checkpoints as `uotft train` does; the points."""
    points: list = []

    def log(step: int, numbers: dict) -> None:
        points.append((step, numbers))

    context = Context(runtime.start(0, 1), progress=progress, log=log, **more)
    train_stage.train(workspace(root), Cell(*CELL), context)
    if os.environ.get("RANK", "0") == "0":
        checkpoints.finish(left(root))
    return points


def made(root: Path) -> list[bytes]:
    """The bytes of what the training wrote, which is removed."""
    folder = workspace(root).cell("models", Cell(*CELL))
    content = [(folder / name).read_bytes() for name in MADE]
    for name in MADE:
        (folder / name).unlink()
    return content


def left(root: Path) -> Path:
    """The folder of the training while it is unfinished."""
    ws = workspace(root)
    return ws.unfinished(ws.cell("models", Cell(*CELL)))


def die() -> None:
    """SIGKILL, at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(step: int) -> Callable:
    """Progress that dies before ``step``."""

    def progress(items: range, label: str) -> Iterator[int]:
        for item in items:
            if item == step:
                die()
            yield item

    return progress
