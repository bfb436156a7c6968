"""Logging: one line per message on standard error; -v and -q choose the level.

Modules log with ``logging.getLogger(__name__)``: ``debug`` for details, ``info`` for progress,
``warning`` for what the user should know. The command line sets the level; the processes that it
starts inherit it through their environment.
"""

from __future__ import annotations

import logging
import sys

from uotft.core import environment
from uotft.core.errors import UserError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _StandardError(logging.Handler):
    """Writes to the current ``sys.stderr``, which tests and progress bars replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def setup(level: str = "") -> None:
    """Show messages of ``level`` (one of LEVELS) and above, here and in processes started later.

    Without a level, uses the parent process's, or else INFO. May be called again.
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
    logger.propagate = False  # MLflow and DVC add handlers to the root logger
    logger.setLevel(level)


def are_quiet() -> bool:
    """Whether only warnings and errors are shown (-q)."""
    return logging.getLogger("uotft").level > logging.INFO
