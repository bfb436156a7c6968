"""What uotft says while it works: one line a message on standard error, as loud as the user wants.

Modules log with ``logging.getLogger(__name__)``: ``info`` for what is going on, ``warning`` for
what the user should know. The command line chooses the level (-v, -q); processes that it starts
take it from their environment.
"""

from __future__ import annotations

import logging
import os
import sys

LEVEL = "UOTFT_LOG_LEVEL"


class _StandardError(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at that moment, with the command's name in front."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def setup(level: str = "") -> None:
    """Show messages of ``level`` and above (DEBUG, INFO, WARNING, ERROR), here and in workers.

    Without a level it is that of the process which started this one, or else INFO.
    """
    os.environ[LEVEL] = level or os.environ.get(LEVEL) or "INFO"
    logger = logging.getLogger("uotft")
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("uotft: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(os.environ[LEVEL])
