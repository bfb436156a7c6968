"""A user's own two folders of images, outside a clone: init, train, repro, one changed image."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from support.commands import call
from support.image_folders import pictures, small
from support.projects import runs, write_params
from uotft.core import storage

WORDS = ("uotft", "train", "--dataset", "birds", "--source", "old")


@pytest.mark.slow
def test_two_folders_become_a_project_that_dvc_knows(tmp_path: Path) -> None:
    pictures(tmp_path / "old", 5, 12)
    birds = pictures(tmp_path / "birds", 3, 12, seed=1)
    wrong = call(*WORDS, "--strategy", "uto", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "got 'uto'; known are" in wrong.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds", "old"]

    # what `uotft train` makes by itself, with settings that are small enough for a test
    project = tmp_path / "uotft-birds"
    project.mkdir()
    done = call("uotft", "init", "--source", "../old", "--target", "../birds", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "next: uotft train --dataset birds" in done.stdout
    params = small(yaml.safe_load((project / "params.yaml").read_text()))
    write_params(project, params | {"seeds": [0]})

    done = call(*WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"in {project}, with the settings of its params.yaml" in done.stderr
    assert "trained birds-uot-0: validation top-1" in done.stdout
    assert "model: uotft-birds/models/birds/uot/0\nnext, after cd uotft-birds:" in done.stdout
    assert "birds-uot-0: test top-1 " in done.stdout
    tested = storage.read_json(project / "metrics/birds/uot.json")
    done = call(*WORDS, cwd=tmp_path)
    assert "\nbirds-uot-0 is trained already" in done.stdout
    assert [run.info.run_name for run in runs(project, "birds")] == ["birds-uot-0"]

    done = call("dvc", "repro", "evaluate@birds", cwd=project)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "uotft: birds: 1 of 2 cells are trained already" in done.stderr
    assert "uotft: cell 1 of 1: birds-none-0" in done.stderr, "that of uotft train stays"
    assert "Running stage 'prepare@birds'" not in done.stdout, "uotft train has made it"
    assert storage.read_json(project / "metrics/birds/uot.json") == tested
    assert tested["0"]["images"] == 6

    Image.new("RGB", (20, 20)).save(birds / "class 0" / "0.png")
    stale = call("dvc", "status", "prepare@birds", "prepare@old", cwd=project).stdout
    assert "prepare@birds" in stale
    assert "prepare@old" not in stale
