"""One training process; `uotft.launch` starts it, and so may `accelerate launch -m uotft.worker`.

python -m uotft.worker JOURNAL pretrain
python -m uotft.worker JOURNAL train TARGET STRATEGY SEED
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from uotft import runtime, stages
from uotft.errors import UserError
from uotft.progress import track


def main(arguments: list[str]) -> None:
    """Train; only the main process writes the journal and shows progress."""
    journal, stage, *cell = arguments
    ws = stages.Workspace.find()
    seed = int(cell[2]) if stage == "train" else ws.params.pretrain.seed
    accelerator = runtime.start(seed, ws.params.cpu_threads)
    main_process = accelerator.is_main_process

    def progress(items: Iterable[int], label: str) -> Iterable[int]:
        return track(items, label) if main_process else items

    with Path(journal).open("a", encoding="utf-8") as file:

        def log(step: int, numbers: dict[str, float]) -> None:
            if main_process:
                file.write(json.dumps({"step": step, "numbers": numbers}) + "\n")
                file.flush()

        if stage == "train":
            target, strategy, _ = cell
            stages.train(ws, target, strategy, seed, accelerator, log=log, progress=progress)
        else:
            stages.pretrain(ws, accelerator, log=log, progress=progress)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"uotft: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
