"""The errors that the command line turns into one message and an exit code."""


class UserError(Exception):
    """The message names the file or setting, the value it got, and what to do; exit code 2."""


class Diverged(UserError):
    """A loss or the weights are no longer finite; the last good checkpoint is left alone."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended a command; its workers have stopped, a run of it is marked KILLED."""


class Pruned(Exception):
    """A search has seen enough of a training; its workers have stopped, its run is KILLED."""


class WorkerFailed(Exception):
    """A worker ended with an error, which it has printed; ``code`` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the worker ended with exit code {code}")
        self.code = code
