"""Options that a command would ignore are refused, in one line and before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.commands import answer
from uotft.core import storage

BANKS = "experiment run table4 --source-bank s.npz --target-bank t.npz --expect near*"


def refused(words: str, cwd: Path) -> str:
    """What a command says that is refused."""
    done = answer("uotft", *words.split(), cwd=cwd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "--on cub",
        "--seeds 2",
        "--set selectors.uot.metric=l2",
        "--rows UOT-cos",
        "--part 1/2",
        "--validation",
        "--dry-run",
        "--jobs 2",
        "--num-processes 2",
        "--scheduler tcp://here:8786",
    ],
)
def test_recall_from_class_means_has_no_trainings(option: str, tmp_path: Path) -> None:
    said = refused(f"{BANKS} {option}", tmp_path)
    assert "--source-bank goes with --target-bank, --expect, --table, --top-k" in said


def test_a_run_of_trainings_has_its_own_folder_for_the_tables(tmp_path: Path) -> None:
    said = refused("experiment run table4 --output tables", tmp_path)
    assert "--output goes with --source-bank" in said


def test_recall_from_class_means_is_that_of_top_k(tmp_path: Path) -> None:
    """Without --top-k it is the paper's 100 of 1,000 classes, here 3 of 30."""
    rng = np.random.default_rng(0)
    target, far = rng.normal(size=(6, 16)), rng.normal(size=(24, 16))
    names = [f"near {i}" for i in range(6)] + [f"far {i}" for i in range(24)]
    np.savez(tmp_path / "s.npz", means=np.vstack([target, far]), names=names)
    np.savez(tmp_path / "t.npz", means=target)
    for words, kept in (("", 3), ("--top-k 6", 6)):
        done = answer("uotft", *f"{BANKS} --output tables {words}".split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = storage.read_csv(tmp_path / "tables" / "table.csv")
        assert {float(row["kept"]) for row in rows} == {kept}


@pytest.mark.parametrize(
    ("options", "message"),
    [("--all --again", "give --again with --strategy and --seed"), ("--jobs 2", "goes with --all")],
)
def test_one_training_or_all_that_are_missing(options: str, message: str, tmp_path: Path) -> None:
    assert message in refused(f"train --dataset digits {options}", tmp_path)


def test_the_clusters_of_a_project_are_those_of_its_settings(tmp_path: Path) -> None:
    said = refused("units --clusters 100 --seed 0", tmp_path)
    assert "in place of --clusters, --seed, change cluster.clusters, cluster.seed there" in said
