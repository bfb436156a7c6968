"""Fault 13: MLflow's server is down, dies, answers 500, hangs, loses answers, or comes back;
senders are killed at each request.

Expected: a training takes as long and ends as well as without it; `uotft sync` brings every point,
once, into one run.

What a step costs is measured by benchmarks/tracking.py.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from time import monotonic, sleep

import pytest

from support.commands import call
from support.unreliable_proxy import MANNERS, Proxy, proxy, tracking_server
from uotft.core import jsonl, storage
from uotft.tracking import delivery, session, store

PATIENT, IMPATIENT = "60", "1"  # seconds that a request waits for its answer
POINTS = [(step, {"loss/target": 1 / (step + 1), "val/top1": float(step)}) for step in range(300)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real server, for all tests here."""
    with tracking_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def entrance(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy to it, by which alone runs get in. Nobody asks twice; all wait as on a busy day."""
    with proxy(server) as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", PATIENT)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield made
        monkeypatch.undo()


def train(root: Path, name: str, halfway: Callable[[], object] = lambda: None) -> str:
    """A run that another process sends while it logs, as trainings are; its own id."""
    folder = root / "selected"
    storage.write_json(folder / "selection.json", {"classes": ["lion"]})
    with session.run(root, "digits", name, watched=True) as run:
        run.begin({"seed": 7}, {"stage": "train"})
        run.files(folder, "selection")
        for number, point in enumerate(POINTS):
            run.log([point])
            if number == len(POINTS) // 2:
                halfway()
        run.tag({"model.sha256": "abc"})
    return run.id


def must_be_whole(root: Path, ident: str) -> None:
    """One run with the id, with every point once, and all else that was said of it."""
    mlflow = store.connect(root, "digits")
    client = mlflow.MlflowClient()
    wanted = f"tags.`{store.ID}` = '{ident}'"
    [run] = mlflow.search_runs(filter_string=wanted, output_format="list")
    for name in POINTS[0][1]:
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((p.step, p.value) for p in history) == [(s, n[name]) for s, n in POINTS]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7"}
    assert run.data.tags["model.sha256"] == "abc"
    paths = [f.path for f in client.list_artifacts(run.info.run_id, "selection")]
    assert paths == ["selection/selection.json"]
    assert not [*(root / "unsent").iterdir()]


def test_a_store_that_does_not_answer_costs_nothing_that_was_logged(
    tmp_path: Path, entrance: Proxy, trials: Callable[[int, int], int],
    measured: Callable[[str], None], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    manners = MANNERS[: trials(2, len(MANNERS))]
    for manner in manners:
        entrance.manner = manner
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", IMPATIENT)
        start = monotonic()
        ident = train(tmp_path, manner)
        seconds = monotonic() - start
        assert seconds < 60, "a training that has ended waits a moment at most"
        if manner == "slow":  # it takes what it gets
            continue
        [folder] = (tmp_path / "unsent").iterdir()
        assert f"the rest of the run is kept in {folder}: `uotft sync` sends" in (
            capfd.readouterr().err
        )
        # still nothing: it says so, and keeps it
        [(sent, why)] = delivery.sync(tmp_path)
        assert not sent
        assert entrance.address in why
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", PATIENT)
        entrance.manner = "open"
        assert [*delivery.sync(tmp_path)] == [(True, f"{manner}: sent")]
        must_be_whole(tmp_path, ident)
    measured(f"{' '.join(manners)}: {2 * len(POINTS)} points each, none missing, none twice")


@pytest.mark.slow
def test_a_store_that_comes_back_has_all_without_a_word(
    tmp_path: Path, entrance: Proxy, measured: Callable[[str], None]
) -> None:
    """It dies in the middle, without an answer to what it took; and comes back before the end."""

    def die() -> None:
        while not entrance.asked:
            sleep(0.05)
        sleep(1)
        entrance.manner = "lost"
        sleep(2)
        entrance.manner = "open"

    ident = train(tmp_path, "comes-back", die)
    must_be_whole(tmp_path, ident)
    measured("dies in the middle and comes back: all there at the end, nothing twice")


def test_a_sender_that_is_killed_anywhere_leaves_its_work_to_the_next(
    tmp_path: Path, entrance: Proxy, trials: Callable[[int, int], int],
    measured: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """After each of its requests, heard or not: what is sent again makes nothing double."""
    monkeypatch.setattr(delivery, "METRICS", 100)
    monkeypatch.setattr(session, "_sent", lambda *_: nullcontext(()))
    train(tmp_path, "template")
    [template] = (tmp_path / "unsent").iterdir()
    few = [*range(1, 100, trials(6, 1))]
    for kill, number in enumerate(few):
        ident = f"{kill:032}"
        folder = Path(shutil.copytree(template, template.with_name(f"{ident}.1")))
        storage.write_json(
            folder / "run.json", {**storage.read_json(folder / "run.json"), "id": ident}
        )
        entrance.asked, entrance.last = 0, number
        why = delivery.send(tmp_path, folder)
        entrance.last = sys.maxsize
        if not why:  # it needed fewer requests than that
            break
        assert delivery.send(tmp_path, folder) == ""
        shutil.move(template, tmp_path / "aside")
        must_be_whole(tmp_path, ident)
        shutil.move(tmp_path / "aside", template)
    assert not why, "it has been stopped at each of its requests"
    measured(f"{kill} senders stopped at one of {number} requests: nothing twice, nothing missing")


@pytest.mark.slow
def test_a_training_without_its_server_ends_well(
    project: Path, entrance: Proxy, measured: Callable[[str], None]
) -> None:
    entrance.manner = "shut"
    words = ("uotft", "train", "--dataset", "digits", "--seed", "21")
    where = {"MLFLOW_TRACKING_URI": entrance.address}
    done = call(*words, cwd=project, **where)
    assert done.returncode == 0, done.stderr
    assert "trained digits-uot-21: validation top-1" in done.stdout
    assert "Traceback" not in done.stderr
    [folder] = (project / "unsent").iterdir()
    assert f"{folder}: `uotft sync` sends it" in done.stderr
    logged, _ = jsonl.read(folder / "points.jsonl")
    tested = call("uotft", "evaluate", "--dataset", "digits", cwd=project, **where)
    assert tested.returncode == 0, tested.stderr
    assert tested.stdout.count("; `uotft sync` adds it)") == 2

    left = call("uotft", "sync", cwd=project, **where)
    assert left.returncode == 1
    assert "digits-uot-21: MLflow at http://127.0.0.1" in left.stdout
    entrance.manner = "open"
    sent = call("uotft", "sync", cwd=project, **where)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    told = sent.stdout.splitlines()
    assert told[0] == "digits-uot-21: sent"
    assert ["no MLflow run here made these weights; dropped" in line for line in told] == [
        False, True, True,
    ], "seeds 0 and 1 were trained under another store"  # fmt: skip
    assert not [*(project / "unsent").iterdir()]

    mlflow = store.connect(project, "digits")
    [run] = mlflow.search_runs(
        filter_string="attributes.run_name = 'digits-uot-21'", output_format="list"
    )
    expected = [(p["step"], p["numbers"]["loss/target"]) for p in logged if "loss" in str(p)]
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss/target")
    assert sorted((p.step, p.value) for p in history) == expected
    assert run.info.status == "FINISHED"
    assert mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert 0 < run.info.end_time - run.info.start_time < 300_000, "the training's, not the sync's"
    measured("uotft train with its server down: exit code 0, then all of it by uotft sync")
