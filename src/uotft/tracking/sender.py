"""The process that sends a run to MLflow while a training writes it.

    python -m uotft.tracking.sender ROOT FOLDER

Standard input is a pipe that the training and its workers hold open. It closes when all of them
have ended, for whatever reason; then the sender sends the rest. It retries with back-off and never
blocks training.
"""

from __future__ import annotations

import logging
import select
import sys
from pathlib import Path
from time import monotonic, sleep

from uotft.core import locks, messages
from uotft.tracking.delivery import Delivery, Early
from uotft.tracking.outbox import SENDER, close

POLL_S = 0.5  # time between two readings of the folder
LONGEST_S = 30  # longest time between two attempts while the store does not answer

logger = logging.getLogger("uotft.tracking.sender")  # __name__ is __main__ here


def main(root: Path, folder: Path) -> int:
    """Send the whole run; returns 0, or 1 if a part is not sent."""
    delivery, failed = Delivery(root, folder), 0
    while not _over(min(POLL_S * 2**failed, LONGEST_S)):
        failed = _try(delivery, failed)
    close(folder)
    tries, patience = 1 if failed else 2, monotonic() + LONGEST_S
    while tries:
        try:
            delivery.finish()
        except Early:  # a child run may end before its parent is in the store
            tries = tries if monotonic() < patience else 0
            sleep(POLL_S)
        except Exception:  # noqa: BLE001  the parent process reports what is not sent
            tries -= 1
        else:
            return 0
    return 1


def _over(wait: float) -> bool:
    """Whether all writers have ended; waits for that up to ``wait`` seconds."""
    return bool(select.select([sys.stdin], [], [], wait)[0])


def _try(delivery: Delivery, failed: int) -> int:
    """Send new events and metrics; returns the number of failures in a row."""
    try:
        delivery.send_new()
    except Exception as error:  # noqa: BLE001  training must continue, however the store fails
        # the second failure in a row: a single one is often over before anyone can act
        if failed == 1 and not isinstance(error, Early):
            why = delivery.why(error)
            logger.warning("%s; training continues, and its metrics are sent later", why)
        return failed + 1
    if failed > 1:
        logger.info("MLflow answers again")
    return 0


if __name__ == "__main__":
    messages.setup()
    here = Path(sys.argv[2])
    with locks.exclusive(here / SENDER, f"{here}: another process is sending it"):
        sys.exit(main(Path(sys.argv[1]), here))
