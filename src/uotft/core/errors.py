"""The errors that the command line turns into one message and an exit code."""

from __future__ import annotations

import signal


class UserError(Exception):
    """The message names the file or setting, the value it got, and what to do; exit code 2."""


class Diverged(UserError):
    """A loss or the weights are no longer finite; the last good checkpoint is left alone."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended a command; its workers have stopped, its run is marked KILLED."""


class Pruned(Exception):
    """A search stopped a training that fell behind; its workers are gone, its run is KILLED."""


class WorkerFailed(Exception):
    """A worker ended with an error, which it has printed, or was killed by a signal.

    ``code`` is its exit code as a shell has it: 128 and the signal's number for a signal.
    """

    def __init__(self, code: int, process: int = 0) -> None:
        self.code = code if code > 0 else 128 - code
        message = f"the worker ended with exit code {self.code}"
        if code < 0:  # of several workers the one that failed is named before, by its rank
            message = killed(f"the worker, process {process},", -code)
        super().__init__(message)


def killed(who: str, number: int) -> str:
    """The message about a process that a signal ended: which process, why, and what to do."""
    advice = {
        signal.SIGKILL: "most often that is the kernel, or a container's limit, for want of memory "
        "(`dmesg` says so): use fewer --num-processes or smaller batches in params.yaml",
        signal.SIGBUS: "most often a full disk, or /dev/shm, under a file mapped into memory",
        signal.SIGALRM: "it could not finish its step and save in time after it was asked to stop",
    }.get(signal.Signals(number), "that is a fault of the program or of a library")
    return f"{who} was ended by {signal.Signals(number).name}: {advice}"
