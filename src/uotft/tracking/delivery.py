"""Outbox -> MLflow: sends everything exactly once, however often it starts or is killed.

Before creating a run, it looks for one by the tag with our own id. A metric is sent with the time
of its measurement, and MLflow keeps only one of the same name, step, time and value. So sending
again, after MLflow took something without answering, creates no duplicates.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from getpass import getuser
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uotft.core import jsonl, locks, removal, storage
from uotft.core.errors import UserError
from uotft.core.records import Answers
from uotft.tracking import notes, outbox, store

PACKAGE = Path(__file__).parents[1]
PARENT = "mlflow.parentRunId"  # the tag that makes a run a child of another one
METRICS, TEXTS = 1000, 100  # MLflow's limits per request: metrics; parameters or tags
# errors that retrying cannot mend: MLflow refuses the value, or the run was deleted
FINAL = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
NO_RUN = "no MLflow run here made these weights"


class Early(Exception):
    """This folder has to wait: something else must be in the store first."""


class Delivery:
    """Sends one folder of the outbox; the call after an exception resumes where that stopped."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home, self.folder, self.about = home, folder, storage.read_json(folder / outbox.RUN)
        self.project = self.about.get(store.PROJECT, "")
        self.mlflow: Any = None
        self.client: Any = None
        self.run_id, self.place, self.done = "", 0, 0  # done: number of events sent
        self.has_ended = False  # the end of the run is sent; nothing follows it
        self.seen: set[tuple[str, int]] = set()  # (name, step) of metrics that MLflow has

    def send_new(self) -> None:
        """Send what was written since the last call; MLflow's exceptions pass through."""
        events, _ = jsonl.read(self.folder / outbox.EVENTS)
        if not events or events[0]["do"] == "end":  # the run failed before `begin`
            self.has_ended = bool(events)
            return
        if not self.run_id:
            self._send_earlier()
            self.mlflow = store.connect(self.home, self.about["experiment"], self.about["store"])
            self.client = self.mlflow.MlflowClient()
            self.run_id = self._run(events[0]["at"])
        self._points()
        for event in events[self.done :]:
            if event["do"] == "end":
                self._points()  # all metrics are written by now, since the workers have ended
            fields = {k: v for k, v in event.items() if k not in ("at", "do")}
            with self._refused(event):
                getattr(self, f"_{event['do']}")(event["at"], **fields)
            self.done += 1
            self.has_ended = event["do"] == "end"
            self._note_progress()

    def finish(self) -> None:
        """Send the rest of a folder that no process writes any more, and remove the folder.

        If MLflow refused a part for good, raises a ``UserError`` and keeps the folder.
        """
        self.send_new()
        if (self.folder / outbox.REFUSED).exists():
            raise UserError(
                f"MLflow refused a part of the run, see {self.folder / outbox.REFUSED}; the rest "
                f"is sent. To drop that part, delete {self.folder}"
            )
        removal.remove(self.folder)

    def why(self, error: BaseException) -> str:
        """The failure, in one line."""
        if isinstance(error, Early | UserError):
            return str(error)
        return f"MLflow at {store.shown(self.home, self.about['store'])}: {store.brief(error)}"

    def _note_progress(self) -> None:
        storage.write_json(self.folder / outbox.SENT, {"events": self.done})

    def _send_earlier(self) -> None:
        """Send the folders of earlier sessions of the same run first."""
        ident, number = self.folder.stem, int(self.folder.suffix[1:])
        for before in range(1, number):
            path = self.folder.with_name(f"{ident}.{before}")
            if self._is_earlier(path) and (why := send_left(self.home, path)):
                raise Early(why)

    def _is_earlier(self, path: Path) -> bool:
        """Whether it is there, and of this project: a copied project has ids of the original's."""
        with suppress(UserError):
            about = storage.read_json(path / outbox.RUN)
            return bool(about.get(store.PROJECT, "") == self.project)
        return False

    def _run(self, began: int) -> str:
        """MLflow's id of the run, which is created if the store does not have it."""
        if weights := self.about.get("weights"):
            run = store.newest(self.mlflow, store.made(weights), self.project)
        else:
            run = store.find(self.mlflow, self.about["id"], self.project)
        if run:
            with suppress(UserError):  # nothing is sent yet
                self.done = storage.read_json(self.folder / outbox.SENT)["events"]
            metrics = run.data.metrics
            history = (self.client.get_metric_history(run.info.run_id, k) for k in metrics)
            self.seen = {(point.key, point.step) for points in history for point in points}
            if outbox.FAILURE in run.data.tags and not (weights or self.done):
                # of an earlier part of this run, which goes on now; one of this part is sent below
                self.client.delete_tag(run.info.run_id, outbox.FAILURE)
        elif weights:
            raise Early(NO_RUN)
        else:
            tags = {store.ID: self.about["id"], "mlflow.user": getuser(), **self._parent()}
            tags |= {notes.SOURCE: "uotft", "mlflow.source.type": "LOCAL"}
            tags |= {store.PROJECT: self.project} if self.project else {}
            experiment = self.mlflow.get_experiment_by_name(self.about["experiment"])
            number, name = experiment.experiment_id, self.about["name"]
            run = self.client.create_run(number, start_time=began, tags=tags, run_name=name)
            self.done = 0
        return str(run.info.run_id)

    def _parent(self) -> dict[str, str]:
        """The tag that names the parent run; ``Early`` if the parent is not in the store yet."""
        if not self.about["parent"]:
            return {}
        if parent := store.find(self.mlflow, self.about["parent"], self.project):
            return {PARENT: parent.info.run_id}
        raise Early(f"{self.folder}: its parent run is not in MLflow yet")

    def _points(self) -> None:
        """Send the workers' new metrics and tags; the first value of a name and step counts."""
        from mlflow.entities import Metric

        found, place = jsonl.read(self.folder / outbox.POINTS, self.place)
        new: dict[tuple[str, int], Any] = {}
        for line in found:
            for name, value in line.get("numbers", {}).items():
                key = name, line["step"]
                if key not in self.seen:
                    new.setdefault(key, Metric(name, value, line["at"], line["step"]))
            if "tags" in line:
                with self._refused(line):
                    self._tag(line["at"], line["tags"])
        for part in _batches([*new.values()], METRICS):
            with self._refused({"metrics": [(m.key, m.step, m.value) for m in part]}):
                self.client.log_batch(self.run_id, metrics=part)
            self.seen |= {(m.key, m.step) for m in part}
        self.place = place
        if new:
            self._note_progress()

    @contextmanager
    def _refused(self, what: dict[str, Any]) -> Iterator[None]:
        """Record what MLflow refuses for good in refused.jsonl, and continue."""
        try:
            yield
        except self.mlflow.exceptions.MlflowException as error:
            if error.error_code not in FINAL:
                raise
            jsonl.append(self.folder / outbox.REFUSED, {"why": store.brief(error), "refused": what})

    # One method per event, with the event's name: (time in ms, fields of the event).

    def _begin(
        self, at: int, params: dict[str, str], tags: dict[str, str], data: list[dict[str, str]]
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self.client.update_run(self.run_id, status="RUNNING")
        known = self.client.get_run(self.run_id).data.params
        for part in _batches([Param(k, v) for k, v in params.items() if k not in known], TEXTS):
            self.client.log_batch(self.run_id, params=part)
        self._tag(at, tags)
        inputs = [
            DatasetInput(
                Dataset(d["name"], d["md5"], "local", json.dumps({"uri": d["path"]})),
                [InputTag("mlflow.data.context", d["role"])],
            )
            for d in data
        ]
        if inputs:
            self.client.log_inputs(self.run_id, inputs)

    def _tag(self, at: int, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for part in _batches([RunTag(k, v) for k, v in tags.items()], TEXTS):
            self.client.log_batch(self.run_id, tags=part)

    def _table(self, at: int, columns: dict[str, list[Any]], name: str) -> None:
        # log_table appends to an existing table
        if name not in [f.path for f in self.client.list_artifacts(self.run_id)]:
            self.client.log_table(self.run_id, columns, name)

    def _files(self, at: int, kept: str, name: str | None) -> None:
        self.client.log_artifacts(self.run_id, str(self.folder / kept), name)

    def _test(self, at: int, numbers: dict[str, float], kept: str) -> None:
        """Send test metrics and predictions, unless the run already has the same."""
        from mlflow.entities import Metric

        data = self.client.get_run(self.run_id).data
        has, own = data.metrics, data.params
        if {"strategy", "seed"} <= own.keys() and "test/top1" in numbers:
            line = notes.headline(own["strategy"], own["seed"], "test", numbers["test/top1"])
            self._tag(at, {notes.SOURCE: line})
        if any(has.get(k) != v for k, v in numbers.items()):
            metrics = [Metric(k, v, at, 0) for k, v in numbers.items()]
            self.client.log_batch(self.run_id, metrics=metrics)
        elif "test" in {artifact.path for artifact in self.client.list_artifacts(self.run_id)}:
            return
        self._files(at, kept, "test")

    def _model(self, at: int, kept: str) -> None:
        """Log a folder's weights as a pyfunc model: safetensors and a script, no pickle.

        The model accepts images or file paths. A signature can state only one input type, so this
        one states none.
        """
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        outputs = self.mlflow.get_run(self.run_id).outputs
        if outputs and outputs.model_outputs:
            return
        answer = Schema([ColSpec("string", "label"), ColSpec("double", "probability")])
        # MLflow has one experiment a process, and another run's may be of another target
        self.mlflow.set_experiment(self.about["experiment"])
        self.mlflow.start_run(self.run_id)
        try:
            # MLflow prints advice on type hints and input examples to standard error, past the
            # warnings filter. The signature is enough; an example would be run, and import torch.
            with redirect_stderr(io.StringIO()):
                self.mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(PACKAGE / "models" / "serving.py"),
                    artifacts={"model": str(self.folder / kept)},
                    code_paths=[str(PACKAGE)],
                    signature=ModelSignature(outputs=answer),
                    pip_requirements=_requirements(self.folder / kept),
                )
        finally:
            self.mlflow.end_run("RUNNING")

    def _end(self, at: int, status: str) -> None:
        self.client.set_terminated(self.run_id, status, at)


def send(home: Path, folder: Path) -> str:
    """Send a folder that no process writes any more; returns why that failed, or ""."""
    try:
        with locks.exclusive(folder / outbox.SENDER, f"{folder}: another process is sending it"):
            delivery = Delivery(home, folder)
            try:
                delivery.finish()
            except Exception as error:  # noqa: BLE001  the folder stays, however the store fails
                return delivery.why(error)
    except UserError as error:
        return str(error)
    return ""


def send_left(home: Path, folder: Path) -> str:
    """Send a folder whose process has ended; a run whose process died is marked KILLED."""
    try:
        with locks.exclusive(folder / outbox.OWNER, f"{folder}: its training is still running"):
            if not (folder / outbox.RUN).is_file():  # another process has just sent it
                return ""
            outbox.close(folder)
            return send(home, folder)
    except UserError as error:
        return str(error)


def sync(home: Path) -> Iterator[tuple[bool, str]]:
    """Send each folder of the outbox; yields, for each, whether it is gone and a message.

    Repeats as long as a round sends at least one, because a child run has to wait for its parent,
    and test metrics for their run.
    """
    waiting = outbox.folders(home)
    while waiting:
        failed = []
        for folder in waiting:
            if not (folder / outbox.RUN).is_file():  # another process has sent it
                continue
            name = storage.read_json(folder / outbox.RUN)["name"]
            if why := send_left(home, folder):
                failed.append((folder, f"{name}: {why}"))
            else:
                yield True, f"{name}: sent"
        if len(failed) == len(waiting):  # this round sent none, so another would not either
            # if only test metrics are left, their runs do not exist any more: drop them
            hopeless = all(why.endswith(NO_RUN) for _, why in failed)
            for folder, why in failed:
                if hopeless:
                    removal.remove(folder)
                yield hopeless, f"{why}{'; dropped' if hopeless else ''}"
            return
        waiting = [folder for folder, _ in failed]


def log_test(
    home: Path,
    experiment: str,
    model: str,
    numbers: dict[str, float],
    answers: dict[int, Answers],
    confusion: list[list[int]],
    *,
    project: str = "",
) -> str:
    """Add test metrics to the project's newest run that made the weights ``model`` (SHA-256).

    The ``answers`` (of one seed) and the confusion matrix become artifacts in test/. Returns why
    that failed, or "". There may be no such run, because DVC can restore a stage from its cache
    without running it. If the run is still in the outbox, `uotft sync` adds the metrics later.
    """
    (own,) = answers.values()
    name = f"test of {model[:12]}"
    about = {"id": f"test-{model}", "experiment": experiment, "name": name, "weights": model}
    about |= {"project": project} if project else {}
    with outbox.written(home, about) as folder, TemporaryDirectory(prefix="uotft-") as kept:
        storage.write_answers(Path(kept) / "predictions.npz", answers)
        confused = {"classes": own.names, "confusion": confusion}
        storage.write_json(Path(kept) / "confusion.json", confused)
        outbox.Run(folder).test(numbers, Path(kept))
        # listed before: the run can reach the store, and leave the outbox, after `send` has looked
        others = [p for p in outbox.folders(home) if not p.name.startswith("test-")]
        why = send(home, folder)
        if why == NO_RUN and not others:
            removal.remove(folder)
        return why


def _requirements(folder: Path) -> list[str]:
    """The packages that a logged model needs, at the versions installed here."""
    needed = ["accelerate", "mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml"]
    needed += ["safetensors", "torch", "torchvision"]
    backbone = str(storage.read_json(folder / "model.json")["backbone"])
    # also finds the name in the architecture of a state_dict backbone
    if "'timm'" in backbone or "'efficientnet_lite0'" in backbone:
        needed.append("timm")
    return [f"{name}=={version(name)}" for name in needed]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
