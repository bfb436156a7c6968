"""The process that sends runs to MLflow while trainings write them.

    python -m uotft.tracking.sender HOME

Standard input names the folders of the outbox, a line each. It is a pipe that the trainings and
their workers hold open. It closes when all of them have ended, for whatever reason; then the sender
sends the rest. It retries with back-off and never blocks training.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

from uotft.core import locks, messages
from uotft.core.errors import UserError
from uotft.tracking.delivery import Delivery, Early
from uotft.tracking.outbox import SENDER, close

POLL_S = 0.5  # time between two readings of a folder
LONGEST_S = 30  # longest time between two attempts while the store does not answer

logger = logging.getLogger("uotft.tracking.sender")  # __name__ is __main__ here


class Folder:
    """One folder of the outbox, which no other process sends meanwhile."""

    def __init__(self, home: Path, path: Path) -> None:
        self.path = path
        self.held = ExitStack()
        busy = f"{path}: another process is sending it"
        self.held.enter_context(locks.exclusive(path / SENDER, busy))
        self.delivery = Delivery(home, path)
        self.failed = 0  # attempts that failed, in a row
        self.due = 0.0

    def attempt(self) -> bool:
        """Send what is new; returns whether that was the last of it."""
        try:
            self.delivery.send_new()
            if self.delivery.has_ended:
                self.delivery.finish()
                return True
        except Exception as error:  # noqa: BLE001  training continues, however the store fails
            if self.delivery.has_ended and isinstance(error, UserError):
                return True  # MLflow refused a part for good: the folder stays
            # the second failure in a row: a single one is often over before anyone can act
            if self.failed == 1 and not isinstance(error, Early):
                why = self.delivery.why(error)
                logger.warning("%s; training continues, and its metrics are sent later", why)
            self.failed += 1
        else:
            if self.failed > 1:
                logger.info("MLflow answers again")
            self.failed = 0
        self.due = monotonic() + min(POLL_S * 2**self.failed, LONGEST_S)
        return False

    def finish(self) -> bool:
        """Send the rest, now that nobody writes it any more; returns whether all is sent."""
        close(self.path)
        tries, patience = 1 if self.failed else 2, monotonic() + LONGEST_S
        while tries:
            try:
                self.delivery.finish()
            except Early:  # a child run may end before its parent is in the store
                tries = tries if monotonic() < patience else 0
                sleep(POLL_S)
            except Exception:  # noqa: BLE001  the parent process reports what is not sent
                tries -= 1
            else:
                return True
        return False


def main(home: Path) -> int:
    """Send all folders that standard input names; returns 0, or 1 if a part is not sent."""
    folders: list[Folder] = []
    rest, is_over = b"", False
    while not is_over:
        soonest = min((folder.due for folder in folders), default=monotonic() + LONGEST_S)
        if select.select([sys.stdin], [], [], max(0.0, soonest - monotonic()))[0]:
            found = os.read(sys.stdin.fileno(), 1 << 16)
            is_over = not found
            *names, rest = (rest + found).split(b"\n")
            for name in names:
                try:
                    folders.append(Folder(home, Path(os.fsdecode(name))))
                except UserError as error:  # another process sends it already
                    logger.warning(error)
        for folder in [f for f in folders if f.due <= monotonic() and not is_over]:
            if folder.attempt():
                folder.held.close()
                folders.remove(folder)
    return 0 if all([folder.finish() for folder in folders]) else 1


if __name__ == "__main__":
    messages.setup()
    sys.exit(main(Path(sys.argv[1])))
