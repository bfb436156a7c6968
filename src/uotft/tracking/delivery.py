"""A journal -> MLflow: all of it once, however often sending is begun and whoever is killed.

A run is looked for, by the tag with its own id, before it is made; a metric is sent with the time
of its journal, and MLflow takes one of the same name, step, time and value once. So what was sent
and not answered is sent again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from getpass import getuser
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uotft.core import jsonl, locks, storage
from uotft.core.errors import UserError
from uotft.core.records import Answers
from uotft.tracking.outbox import EVENTS, OWNER, POINTS, RUN, SENT, UNSENT, Run, written
from uotft.tracking.store import ID, brief, connect, find, home, made, newest, store_uri

PACKAGE = Path(__file__).parents[1]
PARENT = "mlflow.parentRunId"  # the tag that makes a run another one's child
FAILURE = "failure"  # the tag that says why a run has failed
METRICS, WORDS = 1000, 100  # metrics, and parameters or tags, that one call takes
# what no second try mends: a value that MLflow does not take, a run that somebody has deleted
FINAL = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
REFUSED = "refused.jsonl"  # in the journal's folder, which then stays
SENDER = ".sender.lock"
NO_RUN = "no MLflow run here made these weights"


class Early(Exception):
    """What has to be in the store before this journal is not there yet."""


class Delivery:
    """Sends the journal in ``folder``; after an exception it goes on with what it has not sent."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder, self.about = root, folder, storage.read_json(folder / RUN)
        self.mlflow: Any = None
        self.run_id, self.place, self.done = "", 0, 0
        self.seen: set[tuple[str, int]] = set()

    def new(self) -> None:
        """Send what has come since; raises whatever MLflow does where that fails."""
        events, _ = jsonl.read(self.folder / EVENTS)
        if not events or events[0]["do"] == "end":  # over before it began
            return
        if not self.run_id:
            self._must_be_next()
            self.mlflow = connect(self.root, self.about["experiment"], self.about["store"])
            self.run_id = self._run(events[0]["at"])
        self._points()
        for event in events[self.done :]:
            if event["do"] == "end":
                self._points()  # the last ones: whoever wrote them has ended before
            words = {k: v for k, v in event.items() if k not in ("at", "do")}
            with self._refused(event):
                getattr(self, f"_{event['do']}")(event["at"], **words)
            self.done += 1
            storage.write_json(self.folder / SENT, {"events": self.done})

    def finish(self) -> None:
        """Send the rest of a journal that nobody writes any more, and remove it."""
        self.new()
        if (self.folder / REFUSED).exists():
            raise UserError(
                f"MLflow refused some of it, {self.folder / REFUSED} says what and why; all else "
                "is sent: delete the folder to forget it"
            )
        shutil.rmtree(self.folder)

    def why(self, error: BaseException) -> str:
        """What has failed, in a line."""
        if isinstance(error, Early | UserError):
            return str(error)
        return f"MLflow at {store_uri(self.root, self.about['store'])}: {brief(error)}"

    def _must_be_next(self) -> None:
        """What was said of this run before is to be sent before."""
        ident, number = self.folder.stem, int(self.folder.suffix[1:])
        for before in range(1, number):
            path = self.folder.with_name(f"{ident}.{before}")
            if path.is_dir() and (why := send_left(self.root, path)):
                raise Early(why)

    def _run(self, began: int) -> str:
        """MLflow's id of the run, which is found, with the points that it has, or made."""
        client = self.mlflow.MlflowClient()
        weights = self.about.get("weights")
        run = newest(self.mlflow, made(weights)) if weights else find(self.mlflow, self.about["id"])
        if run:
            with suppress(UserError):  # nothing is sent yet
                self.done = storage.read_json(self.folder / SENT)["events"]
            history = (client.get_metric_history(run.info.run_id, k) for k in run.data.metrics)
            self.seen = {(point.key, point.step) for points in history for point in points}
        elif weights:
            raise Early(NO_RUN)
        else:
            tags = {ID: self.about["id"], "mlflow.user": getuser(), **self._parent()}
            tags |= {"mlflow.source.name": "uotft", "mlflow.source.type": "LOCAL"}
            experiment = self.mlflow.get_experiment_by_name(self.about["experiment"])
            number, name = experiment.experiment_id, self.about["name"]
            run = client.create_run(number, start_time=began, tags=tags, run_name=name)
            self.done = 0
        return str(run.info.run_id)

    def _parent(self) -> dict[str, str]:
        """The tag of a child, whose parent is in the store."""
        if not self.about["parent"]:
            return {}
        if parent := find(self.mlflow, self.about["parent"]):
            return {PARENT: parent.info.run_id}
        raise Early(f"{self.folder}: the run around it is not in MLflow yet")

    def _points(self) -> None:
        """Metrics, and the tags that workers leave; of a name and a step the first one counts."""
        from mlflow.entities import Metric

        found, place = jsonl.read(self.folder / POINTS, self.place)
        new: dict[tuple[str, int], Any] = {}
        for line in found:
            for name, value in line.get("numbers", {}).items():
                key = name, line["step"]
                if key not in self.seen:
                    new.setdefault(key, Metric(name, value, line["at"], line["step"]))
            if "tags" in line:
                with self._refused(line):
                    self._tag(line["at"], line["tags"])
        metrics = [*new.values()]
        for start in range(0, len(metrics), METRICS):
            part = metrics[start : start + METRICS]
            with self._refused({"metrics": [(m.key, m.step, m.value) for m in part]}):
                self.mlflow.MlflowClient().log_batch(self.run_id, metrics=part)
            self.seen |= {(m.key, m.step) for m in part}
        self.place = place
        if metrics:
            storage.write_json(self.folder / SENT, {"events": self.done})  # it gets on

    @contextmanager
    def _refused(self, what: dict[str, Any]) -> Iterator[None]:
        """Note what MLflow will never take, and go on."""
        try:
            yield
        except self.mlflow.exceptions.MlflowException as error:
            if error.error_code not in FINAL:
                raise
            jsonl.append(self.folder / REFUSED, {"why": brief(error), "refused": what})

    def _begin(
        self, at: int, params: dict[str, str], tags: dict[str, str], data: list[dict[str, str]]
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        client = self.mlflow.MlflowClient()
        client.update_run(self.run_id, status="RUNNING")
        known = client.get_run(self.run_id).data.params
        new = [Param(k, v) for k, v in params.items() if k not in known]
        for start in range(0, len(new), WORDS):
            client.log_batch(self.run_id, params=new[start : start + WORDS])
        self._tag(at, tags)
        inputs = [
            DatasetInput(
                Dataset(d["name"], d["md5"], "local", json.dumps({"uri": d["path"]})),
                [InputTag("mlflow.data.context", d["role"])],
            )
            for d in data
        ]
        if inputs:
            client.log_inputs(self.run_id, inputs)

    def _tag(self, at: int, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        new = [RunTag(k, v) for k, v in tags.items()]
        for start in range(0, len(new), WORDS):
            self.mlflow.MlflowClient().log_batch(self.run_id, tags=new[start : start + WORDS])

    def _table(self, at: int, columns: dict[str, list[Any]], name: str) -> None:
        client = self.mlflow.MlflowClient()
        if name not in [f.path for f in client.list_artifacts(self.run_id)]:  # else it would grow
            client.log_table(self.run_id, columns, name)

    def _files(self, at: int, kept: str, name: str | None) -> None:
        self.mlflow.MlflowClient().log_artifacts(self.run_id, str(self.folder / kept), name)

    def _test(self, at: int, numbers: dict[str, float], kept: str) -> None:
        """Test metrics and answers, unless the run has the same already."""
        from mlflow.entities import Metric

        client = self.mlflow.MlflowClient()
        has = client.get_run(self.run_id).data.metrics
        if any(has.get(k) != v for k, v in numbers.items()):
            client.log_batch(self.run_id, metrics=[Metric(k, v, at, 0) for k, v in numbers.items()])
        elif "test" in {artifact.path for artifact in client.list_artifacts(self.run_id)}:
            return
        self._files(at, kept, "test")

    def _model(self, at: int, kept: str) -> None:
        """A folder's weights as a pyfunc model: safetensors and a script, no pickle.

        It takes images or paths of files. A signature can have only one of them, so it has neither.
        """
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        outputs = self.mlflow.get_run(self.run_id).outputs
        if outputs and outputs.model_outputs:
            return
        answer = Schema([ColSpec("string", "label"), ColSpec("double", "probability")])
        self.mlflow.start_run(self.run_id)
        try:
            # MLflow recommends type hints and an input example, past every warnings filter: the
            # signature says it already, and an example would be run, and so import torch here
            with redirect_stderr(io.StringIO()):
                self.mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(PACKAGE / "serving.py"),
                    artifacts={"model": str(self.folder / kept)},
                    code_paths=[str(PACKAGE)],
                    signature=ModelSignature(outputs=answer),
                    pip_requirements=_requirements(self.folder / kept),
                )
        finally:
            self.mlflow.end_run("RUNNING")

    def _end(self, at: int, status: str) -> None:
        self.mlflow.MlflowClient().set_terminated(self.run_id, status, at)


def close(folder: Path) -> None:
    """Say in the journal of a run whose processes are gone how it ended, if they did not."""
    events, _ = jsonl.read(folder / EVENTS)
    if events and events[-1]["do"] not in ("end", "test"):
        left = Run(folder, "")
        left.tag({FAILURE: "the process that watched the training was killed"})
        left.say("end", status="KILLED")


def send(root: Path, folder: Path) -> str:
    """Send a journal that nobody writes any more, in this process; why that failed, or ""."""
    try:
        with locks.alone(folder / SENDER, f"{folder}: another process sends it"):
            delivery = Delivery(root, folder)
            try:
                delivery.finish()
            except Exception as error:  # noqa: BLE001  whatever a store does, the journal is there
                return delivery.why(error)
    except UserError as error:
        return str(error)
    return ""


def send_left(root: Path, folder: Path) -> str:
    """The same of a journal that was left, by whomever; the run of one that died is KILLED."""
    try:
        with locks.alone(folder / OWNER, f"{folder}: its training is under way"):
            if not (folder / RUN).is_file():  # somebody was faster
                return ""
            close(folder)
            return send(root, folder)
    except UserError as error:
        return str(error)


def sync(root: Path) -> Iterator[tuple[bool, str]]:
    """Send all journals that were left; of each, whether nothing of it is left, and a line."""
    waiting = sorted((home(root) / UNSENT).glob("*.*"), key=lambda path: path.stat().st_mtime)
    while waiting:
        early = []
        for folder in waiting:
            if not (folder / RUN).is_file():  # sent meanwhile
                continue
            name = storage.read_json(folder / RUN)["name"]
            why = send_left(root, folder)
            if why:
                early.append((folder, f"{name}: {why}"))
            else:
                yield True, f"{name}: sent"
        if len(early) == len(waiting):  # no journal has made way for another
            hopeless = all(why.endswith(NO_RUN) for _, why in early)
            for folder, why in early:
                if hopeless:  # and none is to come that such a run could be in
                    shutil.rmtree(folder)
                yield hopeless, f"{why}{'; given up' if hopeless else ''}"
            return
        waiting = [folder for folder, _ in early]


def log_test(
    root: Path,
    experiment: str,
    model: str,
    numbers: dict[str, float],
    answers: dict[int, Answers],
    confusion: list[list[int]],
) -> str:
    """Add test metrics to the newest run that made the weights ``model`` (SHA-256).

    ``answers`` of its one seed and the confusion matrix go to its artifacts, in test/. Returns why
    they are not there, or "". A stage that DVC took from its cache was not executed here, so there
    may be no such run; one that MLflow does not have yet gets them with `uotft sync`.
    """
    (said,) = answers.values()
    name = f"test of {model[:12]}"
    about = {"id": f"test-{model}", "experiment": experiment, "name": name, "weights": model}
    with written(root, about) as folder, TemporaryDirectory(prefix="uotft-") as kept:
        storage.write_answers(Path(kept) / "predictions.npz", answers)
        confused = {"classes": said.names, "confusion": confusion}
        storage.write_json(Path(kept) / "confusion.json", confused)
        Run(folder, "").test(numbers, Path(kept))
        why = send(root, folder)
        others = [p for p in folder.parent.glob("*.*") if not p.name.startswith(("test-", "."))]
        if why == NO_RUN and not others:
            shutil.rmtree(folder)
        return why


def _requirements(folder: Path) -> list[str]:
    needed = ["accelerate", "mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml"]
    needed += ["safetensors", "torch", "torchvision"]
    if "'timm'" in str(
        storage.read_json(folder / "model.json")["backbone"]
    ):  # inside state_dict too
        needed.append("timm")
    return [f"{name}=={version(name)}" for name in needed]
