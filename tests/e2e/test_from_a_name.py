"""`uotft train --dataset dogs` in an empty folder: everything is fetched from a server on the way.

The server is a mirror with all addresses that the command asks, and tiny content in the official
formats. Real processes, real DVC, a real MLflow store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from support.from_a_name import World, accept, mirror, random_weights, train
from support.projects import runs
from uotft.data import wordnet
from uotft.data.class_downloads import TRAIN_URL

KEPT = 5  # classes, by select.top_k of `SHORT`


@pytest.fixture
def world(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with mirror(tmp_path, random_weights(tmp_path_factory)) as made:
        yield made


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
