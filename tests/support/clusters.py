"""A Dask cluster on this machine: a scheduler and workers, each a real process that can be lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import psutil
from distributed import Client

from support.commands import users_environment
from support.repository import REPOSITORY


@dataclass
class Cluster:
    """A scheduler, at ``address``, and its workers; their logs are in ``folder``."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The file by which commands find the scheduler."""
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        """Where the scheduler listens."""
        return json.loads(self.file.read_text())["address"]

    def scheduler(self, allowed_failures: int = 3) -> None:
        """Start the scheduler on a free port."""
        words = "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self.file)
        name = "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"
        self._start("scheduler", *words, **{name: str(allowed_failures)})
        until = monotonic() + 60
        while not (self.file.exists() and self.file.read_text().endswith("}")):
            assert monotonic() < until, (self.folder / "scheduler.log").read_text()
            sleep(0.05)

    def worker(
        self, code: Path = REPOSITORY / "src", *, nanny: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a worker for one training at a time, which has the package in ``code``.

        With a ``nanny``, which users have by default, the worker is a child of what is returned.
        """
        words = "--nthreads", "1", "--nanny" if nanny else "--no-nanny"
        words += "--local-directory", str(self.folder)
        return self._start("worker", self.address, *words, PYTHONPATH=str(code))

    def wait_for(self, workers: int) -> None:
        """Wait until the scheduler knows so many workers: a busy machine starts them slowly."""
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)

    def _start(self, kind: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--no-dashboard"]
        with (self.folder / f"{kind}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=users_environment() | environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process


@contextmanager
def cluster(folder: Path, workers: int, **scheduler: int) -> Iterator[Cluster]:
    """A cluster for the block; it ends with all that it has started."""
    made = Cluster(folder)
    try:
        made.scheduler(**scheduler)
        for _ in range(workers):
            made.worker()
        yield made
    finally:
        for process in made.processes:
            lose(process)


def trainings(worker: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """{cell: process} of the trainings that a worker has started."""
    found = {}
    for process in _below(worker):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "uotft.runs.remote" in words:
            found["-".join(map(str, json.loads(words[-1])["cell"]))] = process
    return found


def lose(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker's whole machine at once: all below it, before any of them hears of it."""
    every = [*_below(worker), worker]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in every:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
    worker.wait()


def _below(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(worker.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
