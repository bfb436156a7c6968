"""Parts of the data by hand, beside a pipeline that has been run, which stays up to date."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from support.commands import answer, call
from support.projects import runs


@pytest.mark.slow
def test_another_subset_beside_the_pipeline(project: Path) -> None:
    words = ("--dataset", "digits", "--strategy", "uot", "--subset", "longtail=10")
    before = call("dvc", "status", cwd=project).stdout
    done = call("uotft", "train", *words, "--seed", "0", cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = [r for r in runs(project) if r.info.run_name == "digits-uot-0-subset.longtail=10"]
    assert run.data.params["subset.longtail"] == "10.0"
    assert run.data.params["source_fraction"] == "1.0"
    done = call("uotft", "evaluate", *words, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(
        (project / "variants/subset.longtail=10/metrics/digits/uot.json").read_text()
    )
    assert list(results) == ["0"]
    assert call("dvc", "status", cwd=project).stdout == before


def test_a_subset_is_listed_and_exported(project: Path, tmp_path: Path) -> None:
    made = tmp_path / "longtail.csv"
    words = ("digits", "--subset", "longtail=10", "--seed", "0", "--output", str(made))
    done = call("uotft", "data", "subset", *words, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    with made.open(newline="") as file:
        labels = [x["label"] for x in csv.DictReader(file) if x["split"] == "train"]
    counts = sorted(labels.count(label) for label in set(labels))
    assert counts[-1] >= 9 * counts[0]

    words = ("--dataset", "digits", "--seed", "1", "--output", str(tmp_path / "out"))
    done = call("uotft", "data", "export", *words, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "classes.txt",
        "part-000000.tar",
    ]


def test_words_that_mean_nothing(project: Path) -> None:
    done = answer("uotft", "train", "--dataset", "digits", "--subset", "half", cwd=project)
    assert done.returncode == 2
    assert "--subset: got 'half'; write shots=N, fraction=SHARE or longtail=" in done.stderr
    assert "Traceback" not in done.stderr
