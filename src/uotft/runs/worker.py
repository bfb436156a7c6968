"""One worker process; `uotft.runs.job` starts it.

python -m uotft.runs.worker JOURNAL embed DATASET
python -m uotft.runs.worker JOURNAL pretrain
python -m uotft.runs.worker JOURNAL train TARGET STRATEGY SEED [SETTING=VALUE …]
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

from uotft.core import jsonl
from uotft.core.context import Context
from uotft.core.errors import Diverged, Interrupted, UserError
from uotft.core.progress import track
from uotft.core.records import Cell
from uotft.runs.processes import GRACE_S, INTERRUPTED, die_with_parent

ASKED: list[int] = []  # the SIGTERMs that have come


def main(arguments: list[str]) -> None:
    """Embed or train; only the main process writes the journal and shows progress."""
    die_with_parent()
    from uotft.pipeline import (
        embed,
        pretrain,
        train,
        workspace,  # seconds, in which SIGTERM ends us: there is nothing to save
    )
    from uotft.training import runtime

    journal, stage, *cell = arguments
    ws = workspace.Workspace.find().with_changes(cell[3:])
    seed, precision = 0, "no"
    if stage == "train":
        seed, precision = int(cell[2]), ws.params.train.recipe.precision
    elif stage == "pretrain":
        seed, precision = ws.params.pretrain.seed, ws.params.pretrain.recipe.precision
    accelerator = runtime.start(seed, ws.params.cpu_threads, precision)
    stop = _stop_on_sigterm()
    main_process = accelerator.is_main_process

    def progress(items: Iterable[Any], label: str) -> Iterable[Any]:
        return track(items, label) if main_process else items

    def log(step: int, numbers: dict[str, float]) -> None:
        if main_process:
            jsonl.append(Path(journal), {"step": step, "numbers": numbers})

    if stage == "train":
        target, strategy = cell[:2]
        train.train(
            ws,
            Cell(target, strategy, seed),
            Context(accelerator, log=log, progress=progress, stop=stop),
        )
    elif stage == "embed":
        embed.embed(ws, cell[0], Context(accelerator, progress=progress, stop=stop))
    else:
        pretrain.pretrain(ws, Context(accelerator, log=log, progress=progress, stop=stop))
    accelerator.end_training()


def _stop_on_sigterm() -> Callable[[], bool]:
    """SIGTERM only leaves word: the loop finishes its step and saves, if it can within GRACE_S."""

    def ask(number: int, frame: FrameType | None) -> None:
        if not ASKED:  # a second one gives no more time
            signal.alarm(GRACE_S)
        ASKED.append(number)

    signal.signal(signal.SIGTERM, ask)
    return lambda: bool(ASKED)


def _for_want_of_memory(error: BaseException) -> bool:
    """torch has an error of its own for a GPU, and words for the CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate")
    return isinstance(error, MemoryError) or any(said in str(error) for said in words)


def _for_want_of_another(error: BaseException) -> bool:
    """Whether the launcher ends this process because another one, which has said why, has failed.

    To us it is a lost connection, which would bury that message, and often comes before SIGTERM.
    """
    lost = any(word in str(error) for word in ("Connection", "gloo", "NCCL"))
    patience = monotonic() + GRACE_S
    while lost and not ASKED and monotonic() < patience:
        sleep(0.05)
    return lost and bool(ASKED)


def _note(error: Exception) -> None:
    """Leave word for the run why it fails; of several workers the last one counts."""
    said = str(error) if isinstance(error, UserError) else repr(error)
    with suppress(UserError, OSError):  # what has failed is perhaps the disk
        jsonl.append(Path(sys.argv[1]), {"tags": {"failure": said}})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Interrupted:  # the process that asked for it says so
        sys.exit(INTERRUPTED)
    except UserError as error:
        # of Diverged all processes have the same message
        if not isinstance(error, Diverged) or os.environ.get("RANK", "0") == "0":
            _note(error)
            print(f"uotft: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Exception as error:
        if _for_want_of_another(error):
            sys.exit(INTERRUPTED)
        _note(error)
        if _for_want_of_memory(error):
            advice = "use fewer --num-processes or smaller batches in params.yaml"
            print(f"uotft: out of memory: {error}; {advice}", file=sys.stderr)  # noqa: T201
            sys.exit(1)
        if not isinstance(error, OSError) or error.filename is None:
            raise
        print(f"uotft: {error.filename}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
