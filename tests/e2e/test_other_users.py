"""Users who share a project, and a user id without a name and a home, as in a container."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.image_folders import pictures, small
from support.projects import runs, write_params
from support.repository import REPOSITORY

GROUP = 52347
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root"),
    pytest.mark.slow,
]


def interpreter() -> str:
    """A Python that other users may run: this one, or the system's of the same version."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            words = [python, "-c", "import ctypes, sqlite3, lzma, bz2"]
            subprocess.run(words, check=True, user=52345, group=52345, capture_output=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no Python that another user may run")


def as_user(
    number: int, *words: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a module of Python as the user ``number``, in the common group, with umask 002."""
    path = [str(REPOSITORY / "src"), sysconfig.get_paths()["purelib"]]
    commands = next(folder / "bin" for folder in (cwd, *cwd.parents) if (folder / "bin").is_dir())
    env = {"PATH": f"{commands}:/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(path), **environment}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120", "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        [interpreter(), "-m", *words],
        cwd=cwd, env=env, user=number, group=number, extra_groups=[GROUP], umask=0o002,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users reach; pytest's own is closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="uotft-test-"))
    folder.chmod(0o755)
    (folder / "bin").mkdir()
    command = folder / "bin/uotft"  # what DVC runs
    command.write_text(f'#!/bin/sh\nexec {interpreter()} -m uotft "$@"\n')
    command.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def shared(place: Path, owner: int) -> Path:
    """An empty folder for the project, which the group shares, beside images."""
    pictures(place / "old", 4, 8)
    pictures(place / "birds", 3, 8, seed=1)
    project = place / "project"
    project.mkdir()
    os.chown(project, owner, GROUP)
    project.chmod(0o2775)
    return project


def started(project: Path, owner: int, **environment: str) -> None:
    words = ["uotft", "init", "--source", "../old", "--target", "../birds"]
    done = as_user(owner, *words, cwd=project, **environment)
    assert done.returncode == 0, done.stderr
    params = small(yaml.safe_load((project / "params.yaml").read_text()))
    write_params(project, params | {"seeds": [0, 1], "strategies": ["uot"]})


def test_two_users_of_a_group_work_on_one_project(place: Path) -> None:
    project, homes = shared(place, 52345), {}
    for number in (52345, 52346):
        home = place / str(number)
        home.mkdir(mode=0o700)
        os.chown(home, number, number)
        homes[number] = {"HOME": str(home), "USER": f"user-{number}"}  # bare dvc needs a name
    started(project, 52345, **homes[52345])
    for seed, number in enumerate(homes):
        words = ["uotft", "train", "--dataset", "birds", "--seed", str(seed)]
        done = as_user(number, *words, cwd=project, **homes[number])
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        assert "uotft sync" not in done.stderr, done.stderr
    assert {r.info.run_name for r in runs(project, "birds")} == {"birds-uot-0", "birds-uot-1"}
    # typed by hand: DVC's indexes lie where all of the group, and nobody else, can write
    for number, home in homes.items():
        done = as_user(number, "dvc", "status", "prepare@birds", cwd=project, **home)
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stdout
    assert not [
        h for h in homes if str(place / str(h)) in (project / ".dvc/config.local").read_text()
    ]
    own = project / ".dvc/tmp/uotft"
    assert stat.S_IMODE(own.stat().st_mode) & 0o777 == 0o770
    closed = [
        str(path.relative_to(project)) for path in project.rglob("*")
        if path.is_dir() and not path.stat().st_mode & 0o020 and own not in path.parents
    ]  # fmt: skip
    assert closed == [], "folders that the second user cannot write"


def test_a_user_id_without_a_name_and_a_home(place: Path) -> None:
    project, words = shared(place, 52999), ("uotft", "train", "--dataset", "birds")
    for number, home in enumerate(("", "/", "/nonexistent")):
        temporary = place / f"tmp-{number}"
        temporary.mkdir()
        temporary.chmod(0o1777)
        environment = {"TMPDIR": str(temporary)} | ({"HOME": home} if home else {})
        done = as_user(52999, "uotft", "--help", cwd=project, **environment)
        assert done.returncode == 0, done.stderr
        if not number:  # the others need none of the stages before the training
            started(project, 52999, **environment)
        done = as_user(52999, *words, "--again", cwd=project, **environment)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        users = [run.data.tags["mlflow.user"] for run in runs(project, "birds")]
        assert users == ["user-52999"] * (number + 1)
        own = temporary / "uotft-52999"
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert own.stat().st_uid == 52999


def test_a_folder_that_another_user_has_made_is_not_used(place: Path) -> None:
    place.chmod(0o1777)  # Python takes /tmp in the place of a TMPDIR that it cannot write
    (place / "uotft-52999").mkdir()
    (place / "uotft-52999").chmod(0o777)
    done = as_user(52999, "uotft", "--help", cwd=place, TMPDIR=str(place))
    assert done.returncode == 2
    assert f"{place}/uotft-52999: another user has made it: remove it, or set TMPDIR" in done.stderr
