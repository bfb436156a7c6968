"""One worker process; `uotft.runs.processes` starts it and hands it work, one piece at a time.

A piece of work is a list of arguments. EVENTS is the event log to write to:

    EVENTS embed DATASET
    EVENTS pretrain
    EVENTS train TARGET STRATEGY SEED [SETTING=VALUE …]

Given on the command line in place of `--channel FD`, they are the only piece of work. Work that
fails ends the process, so later work never starts from what a failure left in memory.

python -m uotft.runs.worker --channel FD
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from uotft.core import environment, jsonl, messages, signals
from uotft.core.context import Context
from uotft.core.errors import Diverged, Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Cell
from uotft.core.signals import GRACE_S, INTERRUPTED, StopRequest
from uotft.runs import channel, machines

logger = logging.getLogger("uotft.runs.worker")  # __name__ is __main__ here


def main(arguments: list[str]) -> int:
    """Do the work of a channel, or the one piece in ``arguments``; returns the exit code."""
    signals.die_with_parent()
    messages.setup()
    if arguments[0] == channel.OPTION:
        with socket.socket(fileno=int(arguments[1])) as end:
            return serve(end)
    return attempt(arguments)


def serve(end: socket.socket) -> int:
    """Do pieces of work until one fails or the channel is closed; returns the exit code."""
    from uotft.pipeline import embed, pretrain, train  # noqa: F401  takes seconds; do it before work arrives

    while found := channel.receive(end):
        arguments, held = found
        code = attempt(arguments)
        for number in held:
            os.close(number)
        if code:
            return code
        channel.answer(end)
    return 0


def attempt(arguments: list[str]) -> int:
    """Do one piece of work; returns the exit code, and logs the error if it is not 0."""
    events, stop = Path(arguments[0]), StopRequest()
    try:
        work(arguments, stop)
    except Interrupted:  # the process that asked for it prints the message
        return INTERRUPTED
    except UserError as error:
        # all processes raise the same Diverged, so one of them prints it
        if not isinstance(error, Diverged) or environment.rank() == 0:
            _note(events, error)
            logger.error(error)
        return 2
    except Exception as error:
        if _only_lost_another(error, stop):
            return INTERRUPTED
        _note(events, error)
        if _out_of_memory(error):
            advice = "use fewer --num-processes or smaller batches in params.yaml"
            logger.error(f"out of memory: {error}; {advice}")
            return 1
        if not isinstance(error, OSError) or error.filename is None:
            raise
        logger.error(f"{error.filename}: {error.strerror}")
        return 2
    finally:
        stop.listen_no_more()
    return 0


def work(arguments: list[str], stop: StopRequest) -> None:
    """Do one piece of work, and raise its errors. Only rank 0 logs and shows progress.

    SIGTERM ends the process at once before ``stop.listen``, when there is nothing to save yet.
    """
    # these imports take seconds
    from uotft.pipeline.embed import embed
    from uotft.pipeline.pretrain import pretrain
    from uotft.pipeline.train import train
    from uotft.pipeline.workspace import Workspace
    from uotft.runs import meeting
    from uotft.training import runtime

    events, stage, *cell = arguments
    ws = Workspace.find().with_changes(cell[3:])
    seed, precision = 0, "no"
    if stage == "train":
        ws = ws.of(cell[1])
        seed, precision = int(cell[2]), ws.params.train.recipe.precision
    elif stage == "pretrain":
        seed, precision = ws.params.pretrain.seed, ws.params.pretrain.recipe.precision
    machines.choose_interface()
    meeting.meet()
    accelerator = runtime.start(seed, ws.params.cpu_threads, precision)
    stop.listen()
    main_process = accelerator.is_main_process

    def progress(items: Iterable[Any], label: str) -> Iterable[Any]:
        return track(items, label) if main_process else items

    def log(step: int, numbers: dict[str, float]) -> None:
        if main_process:
            jsonl.append(Path(events), {"step": step, "numbers": numbers})

    def asked() -> bool:
        return bool(stop)

    def report(message: str) -> None:
        _note(Path(events), UserError(message))
        logger.error(message)

    context = Context(accelerator, log, progress, asked)
    with machines.watched(asked, report):
        if stage == "train":
            train(ws, Cell(cell[0], cell[1], seed), context)
        elif stage == "embed":
            embed(ws, cell[0], context)
        else:
            pretrain(ws, context)
    runtime.end(accelerator)


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error class of its own only for GPUs, so texts count."""
    texts = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _only_lost_another(error: BaseException, stop: StopRequest) -> bool:
    """Whether ``error`` is only a lost connection to a worker that failed and said why itself.

    Then this process gets SIGTERM soon after the error. It waits for that, and prints nothing,
    because its own message would hide the one that explains the failure. Of several machines, the
    first worker of this one finds out within a minute whether another machine is lost.
    """
    lost = machines.lost_connection(error)
    patience = monotonic() + (60 if environment.machine() else GRACE_S)
    while lost and not stop and monotonic() < patience:
        sleep(0.05)
    return lost and bool(stop)


def _note(events: Path, error: Exception) -> None:
    """Tag the MLflow run with the failure; of several workers the last one counts."""
    message = str(error) if isinstance(error, UserError) else repr(error)
    with suppress(UserError, OSError):  # the disk itself may have failed
        jsonl.append(events, {"tags": {"failure": message}})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
