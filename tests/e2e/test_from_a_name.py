"""`uotft train --dataset dogs` in an empty folder: everything is fetched from a server on the way.

The server is a mirror with all addresses that the command asks, and tiny content in the official
formats. Real processes, real DVC, a real MLflow store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest

from support import dataset_archives
from support.commands import call
from support.download_server import Server, serving
from support.foreign_weights import torchvision_file
from support.patched_modules import patched, tiny_imagenet
from support.projects import runs
from support.shared import once
from uotft.data import wordnet
from uotft.data.class_downloads import TRAIN_URL
from uotft.data.datasets import dogs

SHORT = (
    "train.recipe.steps=2", "train.recipe.epochs=0", "train.target_batch=4", "train.source_batch=4",
    "select.top_k=5",
)  # fmt: skip
KEPT = 5


class Digest:
    """Stands in for weights.HASH: torchvision's file names hold the start of the real digest."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def __repr__(self) -> str:
        return f"type('Digest', (), {{'search': lambda self, name: ('', {self.digest!r})}})()"


class World(NamedTuple):
    """A mirror, and the environment of commands that use it."""

    server: Server
    environment: dict[str, str]

    def asked_of(self, name: str) -> list[str]:
        return [part for path, part in self.server.asked if path.endswith(name)]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """ResNet-18 with random weights, in torchvision's format."""
    folder = once(tmp_path_factory, "weights", lambda f: torchvision_file("resnet18", f))
    return (folder / "resnet18.pth").read_bytes()


@pytest.fixture
def world(tmp_path: Path, weights: bytes) -> Iterator[World]:
    tar, archives = dataset_archives.imagenet_tar(), dataset_archives.dogs()
    card = dataset_archives.card("dogs", archives, dogs.SITE.rstrip("/"))
    contents = {
        **{f"{dogs.SITE.split('//')[1]}{name}": content for name, content in archives.items()},
        TRAIN_URL.split("//")[1]: tar,
        "download.pytorch.org/models/resnet18-f37072fd.pth": weights,
    }
    changes = {
        "uotft.data.datasets.dogs": {"CARD": card},
        "uotft.models.weights": {"HASH": Digest(hashlib.sha256(weights).hexdigest())},
        **tiny_imagenet(tar),
    }
    with serving(contents) as server:
        environment = patched(tmp_path / "patch", changes) | {
            "UOTFT_MIRROR": f"{server.address}/good",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "TORCH_HOME": str(tmp_path / "torch"),
        }
        yield World(server, environment)


def train(world: World, here: Path, *words: str, dataset: str = "dogs"):  # noqa: ANN201
    changes = [word for change in SHORT for word in ("--set", change)]
    return call("uotft", "train", "--dataset", dataset, *changes, *words, cwd=here, timeout=600,
                **world.environment)  # fmt: skip


def accept(world: World, here: Path) -> None:
    done = call("uotft", "data", "accept", "imagenet", cwd=here, **world.environment)
    assert done.returncode == 0, done.stderr


def test_from_an_empty_folder_to_a_test_accuracy(world: World, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    refused = train(world, here)
    assert refused.returncode == 2, refused.stderr
    assert "uotft data accept imagenet" in refused.stderr
    assert not (here / "uotft-dogs").exists()
    accept(world, here)
    done = train(world, here)
    assert done.returncode == 0, done.stderr
    assert re.search(r"dogs-uot-0: test top-1 \d+\.\d\d %", done.stdout)
    project = here / "uotft-dogs"
    [fetched] = [
        sorted(path.stem for path in (here / "downloads" / "imagenet").glob("n*.tar")),
    ]
    assert len(fetched) == KEPT
    assert set(fetched) <= wordnet.imagenet().keys()
    # of the big tar only an index and the kept classes were read
    name = TRAIN_URL.split("//")[1]
    assert world.server.sent[name] < 0.15 * len(world.server.contents[name])
    [run] = [r for r in runs(here, "dogs") if r.info.status == "FINISHED"]
    assert "test.top1" in str(run.data.metrics) or any("top1" in m for m in run.data.metrics)
    assert (project / "data" / "imagenet.json").is_file()
    again = train(world, here)
    assert again.returncode == 0, again.stderr
    assert "is trained already" in again.stdout
    assert len(runs(here, "dogs")) == 1
    assert mlflow  # the store was read
