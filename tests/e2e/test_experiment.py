"""`uotft experiment run` as a user runs it, beside a pipeline that has been run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.commands import answer, call, users_environment
from support.projects import alone, runs, write_params
from uotft.core import storage

RUN = ("uotft", "experiment", "run")
TABLE3 = (*RUN, "table3", "--on", "digits")


@pytest.fixture(scope="module")
def project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own, since others count the runs and the variants of theirs."""
    return alone(project, tmp_path_factory.mktemp("alone"))


def begin(project: Path, *words: str, until: str) -> subprocess.Popen[str]:
    """Start a command and wait for a line; it hears Ctrl-C, which a shell's `&` would ignore."""
    process = subprocess.Popen(
        [sys.executable, "-m", "uotft", *words], cwd=project, env=users_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stderr:
        if until in line:
            break
    return process


def models(project: Path) -> dict[str, int]:
    """When each model of a variant was written."""
    found = project.glob("variants/*/models/digits/*/*/model.json")
    return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in found}


def tails(project: Path) -> list[str]:
    """The runs of the long tail in MLflow, by name."""
    return sorted(r.info.run_name for r in runs(project) if "longtail=10," in r.info.run_name)


@pytest.mark.slow
def test_an_experiment_from_its_estimate_to_its_table(project: Path) -> None:
    status = call("dvc", "status", cwd=project).stdout
    # ---- nothing is made before it is known what it takes
    there = models(project)
    done = call(*TABLE3, "--seeds", "2", "--dry-run", cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "glyphs has 12 classes: K and clusters are 0.012 times the paper's" in done.stdout
    assert "4 cells to train, 576 images at most; time: unknown" in done.stdout
    assert models(project) == there

    # ---- stopped after its first cell, it goes on with the others
    process = begin(project, *TABLE3[1:], "--seeds", "2", "--jobs", "1", until="cell 2 of 4")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "the same command" in said
    # the second cell may have ended meanwhile, or have its model but not yet its run's end
    left = call(*TABLE3, "--seeds", "2", "--dry-run", cwd=project).stdout
    [trained] = [n for n in (1, 2) if f"\n{4 - n} cells to train" in left]
    first = {name: at for name, at in models(project).items() if name not in there}
    assert trained <= len(first) <= 2
    done = call(*TABLE3, "--seeds", "2", cwd=project, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"cell 1 of {4 - trained}" in done.stderr
    after = models(project)
    assert len(after) == len(there) + 4
    kept = first.items() & after.items()
    assert len(kept) >= trained, "what was done is not trained again"
    assert "Table 3: long-tailed targets: digits" in done.stdout
    folder = project / "reports/experiments/table3"
    assert {p.name for p in folder.iterdir()} == {"table.md", "table.csv", "runs.csv",
                                                  "picture.png"}  # fmt: skip
    rows = storage.read_csv(folder / "table.csv")
    assert [(r["variation"], r["seeds"]) for r in rows] == [("Fine-Tune", "2"), ("UOT", "2")]
    assert rows[1]["difference"]
    names = tails(project)
    assert len(set(names)) == 4

    # ---- once more: nothing is trained and the test part is not read
    metrics = [*project.glob("variants/*longtail*/metrics/digits/*.json")]
    before = {path: path.stat().st_mtime_ns for path in metrics}
    done = call(*TABLE3, "--seeds", "2", cwd=project, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cell" not in done.stderr
    assert models(project) == after
    assert {path: path.stat().st_mtime_ns for path in metrics} == before
    assert len(metrics) == 2
    assert tails(project) == names
    assert call("dvc", "status", cwd=project).stdout == status


def test_cells_at_once_and_one_that_fails(project: Path) -> None:
    """UOT cannot converge in one sweep: its cells fail, the others are in the table."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    broken = params | {"selectors": {**params["selectors"], "uot": {"max_iterations": 1}}}
    write_params(project, broken)
    try:
        words = ("half-source", "--on", "digits", "--seeds", "1", "--jobs", "2")
        done = call(*RUN, *words, cwd=project, timeout=600)
    finally:
        write_params(project, params)
    assert done.returncode == 1, done.stderr[-3000:]
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert "raise max_iterations" in failed[0]
    assert "Traceback" not in done.stderr
    folder = project / "reports/experiments/half-source"
    [row] = storage.read_csv(folder / "table.csv")
    assert (row["variation"], row["seeds"], row["images"]) == ("Fine-Tune", "1", "96")
    assert "\n- UOT: 0 of 1 seed; seed 0 failed: " in (folder / "table.md").read_text()
    [line] = storage.read_csv(folder / "runs.csv")
    assert (line["row"], line["strategy"], line["seed"]) == ("Fine-Tune", "none", "0")
    assert line["settings"] == "train.objective=plain"
    assert 0 < float(line["seconds"]) < 300


@pytest.mark.slow
def test_a_stopped_experiment_stops_what_it_has_started(project: Path) -> None:
    words = (*RUN[1:], "table4", "--on", "digits", "--seeds", "1", "--jobs", "2")
    process = begin(project, *words, until="cell 2 of 4")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in said
    for child in children:
        try:
            os.kill(int(child), 0)
        except ProcessLookupError:
            continue
        raise AssertionError(f"{child} is still there")


def test_mistakes(project: Path) -> None:
    (project / "mine.yaml").write_text("baseline: a\nrows: [{label: a, strategy: b}]")
    for words, message in (
        (("run", "table9"), "experiment: got 'table9'; known are beyond, "),
        (("run", "fig3b", "--dry-run"), "its targets cub, caltech have no section"),
        (("run", "table4", "--source-bank", "s.npz"), "s.npz: no such file"),
        (("show", "fig9"), "known are beyond"),
        (("run", "mine.yaml"), "experiment mine: row 'a': strategy: got 'b'; known are all, "),
        (("run", "theirs.yaml", "--dry-run"), "theirs.yaml: no such file"),
        (("run", "fig3b", "--part", "3/2"), "--part: got '3/2'; write I/N"),
        (("run", "fig3b", "--shard", "0/2"), "--part: got '0/2'; write I/N"),
        (("run", "fig3b", "--seeds", "x"), "--seeds: got 'x'; write 8 for 0 to 7"),
        (("run", "half-source", "--on", "digits", "--rows", "u*"), "--rows: got 'u*'; the rows"),
        (
            ("run", "half-source", "--on", "digits", "--set", "train.x=1", "--dry-run"),
            "settings of all rows: --set train.x=1",
        ),
    ):
        done = answer("uotft", "experiment", *words, cwd=project)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
