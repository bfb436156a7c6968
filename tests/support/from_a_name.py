"""`uotft train --dataset dogs` against a mirror on this machine, with tiny content.

The mirror is a server with all addresses that the command asks, in the official formats.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support import dataset_archives
from support.commands import call
from support.download_server import Server, serving
from support.foreign_weights import torchvision_file
from support.patched_modules import patched, tiny_imagenet
from support.shared import once
from uotft.data.class_downloads import TRAIN_URL
from uotft.data.datasets import dogs

SHORT = (
    "train.recipe.steps=2", "train.recipe.epochs=0", "train.target_batch=4", "train.source_batch=4",
    "select.top_k=5",
)  # fmt: skip
TAR = TRAIN_URL.split("//")[1]
ARCHIVE, LISTS = (f"{dogs.SITE.split('//')[1]}{name}" for name in ("images.tar", "lists.tar"))
WEIGHTS = "download.pytorch.org/models/resnet18-f37072fd.pth"
FIRST = "bytes=0-0"  # the Range of a request that only tries an address

Done = subprocess.CompletedProcess[str]


class Digest:
    """Stands in for weights.HASH: torchvision's file names hold the start of the real digest."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def __repr__(self) -> str:
        return f"type('Digest', (), {{'search': lambda self, name: ('', {self.digest!r})}})()"


class World(NamedTuple):
    """A mirror, the environment of commands that use it, and the constants that hold in them."""

    server: Server
    environment: dict[str, str]
    changes: dict[str, dict[str, Any]]

    def asked_of(self, name: str) -> list[str]:
        """The Range of each request for a file, without those that only tried its address."""
        asked = (part for path, part in self.server.asked if path.endswith(name))
        return [part for part in asked if part != FIRST]


def random_weights(factory: pytest.TempPathFactory) -> bytes:
    """ResNet-18 with random weights, in torchvision's format."""
    folder = once(factory, "weights", lambda f: torchvision_file("resnet18", f))
    return (folder / "resnet18.pth").read_bytes()


@contextmanager
def mirror(
    folder: Path, weights: bytes, others: dict[str, dict[str, Any]] | None = None
) -> Iterator[World]:
    """A world, with the settings and weights of its user in ``folder``; ``others`` are changes."""
    tar, archives = dataset_archives.imagenet_tar(), dataset_archives.dogs()
    card = dataset_archives.card("dogs", archives, dogs.SITE.rstrip("/"))
    contents = {
        ARCHIVE: archives["images.tar"],
        LISTS: archives["lists.tar"],
        TAR: tar,
        WEIGHTS: weights,
    }
    changes = {
        "uotft.data.datasets.dogs": {"CARD": card},
        "uotft.models.weights": {"HASH": Digest(hashlib.sha256(weights).hexdigest())},
        **tiny_imagenet(tar),
        # a plan measures this machine for five seconds
        "uotft.runs.estimate": {"TRAIN_S": 0.1, "FORWARD_S": 0.1, "DECODE_S": 0.1, "FEW": 1},
        **(others or {}),
    }
    with serving(contents) as server:
        environment = patched(folder / "patch", changes) | {
            "UOTFT_MIRROR": f"{server.address}/good",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "TORCH_HOME": str(folder / "torch"),
        }
        yield World(server, environment, changes)


def train(world: World, here: Path, *words: str, dataset: str = "dogs", **environment: str) -> Done:
    """The command with the settings of `SHORT`."""
    changes = [word for change in SHORT for word in ("--set", change)]
    return call("uotft", "train", "--dataset", dataset, *changes, *words, cwd=here, timeout=600,
                **world.environment | environment)  # fmt: skip


def accept(world: World, here: Path) -> None:
    """Accept ImageNet's terms."""
    done = call("uotft", "data", "accept", "imagenet", cwd=here, **world.environment)
    assert done.returncode == 0, done.stderr
