"""`dvc repro` on the toy project: what it leaves behind, and what it does not do twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml

import stage_code
from support.commands import call
from support.projects import alone, runs, workspace, write_params
from uotft.core import storage
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.models.inputs import to_input
from uotft.pipeline import readers

CELLS = {f"digits-{strategy}-{seed}" for strategy in ("none", "uot") for seed in (0, 1)}


def test_it_prints_the_table(project: Path) -> None:
    printed = (project / "repro.txt").read_text()
    assert "digits: test accuracy, mean ± 95 % interval" in printed
    assert "Δ none" in printed


def test_git_status_is_clean_but_for_the_lock(project: Path) -> None:
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert {line[3:] for line in changed if line} <= {"dvc.lock", "repro.txt"}


def test_a_second_repro_runs_no_stage(project: Path) -> None:
    done = call("dvc", "repro", cwd=project)
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date." in done.stdout


def test_a_new_seed_and_a_new_strategy_run_their_own_cells(project: Path, tmp_path: Path) -> None:
    copy = alone(project, tmp_path)
    before = {path: path.read_bytes() for path in copy.glob("models/*/*/*/model.safetensors")}
    assert len(before) == len(CELLS)
    (copy / "models/digits/uot/1/model.safetensors").write_bytes(b"damaged")
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["seeds"].append(2)
    params["strategies"] += ["random", "equal_compute"]
    write_params(copy, params)
    done = call("dvc", "repro", "train@digits", cwd=copy)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Running stage 'pretrain'" not in done.stdout
    assert "digits: 3 of 12 cells are trained already" in done.stderr
    new = {f"digits-{name}-{seed}" for name in ("random", "equal_compute") for seed in range(3)}
    made = {run.info.run_name: run.data for run in runs(copy)}
    assert {*made} == {*new, "digits-none-2", "digits-uot-2", "digits-uot-1"}
    batches = {name: made[f"digits-{name}-2"].params for name in ("none", "equal_compute")}
    assert {name: own["strategy"] for name, own in batches.items()} == {n: n for n in batches}
    assert [own["train.target_batch"] for own in batches.values()] == ["8", "16"]
    assert {path: path.read_bytes() for path in before} == before, "one was damaged"


@pytest.mark.slow
def test_one_failed_cell_stops_no_other(project: Path, tmp_path: Path) -> None:
    copy = alone(project, tmp_path)
    shutil.rmtree(copy / "models")
    (copy / "selections/digits/none/0/selection.json").write_text("{")
    done = call(
        "uotft", "train", "--dataset", "digits", "--all", cwd=copy, DVC_STAGE="train@digits"
    )
    assert done.returncode == 2
    assert "digits: 1 of 4 trainings failed\n  digits-none-0: " in done.stderr
    assert "the same command trains these alone" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(runs(copy)) == 3


def test_another_way_to_find_overlap_is_all_that_runs_again(project: Path) -> None:
    """While it finds the same images, nothing after it is stale."""
    code = project / "src/uotft/data/overlap.py"
    before = code.read_text()
    code.write_text(before + "# another way\n")
    done = call("dvc", "status", "--json", cwd=project)
    code.write_text(before)
    # prepare looks for near copies inside a set with it
    assert set(json.loads(done.stdout)) == {"overlap@digits", "prepare@digits", "prepare@glyphs"}
    cells = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    users = {n for n, s in cells.items() if "overlap/digits.json" in [d["path"] for d in s["deps"]]}
    assert users == {"train@digits", "evaluate@digits"}


@pytest.mark.parametrize(
    ("file", "stale", "fresh"),
    [
        pytest.param("models/network.py", {"train@digits"}, set(), id="how heads start"),
        pytest.param("data/pixel_cache.py", {"train@digits"}, set(), id="the pixel cache"),
        pytest.param("selection/ranking.py", {"select@digits"}, {"train@digits"}, id="automatic K"),
        pytest.param(
            "selection/strategies/none.py", {"select@digits"}, {"train@digits"}, id="one strategy",
        ),
        pytest.param(
            "data/datasets/digits.py", {"prepare@digits"},
            {"train@digits", "prepare@glyphs"}, id="one data set",
        ),
    ],
)  # fmt: skip
def test_one_changed_line_of_code_makes_its_stages_stale(
    project: Path, file: str, stale: set[str], fresh: set[str]
) -> None:
    code = project / "src/uotft" / file
    before = code.read_text()
    code.write_text(before + "# another way\n")
    done = call("dvc", "status", "--json", cwd=project)
    code.write_text(before)
    found = set(json.loads(done.stdout))
    assert stale <= found
    assert not fresh & found


def test_new_variants_make_nothing_stale(project: Path) -> None:
    made = [project / f"src/uotft/{package.replace('.', '/')}/brandnew.py"
            for package, name in stage_code.VARIANTS.values() if name]  # fmt: skip
    for path in made:
        path.write_text('"""A new variant."""\n')
    done = call("dvc", "status", "--json", cwd=project)
    for path in made:
        path.unlink()
    assert json.loads(done.stdout) == {}


def test_one_finished_run_a_cell(project: Path) -> None:
    found = runs(project)
    assert sorted(r.info.run_name for r in found) == sorted(CELLS)
    assert {r.info.status for r in found} == {"FINISHED"}
    assert [r.info.run_name for r in runs(project, "glyphs")] == ["pretrain-glyphs"]


def test_a_run_holds_what_a_comparison_needs(project: Path) -> None:
    run = next(r for r in runs(project) if r.info.run_name == "digits-uot-0")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert run.data.params["dataset"] == "digits"
    assert run.data.params["strategy"] == "uot"
    assert run.data.params["train.lambda"] == str(workspace(project).params.train.source_weight)
    assert run.data.params["strategy.settings.cost_scale"] == "0.01"
    assert run.data.tags["git.commit"] == commit
    assert run.data.tags["overlap.found"] == run.data.tags["overlap.excluded"] == "0"
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for stage in ("prepare@glyphs", "prepare@digits"):
        for out in lock[stage]["outs"]:
            assert run.data.tags[f"dvc.{out['path']}"] == out["md5"]
    read = {i.dataset.name: i for i in run.inputs.dataset_inputs}
    assert {name: i.tags[0].value for name, i in read.items()} == {
        "digits": "target", "glyphs": "source"}  # fmt: skip
    assert read["digits"].dataset.digest == run.data.tags["dvc.data/digits.npz"]
    client = mlflow.MlflowClient()
    losses = client.get_metric_history(run.info.run_id, "loss/source")
    assert [point.step for point in losses] == [0, 4, 8]
    assert {"loss/target", "learning_rate", "val/top1", "val/mean_per_class"} <= set(
        run.data.metrics
    )
    tested = storage.read_json(project / "metrics/digits/uot.json")["0"]
    assert run.data.metrics["test/top1"] == tested["top1"]
    assert run.data.metrics["test/mean_per_class"] == tested["mean_per_class"]
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"selected_classes.json", "selection", "test"} <= names
    inside = {a.path for a in client.list_artifacts(run.info.run_id, "test")}
    assert inside == {"test/confusion.json", "test/predictions.npz"}
    inside = {a.path for a in client.list_artifacts(run.info.run_id, "selection")}
    assert {"selection/plan.png", "selection/selection.json"} <= inside
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/selected_classes.json")
    assert table["columns"] == ["rank", "name", "score"]
    assert [row[0] for row in table["data"]] == [1, 2, 3, 4, 5]
    assert f"| 1 | {table['data'][0][1]} |" in run.data.tags["mlflow.note.content"]
    named = {name for name in run.data.params if "class" in name}
    assert named == {"select.max_per_class", "strategy.classes"}, "the list is never a parameter"
    assert run.data.params["strategy.classes"].startswith(f"5 classes: {table['data'][0][1]}, ")
    top1 = run.data.metrics["test/top1"]
    source = f"{top1:.2f} % test (uot, seed {run.data.params['seed']})"
    assert run.data.tags["mlflow.source.name"] == source
    none = next(r for r in runs(project) if r.info.run_name == "digits-none-0")
    assert none.data.params["strategy.settings.cost_scale"] == "-", "no false number on an axis"


def test_the_model_loads_and_predicts_as_the_weights_do(project: Path) -> None:
    run = next(r for r in runs(project) if r.info.run_name == "digits-uot-1")
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert model.metadata.signature is not None
    ws = workspace(project)
    images = readers.images(ws, "digits").images[:9]
    answer = model.predict(images)
    network, facts = model_io.read(ws.cell("models", Cell("digits", "uot", 1)))
    import torch

    with torch.no_grad():
        expected = network(to_input(torch.as_tensor(images)))["target"].softmax(1).numpy()
    assert answer["label"].tolist() == [facts["classes"][i] for i in expected.argmax(1)]
    assert np.allclose(answer["probability"], expected.max(1), atol=1e-6)


def test_the_report(project: Path) -> None:
    reports = project / "reports"
    table = (reports / "comparison.md").read_text()
    summary = json.loads((reports / "summary.json").read_text())["digits"]
    for strategy in ("none", "uot"):
        tested = storage.read_json(project / f"metrics/digits/{strategy}.json")
        mean = np.mean([m["top1"] for m in tested.values()])
        assert summary[strategy]["top1"] == pytest.approx(mean, abs=1e-3)
        own = json.loads((reports / f"metrics/digits/{strategy}.json").read_text())
        assert own == summary[strategy], "a file each, so that dvc metrics show prints a row each"
        assert f"| {strategy} | 2 |" in table
    assert "minus_none" in summary["uot"]
    page = (reports / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert "forecast δ²" in table
    assert "Did the forecast predict the gain?" in page
    assert "http" not in page, "it opens without a network"
    assert len(list((reports / "pictures").glob("*.png"))) == 4
    [run] = runs(project, "reports")
    artifacts = {a.path for a in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"index.html", "comparison.md", "pictures"} <= artifacts


def test_the_runs_alone_make_the_same_table(project: Path) -> None:
    done = call("uotft", "compare", "--experiment", "digits", "--output", "shown", cwd=project)
    assert "4 runs" in done.stdout, done.stderr
    table = (project / "reports/comparison.md").read_text()
    lines = (project / "shown/table.md").read_text().splitlines()
    assert [line for line in lines if line.startswith(("| none", "| uot"))] == [
        line for line in table.splitlines() if line.startswith(("| none", "| uot"))
    ][: 2 * 2]
    page = (project / "shown/index.html").read_text()
    assert page.count("data:image/png;base64,") == 6, "all but the forecast's"
    assert "4 of 4 models have a run in this MLflow store." in page
    shutil.rmtree(project / "shown")


def test_dvc_shows_metrics_plots_and_parameters(project: Path) -> None:
    shown = call("dvc", "metrics", "show", cwd=project).stdout.splitlines()
    assert "top1" in shown[0]
    assert any("digits/uot.json" in line for line in shown), "one row a strategy"
    assert max(map(len, shown)) < 200
    plots = call("dvc", "plots", "show", "--out", "shown", cwd=project)
    page = project / "shown" / "index.html"
    assert page.is_file(), plots.stderr
    assert "comparison-digits.png" in page.read_text()
    shutil.rmtree(project / "shown")
    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(before.replace("lambda: ", "lambda: 1"))
    difference = call("dvc", "params", "diff", cwd=project).stdout
    (project / "params.yaml").write_text(before)
    assert "train.lambda" in difference


def test_the_store_is_where_a_bare_mlflow_ui_looks(project: Path) -> None:
    with sqlite3.connect(project / "mlflow.db") as store_:
        places = [row[0] for row in store_.execute("select artifact_uri from runs")]
    store_.close()
    assert all(str(project / "mlruns") in place for place in places)
    assert not (project / "mlruns" / "0" / "meta.yaml").exists()
