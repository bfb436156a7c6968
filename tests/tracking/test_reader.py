"""Runs of a real MLflow store, logged by hand, become finished trainings or are left out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from support.finished_trials import answers
from uotft.analysis import comparison
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.runs import job
from uotft.tracking import delivery, outbox, reader, session, store


@pytest.fixture(autouse=True)
def _local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def log(
    root: Path,
    strategy: str = "uot",
    seed: int = 0,
    top1: float | None = 80.0,
    experiment: str = "pets",
    **settings: object,
) -> str:
    """One run as `uotft train` and `uotft evaluate` leave it; without ``top1`` not yet tested."""
    model = "-".join(map(str, (strategy, seed, *settings.values())))
    tags = {"model.sha256": model, "target": experiment, "git.commit": "abc", "a": strategy}
    params = {"strategy": strategy, "seed": seed, **settings}
    with session.run(root, experiment, model) as run:
        run.begin(params, tags)
        run.log([(0, {"val/top1": 50.0}), (10, {"val/top1": 70.0})])
        folder = root / "selected"
        kept = [{"rank": 1, "name": "lion", "row": 4, "score": -0.5}]
        storage.write_json(folder / "selection.json", {"classes": kept, "fingerprints": {}})
        storage.write_arrays(folder / "plan.npz", plan=np.ones((1, 3)), kept=np.array([4]))
        run.files(folder, "selection")
    if top1 is not None:
        numbers = {"test/top1": top1, "test/mean_per_class": top1 - 1}
        said = {seed: answers(0, 0, 1, 1, 2, 2)}
        assert delivery.log_test(root, experiment, model, numbers, said, [[2]]) == ""
    return store.find(store.open_store(root), run.id).info.run_id


def test_what_is_there_for_the_page_alone_is_no_setting(tmp_path: Path) -> None:
    shown = {"strategy.classes": "1 class: lion", "strategy.settings.cost_scale": "-"}
    run = log(tmp_path, **shown, **{"train.lambda": 0.3})
    [trial], _ = reader.trials(tmp_path, ["pets"], "", {})
    assert set(trial.settings) == {"strategy", "seed", "train.lambda"}
    tags = store.open_store(tmp_path).get_run(run).data.tags
    assert tags["mlflow.source.name"] == "80.00 % test (uot, seed 0)"


def test_metrics_without_images_of_the_source_come_back(tmp_path: Path) -> None:
    log(tmp_path, top1=None)
    clean = {"clean/top1": 75.0, "clean/mean_per_class": 74.0, "clean/images": 4}
    numbers = {"test/top1": 80.0, "test/mean_per_class": 79.0, **clean}
    said = {0: answers(0, 0, 1, 1, 2, 2)}
    assert delivery.log_test(tmp_path, "pets", "uot-0", numbers, said, [[2]]) == ""
    [trial], _ = reader.trials(tmp_path, ["pets"], "", {})
    assert trial.test["clean"] == {"top1": 75.0, "mean_per_class": 74.0, "images": 4.0}
    note = comparison.overlap_note({"uot": {"0": trial.test}})
    assert note.startswith("2 of 6 test images are also in the source. Mean top-1 with / without")


def test_a_run_comes_back_with_all_that_a_comparison_needs(tmp_path: Path) -> None:
    run = log(tmp_path, **{"train.lambda": 0.3})
    store.open_store(tmp_path).MlflowClient().set_tag(run, "uotft.warning", "it fell")
    [trial], out = reader.trials(tmp_path, ["pets"], "", {})
    assert not out
    assert (trial.target, trial.strategy, trial.seed) == ("pets", "uot", 0)
    assert trial.test == {"top1": 80.0, "mean_per_class": 79.0, "images": 6}
    assert trial.settings["train.lambda"] == "0.3"
    assert trial.curve == {0: 50.0, 10: 70.0}
    assert [c["name"] for c in trial.kept] == ["lion"]
    assert trial.plan_KT.shape == (1, 3)
    assert trial.answers.predicted.tolist() == [0, 0, 1, 1, 2, 2]
    assert trial.answers.names == ("cat", "dog", "cow")
    assert trial.origin.run == run
    assert trial.origin.seconds > 0
    assert trial.origin.versions == {"git.commit": "abc"}
    confusion = store.open_store(tmp_path).artifacts.load_dict(f"runs:/{run}/test/confusion.json")
    assert confusion == {"classes": ["cat", "dog", "cow"], "confusion": [[2]]}
    assert trial.warning == "it fell"


def test_what_cannot_be_compared_is_left_out_and_counted(tmp_path: Path) -> None:
    for seed in range(3):
        log(tmp_path, seed=seed)
    log(tmp_path, "none", top1=None)
    with session.run(tmp_path, "other", "x") as run:
        run.begin({"rate": 1}, {})
    with suppress(ZeroDivisionError), session.run(tmp_path, "pets", "y") as run:
        run.begin({"strategy": "uot", "seed": 7}, {})
        raise ZeroDivisionError
    made, out = reader.trials(tmp_path, [], "", {})
    assert sorted(t.seed for t in made) == [0, 1, 2]
    assert reader.left_out(out) == (
        "1 not finished, 1 not trainings, 1 without test metrics (`uotft evaluate` adds them)"
    )


def test_filter_and_tags_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAGE", 2)  # several pages
    for seed in range(5):
        log(tmp_path, seed=seed)
        log(tmp_path, "none", seed=seed)
    made, out = reader.trials(tmp_path, ["pets"], "params.strategy = 'uot'", {})
    assert (len(made), len(out)) == (5, 0)
    made, out = reader.trials(tmp_path, ["pets"], "", {"a": "none"})
    assert {t.strategy for t in made} == {"none"}
    assert len(made) == 5 == out["with other tags"]


def test_mistakes_are_said_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mlflow\.db is missing, so there are no runs"):
        reader.trials(tmp_path, [], "", {})
    assert not (tmp_path / "mlflow.db").exists(), "looking makes no store"
    log(tmp_path, top1=None)
    with pytest.raises(UserError, match="--experiment: got 'cars'; known are Default, pets"):
        reader.trials(tmp_path, ["cars"], "", {})
    with pytest.raises(UserError, match="--filter: got 'nonsense'"):
        reader.trials(tmp_path, [], "nonsense", {})
    message = r"left out: 1 without test metrics .* has Default \(0 runs\), pets \(1 runs\)"
    with pytest.raises(UserError, match=message):
        reader.trials(tmp_path, ["pets"], "", {})
    log(tmp_path, seed=1)
    with pytest.raises(UserError, match="--by: got 'K'; known are seed, strategy"):
        job.compare_runs([], "", {}, ["K"], None)


def test_runs_of_other_settings_become_a_table_and_a_page(tmp_path: Path) -> None:
    for seed in range(3):
        log(tmp_path, "none", seed, 80.0 + seed, **{"select.top_k": 20})
        for k, gain in ((20, 1.0), (50, 2.0)):
            log(tmp_path, "uot", seed, 80.0 + seed + gain, **{"select.top_k": k})
    log(tmp_path, "uot", 0, 90.0, **{"select.top_k": 50})  # again
    tables, said = job.compare_runs(["pets"], "", {}, [], tmp_path / "out")
    rows = {row.strategy: row for row in tables["pets"]}
    assert [*rows] == ["none", "uot top_k=20", "uot top_k=50"]
    assert rows["uot top_k=20"].against["none"].mean == pytest.approx(1)
    assert rows["uot top_k=50"].against["none"].mean == pytest.approx((10 + 2 + 2) / 3)
    assert said[0] == "10 runs"
    assert "pets: There are 6 test images, so one is worth 16.67 points. " in "\n".join(said)
    assert said[-2:] == [
        "rows are told apart by select.top_k",
        "1 left out: a newer training has the same row and seed",
    ]
    text = (tmp_path / "out/index.html").read_text()
    assert "http" not in text
    assert "Mean over seeds with a 95 % band." in text, "accuracy against K"
    assert not list(tmp_path.glob("*uotft-*")), "downloaded artifacts do not stay"


def test_tests_are_logged_once(tmp_path: Path) -> None:
    run = log(tmp_path)
    client = store.open_store(tmp_path).MlflowClient()
    numbers = {"test/top1": 80.0, "test/mean_per_class": 79.0}
    said = {0: answers(0, 0, 1, 1, 2, 2)}
    assert delivery.log_test(tmp_path, "pets", "uot-0", numbers, said, [[2]]) == ""
    assert len(client.get_metric_history(run, "test/top1")) == 1
    missing = delivery.log_test(tmp_path, "pets", "another", numbers, said, [[2]])
    assert missing == delivery.NO_RUN
    assert not [*(tmp_path / "unsent").iterdir()]


def test_a_test_waits_for_a_run_that_is_being_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process sends it, and may finish at any moment."""
    run = tmp_path / outbox.OUTBOX / "run.1"
    run.mkdir(parents=True)

    def send(home: Path, folder: Path) -> str:
        run.rmdir()
        return delivery.NO_RUN

    monkeypatch.setattr(delivery, "send", send)
    numbers, said = {"test/top1": 80.0}, {0: answers(0, 0, 1, 1, 2, 2)}
    assert delivery.log_test(tmp_path, "pets", "uot-0", numbers, said, [[2]]) == delivery.NO_RUN
    [folder] = outbox.folders(tmp_path)
    assert folder.name == "test-uot-0.1"
