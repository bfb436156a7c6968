"""One cell as a process of its own, which a worker of a scheduler starts (`uotft.runs.scheduler`).

It does what `uotft train` does for one cell: it locks the cell, selects, goes on from the last
checkpoint, and tracks the run. If another machine still holds the lock, it waits. Then it goes on
with what is left, or leaves a finished cell as it is. So a cell that is started twice is trained
once.

Standard output carries JSON lines: messages, validations, and at last how the training ended.

python -m uotft.runs.remote '{"cell": ["digits", "uot", 0], "overrides": [], "processes": 1, …}'
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from time import sleep
from typing import Any

from uotft.core import environment, locks, messages, signals, storage
from uotft.core.errors import Interrupted, UserError, WorkerFailed
from uotft.core.records import Cell
from uotft.core.settings import Params
from uotft.core.signals import INTERRUPTED
from uotft.pipeline import freshness
from uotft.pipeline.workspace import Workspace
from uotft.runs import job, processes
from uotft.runs.processes import Crew, Fleet, Points
from uotft.tracking import session

BUSY_S = 2.0  # between two tries while another process holds the cell

logger = logging.getLogger("uotft.runs.remote")  # __name__ is __main__ here


class Report(logging.Handler):
    """The pipe to the worker: one JSON line a message."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def say(self, **message: Any) -> None:
        """Send one message; nobody may be left to read it."""
        with suppress(OSError):
            os.write(self._pipe, json.dumps(message).encode() + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line of the log."""
        self.say(log=record.levelno, text=record.getMessage())

    def points(self, points: Points) -> None:
        """Send validations; the rest of the numbers goes to MLflow alone."""
        for step, numbers in points:
            if found := {name: n for name, n in numbers.items() if name.startswith("val/")}:
                self.say(step=step, numbers=found)


def main(order: dict[str, Any]) -> int:
    """Train the cell of ``order``; returns the exit code of `uotft train`."""
    signals.die_with_parent()
    signals.install_as_ctrl_c()
    report = Report(os.dup(1))
    os.dup2(2, 1)  # what libraries print must not get between the lines
    messages.setup()
    logging.getLogger("uotft").addHandler(report)
    try:
        environment.prepare()
        report.say(**_train(order, report))
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    except WorkerFailed as error:
        report.say(why=error.why or str(error))
        return error.code
    except UserError as error:
        report.say(mistake=str(error))
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        report.say(mistake=f"{os.fsdecode(error.filename)}: {error.strerror}")
        return 2
    return 0


def _train(order: dict[str, Any], report: Report) -> dict[str, Any]:
    """Train, unless the cell is finished; a line for the user, and the files to look for."""
    cell = Cell(*order["cell"])
    params = Params.model_validate(order["params"])  # `job.train` refuses if today's differ
    ws = Workspace(Workspace.nearest(), params, tuple(order["overrides"]))
    with (
        session.inside(order["parent"]),
        processes.crew(Fleet(order["processes"]), ws.root) as crew,
    ):
        crew.start()
        line = _when_free(ws, cell, crew, report)
    made = ws.cell("models", cell)
    files = [made / name for name in ("model.json", freshness.FINGERPRINT)]
    return {
        "line": line,
        "made": freshness.of_files(ws, [path for path in files if path.exists()]),
        "history": [
            [
                int(row["step"]),
                {name: float(row[name]) for name in row if _is_validation(row, name)},
            ]
            for row in storage.read_csv(made / "history.csv")
        ],
    }


def _is_validation(row: dict[str, str], name: str) -> bool:
    return name.startswith("val/") and bool(row[name])


def _when_free(ws: Workspace, cell: Cell, crew: Crew, report: Report) -> str:
    """Train the cell once no other process holds it; a line for the user."""
    told = False
    while True:
        try:
            return job.train(ws, cell, crew, current=True, watch=report.points)
        except locks.Busy as error:
            if not told:
                logger.warning("waiting: %s", error)
            told = True
            sleep(BUSY_S)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
