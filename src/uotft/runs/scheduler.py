"""Trainings on the workers of a Dask scheduler: the only module that knows Dask.

`experiment run` and `search` hand each cell to the scheduler as one task. The task starts a process
of its own on the worker's machine (`uotft.runs.remote`), so that a crash does not end the worker,
and passes on what it says. All machines share the project's folder. A task whose worker is lost
begins again on another one, which goes on from the checkpoint.

    dask scheduler
    dask worker tcp://HOST:8786 --nthreads 1
    uotft experiment run table4 --scheduler tcp://HOST:8786
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import gethostname
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from uotft.core import environment, storage
from uotft.core.errors import Interrupted, UserError, WorkerFailed
from uotft.core.records import Cell
from uotft.core.signals import GRACE_S, INTERRUPTED, POLL_S, StopRequest
from uotft.core.text import plural
from uotft.pipeline.workspace import Workspace
from uotft.runs.processes import Crew, Fleet, Points
from uotft.tracking import session, store

CONNECT_S = 5  # for the scheduler to answer
SEEN_S = 120.0  # until a shared file system shows here what another machine has written
STOP_S = 3 * GRACE_S  # for trainings elsewhere to save and send their runs
TRIES = 3  # a training that is stopped so often, and not by this command, has failed
STOPPED = (INTERRUPTED, 128 + signal.SIGTERM, 128 + signal.SIGALRM)  # before it listened; too slow
MOST = 256  # cells that the scheduler knows at a time

Message = dict[str, Any]
logger = logging.getLogger(__name__)


def check(fleet: Fleet, ws: Workspace) -> None:
    """Raise `UserError` if no scheduler answers where ``fleet`` names one, or a worker is unfit."""
    if fleet.scheduler:
        with _joined(fleet.scheduler, ws):
            pass


@contextmanager
def crews(
    fleet: Fleet, ws: Workspace, wanted: int, asked: StopRequest
) -> Iterator[tuple[list[Crew], int]]:
    """Crews that train on the workers of ``fleet.scheduler``, and how many train at a time.

    There are ``wanted`` crews, ``MOST`` at the most: the others wait in the scheduler's queue.
    Raises `UserError` as `check` does.
    """
    name = fleet.scheduler
    with _joined(name, ws) as (client, needed):
        workers = _workers(client)
        threads: int = sum(worker["nthreads"] for worker in workers.values())
        if workers:
            logger.info("scheduler %s: %s, %s at a time", name, plural(len(workers), "worker"),
                        plural(threads, "training"))  # fmt: skip
        else:
            start = f"dask worker {client.scheduler.address} --nthreads 1"
            logger.warning("the scheduler %s has no worker yet: cells wait until one comes, as "
                           "from `%s`", name, start)  # fmt: skip
        there = _There(client, fleet, needed, asked)
        crew = Crew(fleet, ws.root, asked=asked, elsewhere=there.train)
        number = min(wanted, MOST)
        yield [crew] * number, min(number, threads or number)


@contextmanager
def _joined(name: str, ws: Workspace) -> Iterator[tuple[Any, Message]]:
    """A client of the scheduler ``name``, and what its workers need; those of today are fit."""
    token = ws.root / "unfinished" / f".scheduler-{uuid4().hex}"
    needed: Message = {"root": str(ws.root.resolve()), "token": token.name, **_packages()}
    needed["environment"] = environment.handed()
    if store.shown(ws.tracking) != store.store_uri(ws.tracking):
        raise UserError(
            f"--scheduler {name}: MLFLOW_TRACKING_URI has a password, which would cross the "
            "network to every worker: leave it out, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD on each machine"
        )
    client = _connected(name)
    try:
        storage.write_bytes(token, b"")
        for address, found in client.run(unfit, needed, on_error="return").items():
            why = found if isinstance(found, str) else f"cannot run uotft: {_brief(found)}"
            if why:
                raise UserError(f"--scheduler {name}: the worker {address} {why}")
        yield client, needed
    finally:
        token.unlink(missing_ok=True)
        with suppress(OSError, TimeoutError):
            client.close(timeout=POLL_S)


def _connected(name: str) -> Any:
    """A client of the scheduler at an address, or of the one that a file of Dask's names."""
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ModuleNotFoundError as error:
        raise UserError("--scheduler needs Dask: pip install 'uotft[dask]'") from error
    if is_file := name.endswith(".json"):
        if not Path(name).is_file():
            raise UserError(f"--scheduler: {name}: no such file, which `dask scheduler "
                            "--scheduler-file` writes")  # fmt: skip
    else:
        try:
            get_address_host_port(name, strict=True)
        except ValueError as error:
            raise UserError(
                f"--scheduler: got {name!r}; write tcp://HOST:PORT, as `dask scheduler` prints it, "
                "or the name of its .json file"
            ) from error
    # a lost connection is an error of ours, with our own message
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    place = {"scheduler_file" if is_file else "address": name}
    try:
        return Client(**place, timeout=CONNECT_S, set_as_default=False, name="uotft")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--scheduler {name}: no Dask scheduler answers there within {CONNECT_S} s: start one "
            "with `dask scheduler`, which prints its address"
        ) from error


