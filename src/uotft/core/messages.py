"""What uotft says while it works: one line a message on standard error, as loud as the user wants.

Modules log with ``logging.getLogger(__name__)``: ``debug`` for details, ``info`` for what is going
on, ``warning`` for what the user should know. The command line chooses the level (-v, -q), and the
processes that it starts take it from their environment.
"""

from __future__ import annotations

import logging
import sys

from uotft.core import environment
from uotft.core.errors import UserError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _StandardError(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at that moment, with the command's name in front."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def setup(level: str = "") -> None:
    """Show messages of ``level`` and above (one of LEVELS), here and in processes started later.

    Without a level: that of the process which started this one, or else INFO. May be called again.
    """
    level = level or environment.log_level() or "INFO"
    if level not in LEVELS:
        raise UserError(f"{environment.LOG_LEVEL}: got {level!r}; known are {', '.join(LEVELS)}")
    environment.set_log_level(level)
    logger = logging.getLogger("uotft")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("uotft: %(message)s"))
        logger.addHandler(handler)
    logger.propagate = False  # MLflow and DVC put handlers of their own on the root logger
    logger.setLevel(level)


def are_quiet() -> bool:
    """Whether the user wants warnings and errors alone (-q)."""
    return logging.getLogger("uotft").level > logging.INFO
