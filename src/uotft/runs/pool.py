"""Several trainings at a time on this machine, each with its own workers.

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
from uotft.runs import processes
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
    """``width`` crews, each for one training at a time. Make one with `pool`."""

    def __init__(self, crews: Sequence[Crew], asked: StopRequest) -> None:
        self._asked = asked
        self._free: SimpleQueue[Crew] = SimpleQueue()
        for crew in crews:
            self._free.put(crew)
        self._threads = ThreadPoolExecutor(len(crews), "training")

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
def pool(fleet: Fleet, ws: Workspace, width: int) -> Iterator[Pool]:
    """Start ``width`` crews on a project, and one process that sends their runs to MLflow.

    Each crew gets its share of the GPUs. The workers of several crews print only warnings and
    errors, since their progress bars would overwrite each other on one terminal.
    """
    asked = StopRequest()
    with ExitStack() as stack:
        stack.enter_context(session.sending(ws.tracking))
        crews: list[Crew] = []
        for place in range(width):
            changes = environment.share_of_gpus(place, fleet.processes)
            if width > 1:
                changes[environment.LOG_LEVEL] = "WARNING"
            crews.append(stack.enter_context(processes.crew(fleet, ws.root, changes, asked)))
            crews[-1].start()
        made = Pool(crews, asked)
        stack.callback(made.close)
        yield made