def _workers(client: Any) -> dict[str, Any]:
    """The workers that the scheduler knows now, by their addresses."""
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


def unfit(needed: Message) -> str:
    """On a worker: why it cannot train for the command that ``needed`` describes, or ""."""
    if not Path(needed["root"], "unfinished", needed["token"]).is_file():
        return (f"does not see the project's folder {needed['root']}: all machines need it, under "
                "the same path, on one shared file system")  # fmt: skip
    for name, here in _packages().items():
        if here != needed[name]:
            return (f"has another {name} ({here}) than this machine ({needed[name]}): start it "
                    "anew, in the same environment")  # fmt: skip
    return ""


@cache
def _packages() -> dict[str, str]:
    """What must be the same on all machines: uotft, by a hash of its code, and torch."""
    package, code = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(f"{file.relative_to(package)} {storage.fingerprint(file)}\n".encode())
    # +cpu, +cu126: a login node has often another build
    return {"uotft": f"{version('uotft')}, code {code.hexdigest()[:8]}",
            "torch": version("torch").partition("+")[0]}  # fmt: skip


class _There:
    """Trains cells on the workers of one scheduler, from any thread."""

    def __init__(self, client: Any, fleet: Fleet, needed: Message, asked: StopRequest) -> None:
        self._client, self._fleet, self._needed, self._asked = client, fleet, needed, asked
        self._topic = f"uotft-{needed['token']}"
        self._heard: dict[str, SimpleQueue[Message]] = {}
        client.subscribe_topic(self._topic, self._hear)

    def _hear(self, event: tuple[float, Message]) -> None:
        message = event[1]
        if queue := self._heard.get(message["key"]):
            queue.put(message)

    def train(
        self,
        ws: Workspace,
        cell: Cell,
        watch: Callable[[Points], None],
        begins: Callable[[str], object],
    ) -> str:
        """Train one cell on some worker; returns a line for the user (`uotft.runs.job.train`)."""
        task, end = _Task(self._client, self._fleet.scheduler, cell, watch, begins), {}
        order = {
            "cell": [cell.target, cell.strategy, cell.seed],
            "overrides": [*ws.overrides],
            # params.yaml may be edited before a worker is free; mode="json" would drop an .inf
            "params": ws.params.model_dump(by_alias=True),
            "processes": self._fleet.processes,
            "parent": session.enclosing(),
        }
        for _ in range(TRIES):
            key = f"{cell}-{uuid4().hex[:12]}"
            self._heard[key] = task.heard
            try:
                end = task.run(_train, key, order, self._topic, self._needed, self._asked)
            finally:
                del self._heard[key]
            if end["code"] not in STOPPED:
                break
            task.lost = "it was stopped"
        if end["code"] in STOPPED:
            raise WorkerFailed(INTERRUPTED, why=f"it was stopped {TRIES} times on its workers")
        if "mistake" in end:
            raise UserError(end["mistake"])
        if end["code"]:
            raise WorkerFailed(end["code"], why=end.get("why", ""))
        task.catch_up(end["history"])
        for name, fingerprint in end["made"].items():
            _see(ws.root, ws.root / name, fingerprint)
        return str(end["line"])


