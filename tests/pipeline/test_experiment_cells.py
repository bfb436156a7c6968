"""The parts of an experiment: each cell is in one of them, however many rows are the same cell."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.analysis.experiments import Experiment, Variation
from uotft.core import storage
from uotft.pipeline import experiment_cells
from uotft.pipeline.experiment_cells import Column, Plan
from uotft.runs import experiment_runner

ROWS = (
    Variation("none", "none", ("train.objective=plain",)),
    Variation("five", "uot", ("select.top_k=5",)),
    Variation("the same", "uot", ("select.top_k=5",)),  # as in a figure on a small source
    Variation("six", "uot", ("select.top_k=6",)),
)


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 40])
def test_parts_share_no_cell_and_lack_none(tmp_path: Path, parts: int) -> None:
    write_params(tmp_path, tiny_params())
    experiment = Experiment("mine", "", ROWS, "none", name="mine")
    ws, counts = workspace(tmp_path), Counter[str]()
    for part in range(1, parts + 1):
        plan = Plan(experiment, seeds=range(7), part=(part, parts))
        cells = experiment_runner.todo(experiment_cells.columns(ws, plan))
        counts.update(f"{there.variant} {cell}" for there, cell in cells)
    assert len(counts) == 3 * 7
    assert {*counts.values()} == {1}


def test_the_jobs_of_the_array_are_all_parts(tmp_path: Path) -> None:
    """docs/slurm-array.sbatch, with what Slurm would set and a stand-in for its command."""
    script = REPOSITORY / "docs" / "slurm-array.sbatch"
    [jobs] = re.findall(r"(?m)^#SBATCH --array=1-(\d+)$", script.read_text())
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$@" "cores: ${SRUN_CPUS_PER_TASK-}"\n')
    (tmp_path / "srun").chmod(0o755)
    for job in range(1, int(jobs) + 1):
        mine = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(job)}
        mine["SLURM_CPUS_PER_TASK"] = "8"  # which srun does not read
        command = ["bash", str(script), "table4", "--on", "birds"]
        said = subprocess.run(command, env=mine, capture_output=True, text=True, check=True).stdout
        assert said == f"uotft experiment run table4 --on birds --part {job}/{jobs} cores: 8\n"


def test_a_row_of_trainings_that_fell_says_so(fresh: Path) -> None:
    """Also if most of them did: then none lies far below the others."""
    ws = workspace(fresh)
    column = Column(ws, "digits", Variation("all fell", "uot", ()), (0, 1, 2), 1, ())
    for seed, end in enumerate((12.0, 11.0, 90.0)):
        folder = column.folder("models", seed)
        storage.write_json(folder / "model.json", {"classes": [*"0123456789"]})
        steps = [{"step": step, "val/top1": value} for step, value in ((0, 80.0), (9, end))]
        storage.write_csv(folder / "history.csv", steps)
    found = {"digits": {"all fell": dict.fromkeys((0, 1, 2), {})}}
    [line] = experiment_runner.bad_endings([column], found)["digits"]
    start = (
        "all fell: 2 of 3 trainings ended badly, such as seed 0: validation top-1 ended at 12.00 %"
    )
    assert line.startswith(start)
