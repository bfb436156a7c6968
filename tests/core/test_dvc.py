"""DVC's locks as the real DVC takes them, and its dvc.lock as it writes it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from support.commands import call, users_environment
from support.dvc_lock import holding
from uotft.core import dvc
from uotft.core.errors import UserError

STAGES = {
    "stages": {
        "make": {
            "cmd": "echo ${train.steps} > made.txt && mkdir folder && touch folder/a",
            "params": ["train.steps"],
            "outs": ["made.txt", "folder"],
        },
        "slow": {"cmd": "sleep 30", "deps": ["made.txt"]},
    }
}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC project whose stage `make` has run."""
    folder = tmp_path_factory.mktemp("reproduced")
    (folder / "params.yaml").write_text("train: {steps: 3}\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump(STAGES))
    for words in (["init", "-q", "--no-scm"], ["repro", "-q", "make"]):
        done = call("dvc", *words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def root(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of it that the test may change."""
    return Path(shutil.copytree(reproduced, tmp_path, dirs_exist_ok=True))


def test_nobody_holds_what_nobody_uses(tmp_path: Path) -> None:
    assert dvc.holder(tmp_path) == ""


def test_the_holder_of_the_lock_is_named_until_it_ends(root: Path) -> None:
    with holding(root) as process:
        assert dvc.holder(root).startswith(f"{process.pid} (")
        assert "zc.lockfile" in dvc.holder(root)
        (root / "inner").mkdir()
        assert dvc.holder(root / "inner") == dvc.holder(root)
    assert dvc.holder(root) == ""


def test_a_stage_that_is_under_way_holds_its_files(root: Path) -> None:
    rwlock = root / ".dvc/tmp/rwlock"
    process = subprocess.Popen(["dvc", "repro", "-q", "slow"], cwd=root, env=users_environment())
    try:
        deadline = time.monotonic() + 60
        while not (rwlock.is_file() and "made.txt" in rwlock.read_text()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        held = dvc.holder(root)
        assert held.startswith(f"{process.pid} (")
        assert "dvc repro -q slow" in held
    finally:
        process.terminate()
        process.wait()
    assert dvc.holder(root) == "", "it is dead, whatever the file says"


def test_what_is_made_is_known_without_dvc(root: Path) -> None:
    assert dvc.unmade(root, ["make"]) == []
    assert dvc.unmade(root, ["make", "slow"]) == ["slow"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("params.yaml", "train: {steps: 4}\n"),
        ("params.yaml", "train: {}\n"),
        ("made.txt", "4\n"),
        ("dvc.lock", "stages: {"),
    ],
)
def test_what_is_not_as_it_was_is_not_made(root: Path, name: str, content: str) -> None:
    (root / name).write_text(content)
    assert dvc.unmade(root, ["make"]) == ["make"]


@pytest.mark.parametrize("name", ["made.txt", "folder/a", "dvc.lock"])
def test_what_is_gone_is_not_made(root: Path, name: str) -> None:
    (root / name).unlink()
    if name == "folder/a":
        (root / "folder").rmdir()
    assert dvc.unmade(root, ["make"]) == ["make"]


def test_a_lock_without_a_stage_tells_of_none(tmp_path: Path) -> None:
    assert dvc.made_stages(tmp_path) == {}
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    assert dvc.made_stages(tmp_path) == {}


def test_settings_that_dvc_would_stop_at_are_named(root: Path) -> None:
    assert dvc.absent_settings(root) == []
    each = {"foreach": [1], "do": {"cmd": "true", "params": ["seeds", "a.${item}"]}}
    users = {"cmd": "true", "params": [{"other.yaml": ["lr"]}]}
    stages = STAGES["stages"] | {"each": each, "users": users}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "params.yaml").write_text("train: 3\nseeds:\n")
    assert dvc.absent_settings(root) == ["train.steps"]
    (root / "params.yaml").write_text("train: {other: 3}\n")
    assert dvc.absent_settings(root) == ["seeds", "train.steps"]
    (root / "dvc.yaml").unlink()
    with pytest.raises(UserError, match=r"dvc\.yaml is missing: copy it from another project"):
        dvc.absent_settings(root)
