"""Children of the test's own process: they spare each training the seconds that imports take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from support.ports import free_port


def fork(work: Callable[[], object]) -> int:
    """Start ``work`` in a child; returns its process id."""
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 (the child must never return into pytest)
        print(repr(error), file=sys.stderr)  # noqa: T201
        os._exit(1)


def pair(work: Callable[[int], object]) -> list[int]:
    """Start ``work(rank)`` in two children that `torch.distributed.run` seems to have started."""
    return crew(work, 2)


def crew(work: Callable[[int], object], world: int) -> list[int]:
    """The same in ``world`` children."""
    port = str(free_port())

    def child(rank: int) -> None:
        forget_accelerator()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # Accelerate warns where nobody has said how many threads a process may use
        threads = {"OMP_NUM_THREADS": "1"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= address | threads
        work(rank)

    return [fork(lambda rank=rank: child(rank)) for rank in range(world)]


def at_call(number: int, work: Callable[[], object]) -> Callable[..., None]:
    """What does ``work`` at its ``number``-th call, and nothing before."""
    calls = []

    def count(*_: object) -> None:
        calls.append(1)
        if len(calls) == number:
            work()

    return count


def killed(pid: int) -> bool:
    """Wait for a child; whether a signal ended it, and not an error."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def forget_accelerator() -> None:
    """Accelerate keeps one state for all accelerators of a process; let the next one make it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
