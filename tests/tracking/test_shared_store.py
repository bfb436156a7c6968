"""Projects that share a tracking store are told apart in it, whatever they call their data."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from support.finished_trials import answers
from support.projects import tiny_params, workspace, write_params
from uotft.core.errors import UserError
from uotft.pipeline import compare
from uotft.pipeline.workspace import Workspace
from uotft.tracking import delivery, model_registry, outbox, reader, session, store


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)


def project(folder: Path, **more: object) -> Workspace:
    """A project with the toy settings, and ``more`` at the top level."""
    folder.mkdir(parents=True)
    write_params(folder, tiny_params() | more)
    return workspace(folder)


def log(home: Path, of: str, strategy: str = "uot", data: str = "data", **more: object) -> str:
    """A tested run of the target birds, of weights that its strategy alone names: MLflow's id."""
    with session.run(home, "birds", f"birds-{strategy}-0", project=of) as run:
        tags = {"model.sha256": strategy, "target": "birds"}
        run.begin({"strategy": strategy, "seed": 0, **more}, tags)
    said = {0: replace(answers(0, 0, 1, 1, 2, 2), data=data)}
    top1 = {"one": 81.0, "two": 82.0}.get(of, 80.0)
    numbers = {"test/top1": top1, "test/mean_per_class": top1}
    assert delivery.log_test(home, "birds", strategy, numbers, said, [[2]], project=of) == ""
    return store.find(store.open_store(home), run.id, of).info.run_id


def test_where_a_project_keeps_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = project(tmp_path / "own")
    assert (own.params.tracking, own.tracking, own.project) == (".", own.root, "")
    beside = project(tmp_path / "beside", tracking="..")
    assert (beside.tracking, beside.project) == (tmp_path, "beside")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    home = project(tmp_path / "home", tracking="~/runs")
    assert (home.tracking, home.project) == (tmp_path / "me/runs", "../../home")
    whole = project(tmp_path / "whole", tracking=str(tmp_path / "own"))
    assert (whole.tracking, whole.project) == (own.root, "../whole")
    (tmp_path / "link").symlink_to(beside.root)
    assert workspace(tmp_path / "link").project == "beside", "as from inside"

    # an experiment of DVC in a copy of the project tracks where the project does
    monkeypatch.setenv("DVC_ROOT", str(beside.root))  # DVC says it in every stage
    assert own.tracking == own.root
    monkeypatch.setenv("DVC_EXP_NAME", "tubby-lamb")
    copy = project(beside.root / ".dvc/tmp/exps/tmp1", tracking="..")
    assert (copy.tracking, copy.project) == (tmp_path, "beside")


def test_the_nearest_store_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos/birds"
    photos.mkdir(parents=True)
    with pytest.raises(UserError, match=r"no project \(params.yaml\) and no tracking store .* run"):
        Workspace.with_store(photos)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert Workspace.with_store(photos) == (photos, None), "nothing need be here"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    (tmp_path / "unsent").mkdir()
    assert Workspace.with_store(photos) == (tmp_path, None)
    ws = project(tmp_path / "uotft-birds", tracking="..")
    assert Workspace.with_store(ws.root) == (tmp_path, ws)
    (ws.root / "data").mkdir()
    assert Workspace.with_store(ws.root / "data") == (tmp_path, ws)


def test_two_projects_with_one_target_and_equal_weights(tmp_path: Path) -> None:
    """Equal settings on equal images make equal weights, as in a copy of a project."""
    runs = {of: log(tmp_path, of) for of in ("one", "two", "")}
    mlflow = store.open_store(tmp_path)
    kept = {of: mlflow.get_run(run).data for of, run in runs.items()}
    assert {of: data.metrics["test/top1"] for of, data in kept.items()} == {
        "one": 81.0, "two": 82.0, "": 80.0
    }  # fmt: skip
    assert [data.tags.get("project") for data in kept.values()] == ["one", "two", None]
    log(tmp_path, "")  # a newer one
    for of in ("one", "two"):
        assert reader.origins(tmp_path, ["birds"], of)["uot"].run == runs[of]
        for how in ({"weights": "uot"}, {"run": "birds-uot-0"}):
            with pytest.raises(UserError, match=runs[of]):  # it has no model, in this test
                model_registry.register(tmp_path, f"m-{of}", "", project=of, **how)
    with pytest.raises(UserError, match="'birds-uot-0', but the store has no such run .* none"):
        model_registry.register(tmp_path, "m", "", run="birds-uot-0", project="three")


