"""Which store counts, what a run says in words, and one that goes on, in a real store."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread, Timer
from time import monotonic, sleep

import pytest

from support.child_processes import at_call, fork, killed
from support.commands import call
from support.projects import tiny_params, write_params
from support.watched_commands import wait
from uotft.core import jsonl, locks, removal, storage
from uotft.core.errors import Interrupted, Pruned, UserError
from uotft.core.records import Cell
from uotft.runs import study
from uotft.tracking import delivery, notes, outbox, server, session, store


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "sqlite:////project/mlflow.db"),
        ("sqlite:///runs.db", "sqlite:////project/runs.db"),
        ("sqlite:////elsewhere/runs.db", "sqlite:////elsewhere/runs.db"),
        ("http://tracker:5000", "http://tracker:5000"),
    ],
)
def test_the_store(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.store_uri(Path("/project")) == expected


def test_no_message_tells_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as error:
        store.open_store(tmp_path)
    with session.run(tmp_path, "digits", "a-run") as run:
        run.begin({}, {})
    [(_, why)] = delivery.sync(tmp_path)
    with pytest.raises(UserError) as refused:
        server.serve(tmp_path, "127.0.0.1", 0, print)
    for said in (str(error.value), why, capsys.readouterr().err, str(refused.value)):
        assert "https://me:…@127.0.0.1:9" in said
        assert "s3cret" not in said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://me:s3cret@db:1/a", "postgresql://me:…@db:1/a"),
        ("postgresql://me:s3/c@r et@db:1/a", "postgresql://me:…@db:1/a"),
        ("postgresql://me:s3?cret@db:1/a", "postgresql://me:…@db:1/a"),
        ("postgresql://me@corp:s3cret@db/a?n=a@b", "postgresql://me@corp:…@db/a?n=a@b"),
        ("postgresql://db/a?user=me&password=s3@cr/et", "postgresql://db/a?user=me&password=…"),
        ("mysql://db:1/a?passwd=s3cret&n=1", "mysql://db:1/a?passwd=…&n=1"),
        ("postgresql://me@db:1/a", "postgresql://me@db:1/a"),
        ("http://tracker:5000/a", "http://tracker:5000/a"),
        ("sqlite:////a:b@c/runs.db", "sqlite:////a:b@c/runs.db"),
        ("file:///a:b@c/mlruns", "file:///a:b@c/mlruns"),
    ],
)
def test_an_address_without_its_password(given: str, expected: str) -> None:
    """SQLAlchemy takes such signs in a password, and it in the query, too."""
    assert store.shown(Path("/project"), given) == expected


def test_words_after_an_address_stay() -> None:
    error = ValueError("http://tracker:5000 and https://me:s3cret@tracker:1 refuse me@here")
    assert store.brief(error) == "http://tracker:5000 and https://me:…@tracker:1 refuse me@here"


@pytest.mark.parametrize("name", ["why?", "a#b", "50% & more", "%41", "täglich 1"])
def test_a_run_is_kept_in_any_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy ends a path at ? and decodes %41; the database must be in the project."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    root = tmp_path / "around" / name
    root.mkdir(parents=True)
    write_params(root, tiny_params())
    with session.run(root, "digits", "one") as run:
        run.begin({"a": "b"}, {})
        run.log([(1, {"loss": 0.5})])
    assert store.is_there(root)
    assert (root / "mlflow.db").stat().st_size > 0
    assert [path.name for path in root.parent.iterdir()] == [name], "nothing beside it"
    mlflow = store.open_store(root)
    [found] = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert found.data.metrics == {"loss": 0.5}
    assert store.store_uri(root, store.store_uri(root)) == store.store_uri(root)


def test_a_database_that_a_killed_process_left_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.ddl.impl import DefaultImpl

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    at_the_third = at_call(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    make = DefaultImpl.create_table

    def create_table(*arguments: object, **named: object) -> None:
        make(*arguments, **named)
        at_the_third()

    def work() -> None:
        monkeypatch.setattr(DefaultImpl, "create_table", create_table)
        store.make_store(tmp_path)

    assert killed(fork(work))
    with session.run(tmp_path, "digits", "one") as run:
        run.begin({"a": "b"}, {})
    mlflow = store.open_store(tmp_path)
    [found] = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert found.info.status == "FINISHED"
    assert not [*tmp_path.glob(".mlflow.db*")]


def test_a_search_is_kept_in_any_folder(tmp_path: Path) -> None:
    file = tmp_path / "50% why?" / "trials.db"
    axis = study.config.space({"train.lambda": {"choices": [0.1, 1.0]}}, "a test")
    study.Study(file, axis, {"train.lambda": 0.1}, tpe=False)
    assert file.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [file.parent.name]


def test_an_experiment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert not [tag for tag in store.versions(tmp_path) if tag.startswith("dvc.exp")]
    monkeypatch.setenv("DVC_EXP_NAME", "tubby-lamb")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123abc")
    tags = store.versions(tmp_path)
    assert tags["dvc.exp.name"] == "tubby-lamb"
    assert tags["dvc.exp.baseline"] == "0123abc"


def test_a_note_shows_the_best_classes_in_a_small_table() -> None:
    names = ["a|b", "two\nlines", *map(str, range(20))]
    classes = [{"rank": i + 1, "name": n, "score": 1 / (i + 1)} for i, n in enumerate(names)]
    lines = notes.kept(
        Cell("new", "uot", 3), "old", {"classes": classes, "scores": [0] * 50}
    ).split("\n")
    assert lines[0] == "**uot** keeps 22 of 50 of *old* for *new*, seed 3."
    assert lines[4:6] == ["| 1 | a\\|b | 1 |", "| 2 | two lines | 0.5 |"]
    assert lines[-3].startswith(f"| {notes.MOST} |")
    assert lines[-1] == f"The first {notes.MOST}; `selected_classes.json` has all."
    none = notes.kept(Cell("new", "none", 3), "old", {"classes": [], "scores": [0] * 50})
    assert none == "**none** keeps 0 of 50 of *old* for *new*, seed 3."


def test_processes_take_turns(tmp_path: Path) -> None:
    lock, held, release = tmp_path / ".mlflow.lock", Event(), Event()

    def hold() -> None:
        with locks.exclusive(lock, "busy"):
            held.set()
            release.wait(30)

    owner = Thread(target=hold)
    owner.start()
    assert held.wait(30)
    named = rf"still busy after 0 s: process {os.getpid()} on .*\.mlflow\.lock"
    with pytest.raises(UserError, match=named), locks.waiting(lock, 0):
        pass
    Timer(0.5, release.set).start()
    with locks.waiting(lock, 30):
        assert release.is_set()
    owner.join()
    assert not lock.exists()


def test_a_run_goes_on_with_each_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = [{"rank": 1, "name": "a"}]

    def go(points: list, run_id: str = "", steps: int = 3) -> str:
        with session.run(tmp_path, "digits", "a-run", run_id=run_id) as run:
            run.begin({"steps": steps}, {"stage": "train"})
            run.table(rows, ("rank", "name"), "classes.json")
            run.log(points)
            if len(points) == 1:
                raise KeyboardInterrupt
            return run.id

    with pytest.raises(KeyboardInterrupt):
        go([(0, {"loss": 2.0})])
    mlflow = store.connect(tmp_path, "digits")
    client = mlflow.MlflowClient()
    [first] = mlflow.search_runs(output_format="list")
    assert first.info.status == "KILLED"

    # a setting that decides no weights may have changed, and a GPU may round otherwise
    ours = first.data.tags[store.ID]
    assert go([(0, {"loss": 2.5}), (1, {"loss": 1.0})], ours, 4) == ours
    same = first.info.run_id
    run = client.get_run(same)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(same, "loss")
    assert sorted((p.step, p.value) for p in history) == [(0, 2.0), (1, 1.0)]
    table = mlflow.load_table("classes.json", run_ids=[same])
    assert len(table) == 1, "MLflow would append"

    other = store.find(mlflow, go([(0, {}), (1, {})], "0" * 32))
    assert other.info.run_id != same, "a run that the store does not have is not gone on with"
    assert not [*(tmp_path / "unsent").iterdir()]


def test_a_run_that_goes_on_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def go(run_id: str = "") -> None:
        with session.run(tmp_path, "digits", "a-run", run_id=run_id) as run:
            run.begin({}, {})
            if not run_id:
                run.tag({outbox.FAILURE: "the disk is full"})
                raise UserError("the disk is full")

    with pytest.raises(UserError):
        go()
    mlflow = store.connect(tmp_path, "digits")
    [first] = mlflow.search_runs(output_format="list")
    assert (first.info.status, first.data.tags["failure"]) == ("FAILED", "the disk is full")
    go(first.data.tags[store.ID])
    [run] = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags


@pytest.mark.slow
def test_a_run_inside_another_is_its_child_and_a_stop_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def search() -> None:
        with session.run(tmp_path, "digits", "parent", watched=True) as parent:
            parent.begin({}, {})
            with suppress(Pruned), session.run(tmp_path, "digits", "pruned", watched=True) as run:
                run.begin({}, {})
                raise Pruned
            parent.tag({"best": parent.id})
            with session.run(tmp_path, "digits", "stopped", watched=True) as run:
                run.begin({}, {})
                raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        search()
    found = store.connect(tmp_path, "digits").search_runs(output_format="list")
    assert {run.info.status for run in found} == {"KILLED"}
    [parent] = [run.info.run_id for run in found if "best" in run.data.tags]
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in found}
    assert parents == {"parent": None, "pruned": parent, "stopped": parent}


def test_a_database_that_is_none_is_said_and_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 400)
    with pytest.raises(UserError, match=r"mlflow\.db does not answer: .*not a database"):
        store.open_store(tmp_path)
    with session.run(tmp_path, "digits", "a-run") as run:
        run.begin({}, {})
    [folder] = (tmp_path / "unsent").iterdir()
    said = capsys.readouterr().err
    assert "not a database" in said
    assert f"the rest of the run is kept in {folder}: `uotft sync` sends it" in said

    (tmp_path / "mlflow.db").unlink()
    write_params(tmp_path, tiny_params())
    done = call("uotft", "sync", cwd=tmp_path)  # in this process the driver still has the old file
    assert (done.returncode, done.stdout) == (0, "a-run: sent\n"), done.stderr
    assert not folder.exists()


def test_what_mlflow_never_takes_is_kept_with_its_reason_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with session.run(tmp_path, "digits", "a-run") as run:
        run.begin({"steps": 3}, {"bad\nname": "x"})
        jsonl.append(run.points, {"tags": {"bad\nname": "as workers leave them"}})
        run.log([(0, {"loss": 1.0})])
        run.tag({"good": "y"})
    [folder] = (tmp_path / "unsent").iterdir()
    refused = [line["refused"] for line in jsonl.read(folder / outbox.REFUSED)[0]]
    assert [line.get("do", "a worker's") for line in refused] == ["a worker's", "begin"]
    mlflow = store.open_store(tmp_path)
    found = store.find(mlflow, run.id)
    assert (found.info.status, found.data.tags["good"]) == ("FINISHED", "y")
    assert found.data.metrics == {"loss": 1.0}
    [(sent, said)] = delivery.sync(tmp_path)
    assert not sent
    assert "MLflow refused a part of the run" in said


def test_one_process_sends_all_runs_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They overlap; a run that has ended is sent while others go on, and leaves nothing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    write_params(tmp_path, tiny_params())
    with session.sending(tmp_path) as sender:
        with session.run(tmp_path, "digits", "long", watched=True) as long:
            long.begin({"a": "b"}, {})
            with session.run(tmp_path, "digits", "short", watched=True) as short:
                short.begin({"a": "c"}, {})
                short.log([(1, {"loss": 0.5})])
            process = sender._process
            deadline = monotonic() + 300
            while short.folder.exists():
                assert monotonic() < deadline, "it was not sent before the other one ended"
                sleep(0.05)
            long.log([(1, {"loss": 0.25})])
        assert sender._process is process
    assert not [*(tmp_path / "unsent").glob("*.*")]
    mlflow = store.open_store(tmp_path)
    found = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert {r.info.run_name: (r.info.status, r.data.metrics) for r in found} == {
        "long": ("FINISHED", {"loss": 0.25}), "short": ("FINISHED", {"loss": 0.5})
    }  # fmt: skip


def test_one_process_sends_models_of_two_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow has one experiment a process, and starts no run of another."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    write_params(tmp_path, tiny_params())
    model = tmp_path / "model"
    storage.write_json(model / "model.json", {"backbone": {"name": "small_resnet"}})
    with session.sending(tmp_path), session.run(tmp_path, "digits", "one", watched=True) as one:
        one.begin({"a": "b"}, {})
        with session.run(tmp_path, "birds", "two", watched=True) as two:
            two.begin({"a": "c"}, {})
        wait(lambda: not two.folder.exists(), 300)  # "birds" is the experiment that was opened last
        one.model(model)
    assert not outbox.folders(tmp_path)
    mlflow = store.open_store(tmp_path)
    [found] = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert len(found.outputs.model_outputs) == 1


def test_a_folder_whose_files_are_held_open_on_nfs_is_gone_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a removed file until it is closed, so its folder is not empty."""

    def is_not_empty(*args: object, **options: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with monkeypatch.context() as patch, session.run(tmp_path, "digits", "a-run") as run:
        patch.setattr(os, "rmdir", is_not_empty)
        run.begin({}, {})
    assert not outbox.folders(tmp_path)
    assert [*delivery.sync(tmp_path)] == []
    with session.run(tmp_path, "digits", "another") as run:
        run.begin({}, {})
    assert not [*(tmp_path / "unsent").iterdir()], "the next one removes the rest"


def test_what_nfs_kept_of_a_folder_is_not_in_the_way_of_the_next_of_its_name(
    tmp_path: Path,
) -> None:
    """A model that is tested again has a folder of the same name."""
    for folder in ("test-a.1", ".test-a.1.7.gone"):
        storage.write_bytes(tmp_path / "unsent" / folder / "kept", b"")
    removal.remove(tmp_path / "unsent" / "test-a.1")
    assert not [*(tmp_path / "unsent").iterdir()]


def test_others_cannot_read_what_waits_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of the store may have a password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with session.run(tmp_path, "digits", "a-run") as run:
        run.begin({}, {})
    [folder] = outbox.folders(tmp_path)
    assert not folder.stat().st_mode & 0o007


@pytest.mark.parametrize("test", ["one", "the next"])
def test_no_test_is_shown_the_store_of_another(test: str) -> None:
    """It may be gone, and every store that is made later in this process would fail."""
    import mlflow

    if test == "one":
        mlflow.set_tracking_uri("sqlite:///gone/mlflow.db")
    else:
        assert os.environ.get("MLFLOW_TRACKING_URI", "") != "sqlite:///gone/mlflow.db"


def test_a_folder_that_goes_while_folders_are_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has sent it."""
    for name in ("a.1", "b.1"):
        (tmp_path / outbox.OUTBOX / name).mkdir(parents=True)
    stat = Path.stat

    def late(path: Path, **options: bool) -> os.stat_result:
        if path.name == "a.1":
            path.rmdir()
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", late)
        found = outbox.folders(tmp_path)
    assert [path.name for path in found] == ["b.1"]


def test_a_folder_that_another_process_sends_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all others are sent."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    write_params(tmp_path, tiny_params())
    with session.sending(tmp_path) as sender:
        theirs = tmp_path / "unsent" / "theirs.1"
        theirs.mkdir(parents=True)
        with locks.exclusive(theirs / outbox.SENDER, "busy"):
            sender.take(theirs)
            with session.run(tmp_path, "digits", "ours", watched=True) as ours:
                ours.begin({"a": "b"}, {})
            deadline = monotonic() + 300
            while ours.folder.exists():
                assert monotonic() < deadline
                sleep(0.05)
    mlflow = store.open_store(tmp_path)
    [run] = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert (run.info.run_name, run.info.status) == ("ours", "FINISHED")
