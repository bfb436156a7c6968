"""Errors that the command line turns into a message and an exit code."""

from __future__ import annotations

import signal


class UserError(Exception):
    """The message names the file or setting, the value it got, and what to do; exit code 2."""


class Diverged(UserError):
    """A loss or the weights are no longer finite; the last good checkpoint is kept."""


class Impossible(UserError):
    """The data do not allow these settings, or they exclude each other; a search skips them."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended a command; its workers have stopped, its run is marked KILLED."""


class Pruned(Exception):
    """A search stopped a training that fell behind; its workers have stopped, its run is KILLED."""


class WorkerFailed(Exception):
    """A worker ended with an error, which it has printed, or was killed by a signal.

    ``code`` is its exit code as in a shell: for a signal, 128 plus its number. ``why`` is its
    error, which it has printed, for lists of what failed; "" if it is not known.
    """

    def __init__(self, code: int, process: int = 0, why: str = "") -> None:
        self.why = why
        self.code = code if code > 0 else 128 - code
        message = f"the worker ended with exit code {self.code}"
        if code < 0:  # with several workers, an earlier message names the one that failed
            message = killed(f"the worker, process {process},", -code)
        super().__init__(message)


def killed(who: str, number: int) -> str:
    """The message about a process that a signal ended: which process, why, and what to do."""
    advice = {
        signal.SIGKILL: "most often memory ran out, and the kernel or the container killed it "
        "(see `dmesg`): use fewer --num-processes or smaller batches in params.yaml",
        signal.SIGBUS: "most often a disk or /dev/shm is full, under a memory-mapped file",
        signal.SIGALRM: "after it was asked to stop, it could not finish its step and save in time",
    }.get(signal.Signals(number), "a bug in the program or a library")
    return f"{who} was ended by {signal.Signals(number).name}: {advice}"
