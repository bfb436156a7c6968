"""A project on another machine: cloned, its data pulled by DVC, in another folder."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from support.commands import call
from support.image_folders import pictures, small
from support.projects import runs, write_params


def good(*words: str, cwd: Path) -> str:
    """The output of a command that must succeed."""
    done = call(*words, cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def started(folder: Path) -> Path:
    """A project in git with two small sets of images, which DVC versions."""
    folder.mkdir(parents=True)
    pictures(folder / "old", 4, 8)
    with zipfile.ZipFile(folder / "birds.zip", "w") as archive:
        for path in sorted(pictures(folder / "unzipped", 3, 8, seed=1).rglob("*.png")):
            archive.write(path, path.relative_to(folder / "unzipped"))
    shutil.rmtree(folder / "unzipped")
    good("git", "init", "-q", cwd=folder)
    good("uotft", "init", "--source", "old", "--target", "birds.zip", cwd=folder)
    params = small(yaml.safe_load((folder / "params.yaml").read_text()))
    write_params(folder, params | {"seeds": [0], "strategies": ["uot"]})
    good("dvc", "add", "-q", "old", "birds.zip", cwd=folder)
    good("dvc", "remote", "add", "-q", "-d", "there", str(folder.parent / "remote"), cwd=folder)
    return folder


def cloned(project: Path, folder: Path) -> Path:
    """The project as another machine gets it: from git, and from DVC's remote."""
    for words in (
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *words], cwd=project, check=True)
    good("dvc", "push", "-q", cwd=project)
    folder.parent.mkdir(parents=True)
    subprocess.run(["git", "clone", "-q", project, folder], check=True)
    good("dvc", "pull", "-q", cwd=folder)
    return folder


def plain(path: Path) -> bytes:
    """What a file holds, an npz unpacked."""
    if path.suffix != ".npz":
        return path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.slow
def test_what_was_trained_here_trains_there(tmp_path: Path) -> None:
    project = started(tmp_path / "here/project")
    words = ("uotft", "train", "--dataset", "birds")
    good(*words, cwd=project)
    good("dvc", "repro", cwd=project)
    there = cloned(project, tmp_path / "another disk/a/clone")
    project.rename(tmp_path / "gone")  # that machine is not this one

    assert "is trained already" in good(*words, cwd=there), "the model was pulled too"
    said = good(*words, "--again", cwd=there)
    assert "Running stage" not in said, "all that is upstream was pulled"
    assert [run.info.run_name for run in runs(there, "birds")] == ["birds-uot-0"]
    assert "up to date" in good("dvc", "status", cwd=there)
    lock = yaml.safe_load((there / "dvc.lock").read_text())["stages"]
    made = {out["path"] for stage in lock.values() for out in stage["outs"]}
    files = [p for name in made for p in [there / name, *(there / name).rglob("*")] if p.is_file()]
    assert len(files) > 20
    here = str(tmp_path).encode()
    knowing = [str(path) for path in files if here in plain(path)]
    wide = "".join(str(tmp_path)).encode("utf-32-le")  # as NumPy keeps text
    knowing += [str(path) for path in files if wide in plain(path)]
    assert knowing == [], "a versioned file knows the machine that made it"
