"""Fixtures that all tests share: small projects, made once by the real stages."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support.commands import call
from support.projects import clone, copied, tiny_params, workspace, write_params
from support.shared import once
from support.stages import find_overlap, up_to_units
from uotft.core import messages
from uotft.core.records import Cell

# A shell starts background commands with Ctrl-C ignored, and all their children inherit that; the
# tests send Ctrl-C to commands that a user would have started in the foreground.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "CI" not in os.environ:  # where Hypothesis has a profile of its own, without a deadline too
    hypothesis.settings.register_profile("here", deadline=None)
    hypothesis.settings.load_profile("here")

#: Folders with the long files, which begin first: otherwise the last one leaves a core idle.
LONG = ("e2e", "faults")


@pytest.hookimpl(trylast=True)  # without those of the other half
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; one makes `project`, while the other process does what needs none."""
    users = {item.path for item in items if "project" in getattr(item, "fixturenames", ())}
    first = next((item.path for item in items if item.path in users), None)

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        return item.path != first, item.path.parent.name not in LONG, item.path in users

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _messages() -> None:
    """Messages go to standard error, as the command line has it."""
    messages.setup("INFO")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the settings of the user who runs it, nor asks a mirror of theirs."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("UOTFT_MIRROR", None)


@pytest.fixture(autouse=True)
def _no_store_is_left() -> Iterator[None]:
    """MLflow's client keeps the store it was last shown in the environment, also if it is gone."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny params.yaml and everything up to the embeddings, made in this process.

    Copy it before writing into it (`fresh`): all tests share it.
    """

    def make(root: Path) -> None:
        write_params(root, tiny_params())
        up_to_units(root)
        find_overlap(root)

    made = once(tmp_path_factory, "tiny", make)
    before = {*made.rglob("*")}
    yield made
    assert not {*made.rglob("*")} ^ before, "a test has written into what all tests share"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone on which a user has run `dvc repro` once: git, DVC, MLflow, real processes.

    It has two strategies and two seeds. Each of pytest's processes has its own copy.
    """
    made = once(tmp_path_factory, "project", _reproduced)
    return copied(made, tmp_path_factory.mktemp("project"))


def _reproduced(folder: Path) -> None:
    done = call("dvc", "repro", cwd=clone(folder), timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "repro.txt").write_text(done.stdout)


@pytest.fixture
def fresh(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny workspace that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "project"))


@pytest.fixture
def trainable(fresh: Path) -> Path:
    """A tiny workspace with a selection to train on (tests/support/tiny_training.py)."""
    from support import tiny_training
    from uotft.pipeline import select

    tiny_training.change(fresh)
    select.select(workspace(fresh), Cell(*tiny_training.CELL))
    return fresh
