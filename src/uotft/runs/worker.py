"""One worker process; `uotft.runs.processes` starts it and hands it work, one piece at a time.

The words of a piece of work, which may also stand in the place of `--channel FD`:

    EVENTS embed DATASET
    EVENTS pretrain
    EVENTS train TARGET STRATEGY SEED [SETTING=VALUE …]

Work that fails ends the process. So what a failure leaves behind in memory spoils no later work.

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
from uotft.runs import channel

logger = logging.getLogger("uotft.runs.worker")  # __name__ is __main__ here


def main(arguments: list[str]) -> int:
    """Do the work of a channel, or the one piece that ``arguments`` name; returns the exit code."""
    signals.die_with_parent()
    messages.setup()
    if arguments[0] == channel.OPTION:
        with socket.socket(fileno=int(arguments[1])) as end:
            return serve(end)
    return attempt(arguments)


def serve(end: socket.socket) -> int:
    """Do one piece of work after the other, until one fails or there is no more."""
    from uotft.pipeline import embed, pretrain, train  # noqa: F401  seconds, before work is there

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
    """Embed or train; returns the exit code, and says on standard error why it is not 0."""
    events, stop = Path(arguments[0]), StopRequest()
    try:
        work(arguments, stop)
    except Interrupted:  # the process that asked for it says so
        return INTERRUPTED
    except UserError as error:
        # of Diverged all processes have the same message
        if not isinstance(error, Diverged) or environment.rank() == 0:
            _note(events, error)
            logger.error(error)
        return 2
    except Exception as error:
        if _for_want_of_another(error, stop):
            return INTERRUPTED
        _note(events, error)
        if _for_want_of_memory(error):
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
    """The same; raises what went wrong. Only rank 0 writes the event log and shows progress.

    Until the training begins SIGTERM ends this process: it has nothing to save.
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
        seed, precision = int(cell[2]), ws.params.train.recipe.precision
    elif stage == "pretrain":
        seed, precision = ws.params.pretrain.seed, ws.params.pretrain.recipe.precision
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

    context = Context(accelerator, log, progress, asked)
    if stage == "train":
        train(ws, Cell(cell[0], cell[1], seed), context)
    elif stage == "embed":
        embed(ws, cell[0], context)
    else:
        pretrain(ws, context)
    runtime.end(accelerator)


def _for_want_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error of its own for a GPU, for the CPU only a text."""
    texts = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _for_want_of_another(error: BaseException, stop: StopRequest) -> bool:
    """Whether this process is asked to stop because another one has failed, which has said why.

    To this one it is a lost connection, which would bury that message, and often comes before
    SIGTERM.
    """
    lost = any(word in str(error) for word in ("Connection", "gloo", "NCCL"))
    patience = monotonic() + GRACE_S
    while lost and not stop and monotonic() < patience:
        sleep(0.05)
    return lost and bool(stop)


def _note(events: Path, error: Exception) -> None:
    """Tell the run why it fails; of several workers the last one counts."""
    message = str(error) if isinstance(error, UserError) else repr(error)
    with suppress(UserError, OSError):  # what has failed is perhaps the disk
        jsonl.append(events, {"tags": {"failure": message}})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
