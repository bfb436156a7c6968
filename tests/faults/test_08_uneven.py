"""Fault 8: a source with fewer or more images than the target, with one image, or with none; empty
parts of a data set.

Expected: no process waits for another, and both heads get a gradient on every process in every
step; an empty set is an error that names it, within 5 s.

Streams are endless, so no loader ends before another.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from support.child_processes import crew, forget_accelerator
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap, take_for_embedded
from support.tiny_training import CELL, change, train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell, ImageSet
from uotft.core.settings import Augment, Recipe
from uotft.models.backbones import small_resnet
from uotft.models.network import Network
from uotft.pipeline import (
    embed as embed_stage,
    evaluate as evaluate_stage,
    pretrain as pretrain_stage,
    readers,
    select,
)
from uotft.selection import features
from uotft.training import runtime
from uotft.training.loop import Task, fit
from uotft.training.objectives import joint
from uotft.training.streams import Place, Sampling, Stream

IMAGES = np.random.default_rng(0).integers(0, 255, (200, 8, 8), dtype=np.uint8)
HANG_S = 60


def ends(children: list[int]) -> list[int]:
    """The exit codes of all children, none of which hangs."""
    codes, deadline = {}, time.monotonic() + HANG_S
    while len(codes) < len(children):
        assert time.monotonic() < deadline, "a process hangs"
        for child in children:
            if child not in codes:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[child] for child in children]


@pytest.mark.parametrize(("target", "source"), [(20, 1), (1, 200), (3, 7), (1, 1)])
def test_both_heads_learn_on_every_process(
    tmp_path: Path, target: int, source: int, measured: Callable
) -> None:
    """Batches of 8, so most of these sets are smaller than a batch, and one than a share of it."""

    def work(rank: int) -> None:
        torch.manual_seed(0)
        settings = small_resnet.Settings(widths=[4, 8])
        network = Network(small_resnet.build(settings), target=2, source=3)
        share, place = {"batch_size": 8, "seed": 0, "augment": Augment()}, Place("cpu", rank, 2)
        streams = {
            name: Stream(IMAGES, np.arange(n) % classes, Sampling(name, **share), place)
            for name, n, classes in (("target", target, 2), ("source", source, 3))
        }
        seen, step = [], torch.optim.SGD.step

        def note(*words: object) -> None:
            grads = [network.head(name).weight.grad for name in ("target", "source")]
            seen.append([float(g.norm()) for g in grads])
            step(*words)

        torch.optim.SGD.step = note
        forget_accelerator()
        recipe = Recipe(steps=10, learning_rate=0.1, head_lr_factor=1.0)
        terms = lambda outputs, batch: joint.terms(outputs, batch, 0.5)  # noqa: E731
        fit(Task(network, streams, terms, recipe, joint.ROUTES), Context(runtime.start(0, 1)))
        storage.write_json(tmp_path / f"{rank}.json", seen)

    assert ends(crew(work, 2)) == [0, 0]
    found = [np.array(storage.read_json(tmp_path / f"{rank}.json")) for rank in range(2)]
    for seen in found:
        assert seen.shape == (10, 2)
        assert (seen > 0).all(), "in every step"
        assert np.array_equal(seen, found[0]), "DDP's mean over all processes"
    measured(f"{target} target and {source} source images: both heads have a gradient on both "
             "processes in 10 of 10 steps")  # fmt: skip


@pytest.mark.parametrize("objective", ["joint", "pseudo_label"])
def test_a_source_of_one_image_trains_on_two_processes(trainable: Path, objective: str) -> None:
    """Through the stage: all but one image of the selected classes are found in the test part."""
    ws = workspace(trainable)
    kept = [c["row"] for c in readers.read_selection(ws, Cell(*CELL))["classes"]]
    part = readers.source_part(ws, np.array(kept))
    excluded(trainable, part.rows[1:])
    change(trainable)
    params = tiny_params()
    params["train"]["objective"] = objective
    write_params(trainable, params)
    assert ends(crew(lambda rank: train(trainable), 2)) == [0, 0]
    facts = storage.read_json(ws.cell("models", Cell(*CELL)) / "model.json")
    assert facts["overlap"]["excluded"] == len(part.rows) - 1


def excluded(root: Path, rows: np.ndarray) -> None:
    """Let these source images be test images too."""
    path = workspace(root).overlap("digits")
    matches = [{"source": int(row), "target": 0, "reason": "bytes"} for row in rows]
    storage.write_json(path, {**storage.read_json(path), "matches": matches})


def without(root: Path, dataset: str, part: str) -> None:
    """The data set with no image in this part: they are in another one."""
    ws = workspace(root)
    images = readers.images(ws, dataset)
    splits = np.where(images.splits == part, "unreadable", images.splits)
    new = ImageSet(images.images, images.labels, splits, images.names)
    storage.write_images(ws.data(dataset), new)
    if (ws.features(dataset) / features.INDEX).exists():
        take_for_embedded(ws, dataset)
    if part != "test":
        find_overlap(root)
    if dataset == "digits" and part != "test":
        select.select(ws, Cell(*CELL))


def pretrain(root: Path) -> None:
    quiet = {"log": lambda *_: None, "progress": lambda items, label: items}
    pretrain_stage.pretrain(workspace(root), Context(runtime.start(0, 1), **quiet))


def embed(root: Path) -> None:
    ws = workspace(root)
    embed_stage.embed(
        ws, "digits", Context(runtime.start(0, 1), progress=lambda items, label: items)
    )


def evaluate(root: Path) -> None:
    evaluate_stage.evaluate(workspace(root), "digits", "uot", progress=lambda items, label: items)


# what is empty: whose, which part (of the source: what overlap leaves), who refuses it
EMPTY = {
    "selected": ("", "", train),
    "pre-training": ("glyphs", "train", pretrain),
    "pre-validation": ("glyphs", "val", pretrain),
    "training": ("digits", "train", train),
    "validation": ("digits", "val", train),
    "embedding": ("digits", "train", embed),
    "test": ("digits", "test", evaluate),
}


@pytest.mark.parametrize("what", EMPTY)
def test_an_empty_set_is_refused_in_seconds(trainable: Path, what: str, measured: Callable) -> None:
    dataset, part, stage = EMPTY[what]
    world = 1 if stage is evaluate else 2
    words = {"train": "training", "val": "validation", "test": "test"}
    message = rf"data/{dataset}\.npz has no {words.get(part)} image"
    if stage is evaluate:
        train(trainable)
    if part:
        without(trainable, dataset, part)
    else:
        excluded(trainable, readers.images(workspace(trainable), "glyphs").rows("train"))
        message = "every image of the selected source classes is also a test image"

    def work(rank: int) -> None:
        begun = time.monotonic()
        with pytest.raises(UserError, match=message):
            stage(trainable)
        (trainable / f"seconds-{rank}").write_text(str(time.monotonic() - begun))

    assert ends(crew(work, world)) == [0] * world
    seconds = max(float((trainable / f"seconds-{r}").read_text()) for r in range(world))
    assert seconds < 5
    measured(f"{what} images empty: an error after {seconds:.2f} s")


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(UserError, match="there are no source images to train on"):
        Stream(IMAGES[:0], np.arange(0), Sampling("source", 4, 0, Augment()))


def test_a_process_without_a_shard_waits_for_the_others(fresh: Path) -> None:
    """72 images in one shard for two processes: the second has nothing to embed."""
    ws = workspace(fresh)
    shutil.rmtree(ws.features("glyphs"))
    quiet = {"progress": lambda batches, label: batches}

    def work(rank: int) -> None:
        embed_stage.embed(workspace(fresh), "glyphs", Context(runtime.start(0, 1), **quiet))

    assert ends(crew(work, 2)) == [0, 0]
    assert features.read(ws.features("glyphs"))["features"].shape == (72, 8)