class _Task:
    """One cell on its way through a scheduler: where it is, and what it says."""

    def __init__(
        self,
        client: Any,
        name: str,
        cell: Cell,
        watch: Callable[[Points], None],
        begins: Callable[[str], object],
    ) -> None:
        self._client, self._name, self._cell = client, name, cell
        self._watch, self._begins = watch, begins
        self.heard: SimpleQueue[Message] = SimpleQueue()
        self.lost = "its machine was lost"  # why it begins again, if it does
        self._place: Message = {}  # host, worker and process that have it
        self._before: Message = {}  # and that had it before
        self._seen: set[int] = set()  # steps whose validation has been passed on

    def run(self, work: Callable[..., Message], key: str, *arguments: Any) -> Message:
        """Submit the task and follow it to its end; what `_train` returns.

        Raises `Interrupted` if this command is asked to stop, and what ``watch`` raises; then the
        training has saved and ended.
        """
        *given, asked = arguments
        self._place = {}
        future = self._client.submit(work, key, *given, key=key, pure=False)
        try:
            while not future.done():
                if asked:
                    raise Interrupted("interrupted")
                self._listen(POLL_S)
            while not self.heard.empty():
                self._listen(0)
            return self._end(future)
        except BaseException:
            self._stop(future)
            raise
        finally:
            future.release()  # otherwise Dask would run it again if the worker that ran it is lost

    def _listen(self, seconds: float) -> None:
        """Pass on what the training says; waits for that at most ``seconds``."""
        try:
            message = self.heard.get(timeout=seconds) if seconds else self.heard.get_nowait()
        except Empty:
            return
        if "began" in message:
            where, before = message["began"], self._before.get("worker")
            self._place = self._before = message
            again = f" begins again on {where}, since {self.lost}: {before}"
            self._begins(again if before else f", on {where}")
        elif "log" in message:
            logger.log(message["log"], "%s: %s", self._cell, message["text"])
        else:
            self.catch_up([(message["step"], message["numbers"])])

    def catch_up(self, points: Points) -> None:
        """Pass on the validations that have not been heard: some may be lost with a machine."""
        if new := [
            (step, numbers) for step, numbers in points if numbers and step not in self._seen
        ]:
            self._seen.update(step for step, _ in new)
            self._watch(new)

    def _stop(self, future: Any) -> None:
        """Take the task back if no worker has it, or have its training save and end."""
        told, patience = Message(), float(STOP_S)
        if future.done() or self._client.status != "running":  # workers end with their scheduler
            return
        if self._place.get("worker") not in _workers(self._client):
            future.cancel()
            self._place, patience = {}, 5 * POLL_S  # a worker may just have begun it
        until = monotonic() + patience
        while monotonic() < until and self._client.status == "running":
            if self._place and self._place is not told:
                told, until = self._place, monotonic() + STOP_S
                self._on_worker(told, terminate)
            if told and future.done() and not self._on_worker(told, is_training):
                return
            with suppress(Empty):
                message = self.heard.get(timeout=POLL_S)
                self._place = message if "began" in message else self._place
        if told and monotonic() > until:
            logger.warning("%s: its training on %s has not ended within %s s", self._cell,
                           told["began"], STOP_S)  # fmt: skip

    def _on_worker(self, place: Message, ask: Callable[[int], bool]) -> bool:
        """What a worker answers about the training in ``place``; False if the worker is lost."""
        workers = [place["worker"]]
        answers = self._client.run(ask, place["process"], workers=workers, on_error="ignore")
        return any(answers.values())

    def _end(self, future: Any) -> Message:
        """What a task that is done has returned; `WorkerFailed` if it ended its workers."""
        from distributed import CancelledError, KilledWorker

        try:
            end: Message = future.result()
        except KilledWorker as error:
            times = plural(error.allowed_failures + 1, "worker")
            raise WorkerFailed(128 + signal.SIGKILL, why=f"{times} died with it") from error
        except CancelledError as error:
            said = "the scheduler is lost; the same command goes on, also with another one"
            raise OSError(errno.ECONNRESET, said, self._name) from error
        except Exception as error:  # a worker that cannot even load the task
            raise UserError(f"a worker cannot run uotft: {_brief(error)}") from error
        return end


def _train(key: str, order: Message, topic: str, needed: Message) -> Message:
    """On a worker: train one cell in a process of its own; how that ended, with its exit code."""
    from distributed import get_worker

    worker, end = get_worker(), Message()
    if why := unfit(needed):
        return {"code": 2, "mistake": f"the worker {worker.address} {why}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uotft.runs.remote", json.dumps(order)],
        cwd=needed["root"],
        env=environment.unlaunched(needed["environment"] | _of_the_nanny()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    place = {"began": gethostname(), "worker": worker.address, "process": process.pid}
    worker.log_event(topic, {"key": key, **place})
    with process as training:
        assert training.stdout
        for line in training.stdout:
            message = json.loads(line)
            if "log" in message or "step" in message:
                worker.log_event(topic, {"key": key, **message})
            else:
                end = message
    code = process.returncode
    return {"code": 128 - code if code < 0 else code, **end}


def _of_the_nanny() -> dict[str, str]:
    """What Dask's nanny sets for its worker, as "": one thread, and glibc's trimming.

    A training has settings of its own (`cpu_threads`, `environment.allocator`). What the worker's
    user has set to other values stays.
    """
    import dask

    found = dask.config.get("distributed.nanny.pre-spawn-environ")
    return {name: "" for name, value in found.items() if environment.get(name) == str(value)}


def is_training(process: int) -> bool:
    """On a worker: whether a training that it has started has not ended."""
    import psutil  # Dask's own

    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(process).ppid() == os.getpid())
    return False


def terminate(process: int) -> bool:
    """On a worker: ask a training that it has started to save and end; False if it has ended."""
    found = is_training(process)
    with suppress(ProcessLookupError):
        if found:
            os.kill(process, signal.SIGTERM)
    return found


def _see(root: Path, path: Path, fingerprint: str) -> None:
    """Wait until this machine sees a file as a worker wrote it: NFS keeps what it has for a while.

    Listing a folder has it asked anew.
    """
    until = monotonic() + SEEN_S
    while True:
        for folder in reversed(path.relative_to(root).parents):
            with suppress(OSError):
                os.listdir(root / folder)
        with suppress(OSError, UserError):
            if storage.fingerprint(path) == fingerprint:
                return
        if monotonic() > until:
            raise UserError(
                f"{path}: a worker has written it, and it is not seen here: all machines need the "
                "project's folder on one shared file system"
            )
        sleep(POLL_S)


def _brief(error: object) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
