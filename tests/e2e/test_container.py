"""The container of the Dockerfile, in so far as it can be tried without Docker: its environment, no
rights, and a file system that is read-only but for the project and a folder for what is temporary.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import dockerfile
from support.commands import users_environment
from support.projects import clone

#: PROJECT TEMPORARY COMMAND…: in name spaces of its own.
CAGE = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount --bind "$2" "$2"
for place in $(awk '{print $5}' /proc/self/mountinfo | sort -ru); do
    case "$place" in
        "$1" | "$2" | /proc* | /dev* | /sys*) ;;
        *) mount -o remount,bind,ro "$place" ;;
    esac
done
cd "$1"
shift 2
exec setpriv --bounding-set -all --inh-caps -all --no-new-privs "$@"
"""


def environment(root: Path) -> dict[str, str]:
    """What ENV in the Dockerfile says, of a project in ``root``."""
    found = dockerfile.environment(dockerfile.stages()[-1])
    del found["PATH"]
    return {name: value.replace("/work", str(root)) for name, value in found.items()}


def caged(root: Path, temporary: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in a container's place."""
    kept = {k: v for k, v in users_environment().items() if k in ("PATH", "PYTHONPATH", "LANG")}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", CAGE, "sh", str(root), str(temporary), *command],
        env=kept | environment(root) | {"TMPDIR": str(temporary)},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A project, and a folder for what is temporary, where mounting is allowed."""
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("unshare and setpriv of util-linux are not here")
    root, temporary = tmp_path / "work", tmp_path / "tmp"
    for folder in (root, temporary):
        folder.mkdir()
    tried = caged(root, temporary, "true")
    if tried.returncode:
        pytest.skip(f"nothing may be mounted here: {tried.stderr.strip()}")
    clone(root)
    for folder in (".home/.cache/uotft", ".home/.config"):
        (root / folder).mkdir(parents=True, mode=0o700)
    return root, temporary


@pytest.mark.slow
def test_a_container_with_a_read_only_root(places: tuple[Path, Path]) -> None:
    root, temporary = places
    outside = caged(root, temporary, "touch", str(root.parent / "outside"))
    assert "Read-only file system" in outside.stderr
    done = caged(root, temporary, "dvc", "repro", "pretrain")  # with a training, and its run
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "pretrained/glyphs/model.safetensors").is_file()
    assert (root / "mlflow.db").is_file()
    looked = caged(root, temporary, sys.executable, "-m", "uotft", "doctor")
    assert "ok  torch" in looked.stdout
    for wrong in ("Traceback", "Read-only", "not writable", "Permission"):
        assert wrong not in done.stderr + looked.stderr


@pytest.mark.slow
def test_a_folder_of_the_users_has_no_home_yet(places: tuple[Path, Path]) -> None:
    """A bind mount hides the folders that the image made below /work."""
    root, temporary = places
    shutil.rmtree(root / ".home")
    looked = caged(root, temporary, sys.executable, "-m", "uotft", "doctor")
    done = caged(root, temporary, "dvc", "repro", "prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    for wrong in ("Traceback", "Read-only", "not writable", "Permission"):
        assert wrong not in done.stderr + looked.stderr
