"""Several trainings at a time on this machine, each with workers of its own that stay for the next.

A worker imports torch once, and then takes one cell after the other: `uotft train --all`,
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
Failure = UserError | WorkerFailed | Pruned  # of one training; the others go on


def width(params: Params, num_processes: int, wanted: int = 0) -> int:
    """How many trainings run at a time: ``wanted``, or else ``jobs`` of params.yaml.

    If both are 0, as many as GPUs or cores allow. Without a GPU each process of a training takes
    ``cpu_threads`` cores; 0 means all of them.
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
        """``work(crew, item)`` of every item; yields each result, or why it failed, in order.

        When it is closed early, what is under way is stopped. Raises ``Interrupted`` when this
        process was asked to stop, after all workers have saved.
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
            # each has a context of its own: by it MLflow's parent run is known
            futures = [self._threads.submit(copy_context().run, one, item) for item in items]
            try:
                for future in futures:
                    _wait_for(future, futures)
                    yield future.result()
            except BaseException:
                self._asked.count += 1  # the others stop, too
                raise
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)

    def close(self) -> None:
        """End the threads; work that is still under way is asked to stop."""
        self._asked.count += 1
        self._threads.shutdown()


def _wait_for(wanted: Future[R], futures: Sequence[Future[R]]) -> None:
    """Wait until one is done; raises at once what another one has raised."""
    while not wanted.done():
        open_ = [future for future in futures if not future.done()]
        # not for ever: a signal that another thread gets wakes nobody who waits for a lock
        for future in wait(open_, signals.POLL_S, FIRST_COMPLETED).done:
            future.result()


@contextmanager
def pool(fleet: Fleet, ws: Workspace, width: int) -> Iterator[Pool]:
    """``width`` crews of ``fleet`` on a project, and one sender of their runs.

    Each crew gets its share of the GPUs. With several crews the workers print warnings and errors
    alone, since on one terminal their progress bars would write over each other.
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
