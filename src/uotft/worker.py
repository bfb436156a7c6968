"""One training process; `uotft.launch` starts it, and so may `accelerate launch -m uotft.worker`.

python -m uotft.worker JOURNAL pretrain
python -m uotft.worker JOURNAL train TARGET STRATEGY SEED [SUBSET]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from uotft.errors import Diverged, Interrupted, UserError
from uotft.processes import GRACE_S, INTERRUPTED, die_with_parent
from uotft.progress import track


def main(arguments: list[str]) -> None:
    """Train; only the main process writes the journal and shows progress."""
    stop = _stop_on_sigterm()
    die_with_parent()
    from uotft import runtime, stages  # seconds, in which a signal may come

    journal, stage, *cell = arguments
    ws = stages.Workspace.find().with_subset("".join(cell[3:]))
    settings = ws.params.train if stage == "train" else ws.params.pretrain
    seed = int(cell[2]) if stage == "train" else ws.params.pretrain.seed
    accelerator = runtime.start(seed, ws.params.cpu_threads, settings.recipe.precision)
    main_process = accelerator.is_main_process

    def progress(items: Iterable[int], label: str) -> Iterable[int]:
        return track(items, label) if main_process else items

    with Path(journal).open("a", encoding="utf-8") as file:

        def log(step: int, numbers: dict[str, float]) -> None:
            if main_process:
                file.write(json.dumps({"step": step, "numbers": numbers}) + "\n")
                file.flush()

        if stage == "train":
            target, strategy = cell[:2]
            stages.train(
                ws, target, strategy, seed, accelerator, log=log, progress=progress, stop=stop
            )
        else:
            stages.pretrain(ws, accelerator, log=log, progress=progress, stop=stop)
    accelerator.end_training()


def _stop_on_sigterm() -> Callable[[], bool]:
    """SIGTERM only leaves word: the loop finishes its step and saves, if it can within GRACE_S."""
    asked = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.alarm(GRACE_S)

    signal.signal(signal.SIGTERM, ask)
    return lambda: bool(asked)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Diverged as error:  # all processes have the same message
        if os.environ.get("RANK", "0") == "0":
            print(f"uotft: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except UserError as error:
        print(f"uotft: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Interrupted:  # the process that asked for it says so
        sys.exit(INTERRUPTED)
