"""Several trainings at a time: on this machine, each with its own workers, or by a scheduler.

A worker imports torch once and then trains one cell after the other. Used by `uotft train --all`,
`uotft experiment run` and `uotft search`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

from uotft.core import environment, signals
from uotft.core.errors import Interrupted, Pruned, UserError, WorkerFailed
from uotft.core.settings import Params
from uotft.core.signals import StopRequest
from uotft.pipeline.workspace import Workspace
from uotft.runs import processes, scheduler
from uotft.runs.processes import Crew, Fleet
from uotft.tracking import session

T = TypeVar("T")
R = TypeVar("R")
Failure = UserError | WorkerFailed | Pruned  # ends one training and no other


def width(params: Params, num_processes: int, wanted: int = 0) -> int:
    """How many trainings run at a time: ``wanted``, or ``jobs`` of params.yaml if that is 0.

    If both are 0, as many as GPUs or cores allow: each process of a training takes one GPU, or
    without GPUs ``cpu_threads`` cores (0: all of them).
    """
    if jobs := wanted or params.jobs:
        return jobs
    if gpus := environment.gpus():
        return max(1, len(gpus) // num_processes)
    threads = params.cpu_threads
    return max(1, environment.cores() // (num_processes * threads)) if threads else 1


class Pool:
    """Crews, each for one training at a time. Make one with `pool`.

    ``at_once`` trainings run at a time; the others of the ``crews`` wait for a scheduler.
    """

    def __init__(self, crews: Sequence[Crew], asked: StopRequest, at_once: int = 0) -> None:
        self._asked = asked
        self.at_once = at_once or len(crews)
        self._free: SimpleQueue[Crew] = SimpleQueue()
        for crew in crews:
            self._free.put(crew)
        self._threads = ThreadPoolExecutor(len(crews), "training")

    def is_stopping(self) -> bool:
        """Whether this process was asked to stop, or the work in progress."""
        return bool(self._asked)

    def run(
        self, work: Callable[[Crew, T], R], items: Sequence[T]
    ) -> Generator[R | Failure, None, None]:
        """Call ``work(crew, item)`` for every item; yields results or failures, in order of items.

        Closing the generator early stops the work in progress. If this process is asked to stop,
        raises `Interrupted` after all workers have saved.
        """

        def one(item: T) -> R | Failure:
            if self._asked:
                raise Interrupted("interrupted")
            crew = self._free.get()
            try:
                return work(crew, item)
            except (UserError, WorkerFailed, Pruned) as error:
                return error
            finally:
                self._free.put(crew)

        self._asked.count = 0
        with signals.passed_on([], self._asked):
            # each thread gets a copy of the context, which holds MLflow's parent run
            futures = [self._threads.submit(copy_context().run, one, item) for item in items]
            try:
                for future in futures:
                    _wait_for(future, futures)
                    yield future.result()
            except BaseException:
                self._asked.count += 1  # stops the other trainings
                raise
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)

    def close(self) -> None:
        """End the threads, and ask work in progress to stop."""
        self._asked.count += 1
        self._threads.shutdown()


def _wait_for(wanted: Future[R], futures: Sequence[Future[R]]) -> None:
    """Wait until ``wanted`` is done; raises at once if another future has raised."""
    while not wanted.done():
        open_ = [future for future in futures if not future.done()]
        # with a timeout: a signal that the kernel gives to another thread does not end a wait
        for future in wait(open_, signals.POLL_S, FIRST_COMPLETED).done:
            future.result()


@contextmanager
def pool(fleet: Fleet, ws: Workspace, wanted: int, most: int) -> Iterator[Pool]:
    """Start crews on a project, ``most`` at the most, for ``wanted`` trainings at a time.

    0 is as many as GPUs or cores allow, or the workers of the scheduler that ``fleet`` names. On
    this machine each crew gets its share of the GPUs, and one process sends all runs to MLflow. The
    workers of several crews print only warnings and errors, since their progress bars would
    overwrite each other on one terminal.
    """
    asked = StopRequest()
    with ExitStack() as stack:
        if fleet.scheduler:
            there = scheduler.crews(fleet, ws, min(wanted or most, most), asked)
            crews, at_once = stack.enter_context(there)
            made = Pool(crews, asked, at_once)
        else:
            number = min(width(ws.params, fleet.processes, wanted), most)
            made = Pool(_started(stack, fleet, ws, number, asked), asked)
        stack.callback(made.close)
        yield made


def _started(
    stack: ExitStack, fleet: Fleet, ws: Workspace, number: int, asked: StopRequest
) -> list[Crew]:
    """Start ``number`` crews on this machine, which end with the ``stack``."""
    stack.enter_context(session.sending(ws.tracking))
    crews: list[Crew] = []
    for place in range(number):
        changes = environment.share_of_gpus(place, fleet.processes)
        if number > 1:
            changes[environment.LOG_LEVEL] = "WARNING"
        crews.append(stack.enter_context(processes.crew(fleet, ws.root, changes, asked, number)))
        crews[-1].start()
    return crews