def test_a_copy_of_a_project_does_not_go_on_in_the_runs_of_the_original(tmp_path: Path) -> None:
    """With an unfinished training the copy has the id of its run, too."""

    def train(of: str) -> None:
        with session.run(tmp_path, "birds", "a-run", project=of, run_id="id") as run:
            run.begin({"of": of}, {})
            if of == "one":  # meanwhile, in another process
                with ThreadPoolExecutor() as threads:
                    threads.submit(train, "two").result()

    train("one")
    assert not [*(tmp_path / "unsent").glob("*.*")], "neither waits for the other"
    with session.run(tmp_path, "birds", "a-run", project="two", run_id="id") as third:
        third.tag({"again": "yes"})
    mlflow = store.open_store(tmp_path)
    one, two = (store.find(mlflow, "id", of) for of in ("one", "two"))
    assert (one.data.params["of"], two.data.params["of"]) == ("one", "two")
    assert ("again" in one.data.tags, "again" in two.data.tags) == (False, True)


def test_two_processes_make_folders_of_one_id(tmp_path: Path) -> None:
    """Equal weights are tested in two projects at once."""
    everyone = threading.Barrier(8, timeout=30)

    def one(_: int) -> str:
        everyone.wait()
        with outbox.written(tmp_path, {"id": "test-x"}) as folder:
            everyone.wait()
            return folder.name

    for _ in range(5):
        with ThreadPoolExecutor(8) as threads:
            names = [*threads.map(one, range(8))]
        assert len({*names}) == 8


def compared(made: list, by: list[str]) -> dict[str, list[str]]:
    """{target: labels of its rows and what they are compared with} of a comparison."""
    tables, _ = compare.compare_runs(made, by, None, None)
    return {target: [row.strategy for row in rows] for target, rows in tables.items()}


def test_rows_of_two_projects_are_apart(tmp_path: Path) -> None:
    for of in ("one", "two"):
        log(tmp_path, of, "none")
        log(tmp_path, of, "uot", **{"select.top_k": 5})
    log(tmp_path, "two", "uot", **{"select.top_k": 9})
    made, _ = reader.trials(tmp_path, ["birds"], "", {}, project="one")
    with_k = ["uot project=one top_k=5", "uot project=two top_k=5", "uot project=two top_k=9"]
    assert compared(made, []) == {"birds": ["none project=one", "none project=two", *with_k]}
    rows = ["none project=one", "none project=two", "uot project=one", "uot project=two"]
    without = [trial for trial in made if trial.settings.get("select.top_k") != "9"]
    assert [*map(sorted, compared(without, ["seed"]).values())] == [
        sorted(label.replace(" ", " seed=0 ") for label in rows)
    ], "no row has runs of both, whatever --by says"


def test_a_baseline_is_of_the_same_project(tmp_path: Path) -> None:
    log(tmp_path, "one", "none")
    log(tmp_path, "two", "uot")
    log(tmp_path, "one", "uot")
    made, _ = reader.trials(tmp_path, ["birds"], "", {}, project="one")
    tables, _ = compare.compare_runs(made, [], None, None)
    against = {row.strategy: [*row.against] for row in tables["birds"]}
    assert against == {"none project=one": [], "uot project=one": ["none"], "uot project=two": []}


def test_other_images_under_one_name_are_another_target(tmp_path: Path) -> None:
    log(tmp_path, "one", data="ours")
    log(tmp_path, "two", data="theirs")
    log(tmp_path, "", data="ours")

    def targets(of: str | None, here: str = "", experiments: str = "") -> list[str]:
        made, _ = reader.trials(
            tmp_path, ["birds"], experiments, {}, project=of, here=lambda target: here
        )
        return sorted({trial.target for trial in made})

    assert targets("one") == ["birds", "birds (.)", "birds (two)"]
    assert targets(None) == ["birds (.)", "birds (one)", "birds (two)"]
    ours = "tags.project = 'one'"
    assert targets(None, experiments=ours) == ["birds"], "nothing to confuse it with"
    assert targets("three", "other", ours) == ["birds (one)"], "three has birds of its own"
    assert targets("three", "ours", ours) == ["birds"], "the same images"
