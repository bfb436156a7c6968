"""Fault 10: a loss that is NaN or infinite at one step on one rank, 1 and 2 processes; empty masks
of pseudo-labels.

Expected: all ranks stop within that step, which the optimiser never takes; the last checkpoint
stays and goes on to the bytes of an undisturbed training; the run is FAILED and names the rows of
the batch; an empty mask gives a loss of 0.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.commands import call
from support.projects import runs, tiny_params, workspace, write_params
from support.watched_commands import MADE, WORDS, change, inside, left, statuses
from uotft.pipeline import readers
from uotft.training import checkpoints
from uotft.training.objectives import pseudo_label

Count = Callable[[int, int], int]
STEPS = 24
SPOIL = """\
import os, sys
if "uotft.runs.worker" in sys.orig_argv:
    from uotft.training.objectives import joint
    terms, calls = joint.terms, []
    at, value = int(os.environ["TEST_STEP"]), float(os.environ["TEST_VALUE"])
    def spoiled(*words, **more):
        calls.append(1)
        made = terms(*words, **more)
        if len(calls) - 1 == at and os.environ.get("RANK", "0") == os.environ["TEST_RANK"]:
            made["source"] = made["source"][0] * value, made["source"][1]
        return made
    joint.terms = spoiled
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_all_ranks_stop_within_the_step(
    cell: Path, world: int, trials: Count, measured: Callable[[str], None]
) -> None:
    if world == 1 and not trials(0, 1):
        pytest.skip("two ranks agree as one does; make faults does both")
    change(cell, steps=STEPS, log_every=1, checkpoint_every=5)
    many = ("--num-processes", str(world))
    done = call("uotft", *WORDS, *many, cwd=cell, DVC_STAGE="train")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = cell / "models/digits/uot/0"
    whole = [(folder / name).read_bytes() for name in MADE]
    source = set(readers.images(workspace(cell), "glyphs").rows("train").tolist())
    target = set(readers.images(workspace(cell), "digits").rows("train").tolist())
    (cell / "site").mkdir()
    (cell / "site/sitecustomize.py").write_text(SPOIL)
    path = os.pathsep.join([str(cell / "site"), os.environ.get("PYTHONPATH", "")])
    cases = [(7, "nan"), (0, "inf"), (5, "nan"), (12, "-inf"), (23, "nan")]
    cases = cases[: trials(1, len(cases))]
    for step, value in cases:
        for name in MADE:
            (folder / name).unlink(missing_ok=True)
        spoil = {"TEST_STEP": str(step), "TEST_VALUE": value, "TEST_RANK": str(world - 1)}
        done = call("uotft", *WORDS, *many, cwd=cell, DVC_STAGE="train", PYTHONPATH=path, **spoil)
        assert done.returncode == 2, done.stderr[-3000:]
        said = f"uotft: step {step}: the loss source is not finite, on the batch with target rows ["
        assert done.stderr.count(said) == 1, "said once, by whatever number of ranks"
        assert "Traceback" not in done.stderr
        rows = re.search(r"target rows \[(.*)\]; source rows \[(.*)\];", done.stderr)
        for found, known in zip(rows.groups(), (target, source), strict=True):
            named = [int(row) for row in found.split(",")]
            assert len(named) == 8, "a row twice where an epoch ends in the batch"
            assert {*named} <= known, "rows of data/NAME.npz"
        assert not inside(cell)
        assert not (folder / "model.json").exists()
        newest = checkpoints.newest(left(cell))
        assert (newest[1]["step"] if newest else 0) == step - step % 5
        [run] = [r for r in runs(cell) if r.info.status == "FAILED"]
        assert rows[0] in run.data.tags["failure"]
        history = {m.step for m in metrics(run.info.run_id)}
        assert max(history, default=-1) == step - 1, "the step is not taken"
        done = call("uotft", *WORDS, *many, cwd=cell, DVC_STAGE="train")
        assert done.returncode == 0, done.stderr[-3000:]
        assert [(folder / name).read_bytes() for name in MADE] == whole
        assert "FAILED" not in statuses(cell), "the same run went on"
    measured(f"world {world}: {len(cases)}/{len(cases)} stopped in their step, run FAILED with the "
             "rows; go on to the same bytes")  # fmt: skip


def metrics(run_id: str) -> list:
    import mlflow

    return mlflow.MlflowClient().get_metric_history(run_id, "loss/target")


def test_a_learning_rate_far_too_high_fails_the_run(cell: Path) -> None:
    params = tiny_params()
    params["train"]["recipe"] |= {"learning_rate": 1.0e18, "eval_every": 0}
    write_params(cell, params)
    words = ("train", "--dataset", "digits", "--strategy", "none", "--seed", "0")
    done = call("uotft", "select", *words[1:], cwd=cell)
    assert done.returncode == 0, done.stderr
    done = call("uotft", *words, cwd=cell, DVC_STAGE="train")
    assert done.returncode == 2
    assert "the loss target is not finite, on the batch with target rows [" in done.stderr
    [run] = [r for r in runs(cell) if r.info.run_name == "digits-none-0"]
    assert run.info.status == "FAILED"
    assert not (cell / "models/digits/none/0").exists()


# the weak view of the first image is sure (0.9, 0.1), that of the second undecided (0.5, 0.5)
WEAK = torch.tensor([[math.log(9.0), 0.0], [1.0, 1.0]])
STRONG = torch.tensor([[0.0, 2.0], [3.0, 0.0]])


def test_an_empty_mask_gives_no_loss_and_no_nan() -> None:
    outputs = {"target": torch.zeros(1, 2), "weak": WEAK, "strong": STRONG.clone()}
    outputs["strong"].requires_grad_()
    settings = pseudo_label.Settings(threshold=0.99)
    loss, _ = pseudo_label.terms(outputs, {"target": torch.tensor([0])}, 1.0, settings)["source"]
    loss.backward()
    assert loss == 0
    assert torch.equal(outputs["strong"].grad, torch.zeros(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_training_whose_masks_are_all_empty_ends_well(
    cell: Path, world: int, trials: Count, measured: Callable[[str], None]
) -> None:
    """No source image is ever sure enough: every loss of theirs is 0, on all ranks."""
    if world == 1 and not trials(0, 1):
        pytest.skip("two ranks agree as one does; make faults does both")
    params = tiny_params()
    params["train"] |= {"objective": "pseudo_label"}
    params["objectives"] |= {"pseudo_label": {"threshold": 1.0}}
    params["train"]["recipe"] |= {"log_every": 1}
    write_params(cell, params)
    done = call(
        "uotft", *WORDS, "--num-processes", str(world), cwd=cell, DVC_STAGE="train"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = runs(cell)
    import mlflow

    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss/source")
    assert [point.value for point in history] == [0.0] * params["train"]["recipe"]["steps"]
    measured(f"world {world}: {len(history)} empty masks, {len(history)} losses of 0")
