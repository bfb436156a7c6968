"""The process that sends a journal while others write it.

    python -m uotft.tracking.sender ROOT FOLDER

Its input ends when nobody can write any more, however they ended; then it sends the rest. A store
that is down, slow or broken is asked again, ever more seldom, and whoever trains does not notice.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path
from time import monotonic, sleep

from uotft.core import locks
from uotft.tracking.delivery import SENDER, Delivery, Early, close

POLL_S = 0.5  # between two looks into the journal
LONGEST_S = 30  # between two tries while the store does not answer


def main(root: Path, folder: Path) -> int:
    """Send all of it; returns 1 if some of it is left."""
    delivery, failed = Delivery(root, folder), 0
    while not _over(min(POLL_S * 2**failed, LONGEST_S)):
        failed = _try(delivery, failed)
    close(folder)
    tries, patience = 1 if failed else 2, monotonic() + LONGEST_S
    while tries:
        try:
            delivery.finish()
        except Early:  # of two runs, one inside the other, the inner one may end first
            tries = tries if monotonic() < patience else 0
            sleep(POLL_S)
        except Exception:  # noqa: BLE001  who waits for this process says what is left
            tries -= 1
        else:
            return 0
    return 1


def _over(wait: float) -> bool:
    """Whether nobody can write any more; says so after ``wait`` seconds, or at once."""
    return bool(select.select([sys.stdin], [], [], wait)[0])


def _try(delivery: Delivery, failed: int) -> int:
    """Send what is new; returns how often that has failed without a success between."""
    try:
        delivery.new()
    except Exception as error:  # noqa: BLE001  whatever a store does, the training goes on
        if failed == 1 and not isinstance(error, Early):
            _say(f"{delivery.why(error)}; training goes on, and what it logs is sent later")
        return failed + 1
    if failed > 1:
        _say("MLflow answers again")
    return 0


def _say(line: str) -> None:
    print(f"uotft: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    here = Path(sys.argv[2])
    with locks.alone(here / SENDER, f"{here}: another process sends it"):
        sys.exit(main(Path(sys.argv[1]), here))
