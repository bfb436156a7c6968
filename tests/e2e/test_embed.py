"""`uotft embed` as the user starts it, stopped and killed: no orphans, and the bytes of no stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from support.commands import call, users_environment
from support.projects import tiny_params, workspace, write_params
from support.watched_commands import inside, wait
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.records import ImageSet
from uotft.pipeline import embed
from uotft.training import runtime

IMAGES = 2000
WORDS = ("embed", "--dataset", "glyphs", "--num-processes")


@pytest.fixture
def large(fresh: Path) -> tuple[Path, dict[str, bytes]]:
    """A project with seconds of images to embed, and the features that one process makes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (IMAGES, 16, 16), dtype=np.uint8)
    names = tuple(f"{i:02}" for i in range(12))
    images = ImageSet(pixels, np.arange(IMAGES) % 12, np.full(IMAGES, "train"), names)
    params = tiny_params()
    params["embed"] = {"batch_size": 2}
    write_params(fresh, params)
    ws = workspace(fresh)
    storage.write_images(ws.data("glyphs"), images)
    embed.embed(ws, "glyphs", Context(runtime.start(0, 1), progress=lambda batches, label: batches))
    return fresh, made(fresh)


def made(project: Path) -> dict[str, bytes]:
    """The bytes of what embedding wrote, which is removed."""
    folder = workspace(project).features("glyphs")
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return content


def start(project: Path, processes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uotft", *WORDS, str(processes)]
    environment = users_environment()
    return subprocess.Popen(
        command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True
    )


def shards(project: Path) -> int:
    return len([*(project / "unfinished/embeddings/glyphs-images").glob("shard-*.npz")])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_stopped_and_killed_it_ends_in_the_same_bytes(large: tuple[Path, dict[str, bytes]]) -> None:
    project, whole = large

    # SIGTERM: whole shards are kept
    for processes in (1, 2):
        process, before = start(project, processes), shards(project)
        wait(lambda before=before: shards(project) > before)
        process.terminate()
        asked = time.monotonic()
        _, said = process.communicate(timeout=40)
        assert time.monotonic() - asked < 25
        assert process.returncode == 130
        assert "interrupted; the same command goes on with the shards that are there" in said
        assert "Traceback" not in said
        assert not inside(project)

    # SIGKILL of the process that the user started: its worker stops too
    process, before = start(project, 1), shards(project)
    wait(lambda: shards(project) > before)
    process.kill()
    process.communicate(timeout=25)
    wait(lambda: not inside(project), 25)

    # SIGKILL of a worker
    process, before = start(project, 2), shards(project)
    wait(lambda: shards(project) > before)
    os.kill(max(pid for pid in inside(project) if pid != process.pid), signal.SIGKILL)
    process.communicate(timeout=40)
    assert process.returncode == 128 + signal.SIGKILL
    assert not inside(project)
    assert shards(project) < IMAGES / 8
    assert not workspace(project).features("glyphs").exists()

    done = call("uotft", *WORDS, "2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"glyphs: {IMAGES} training images, 8 features\n"
    assert "uotft: resuming" in done.stderr
    assert made(project) == whole
    assert not (project / "unfinished/embeddings/glyphs-images").exists()
