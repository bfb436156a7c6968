"""Messages of uotft on standard error, where a test looks at a function and not at a command."""

from __future__ import annotations

import logging

import pytest

from uotft.core import messages


def show_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show messages as the command line does, until the test is over."""
    logger = logging.getLogger("uotft")
    monkeypatch.setattr(logger, "handlers", [])
    for name in ("propagate", "level"):  # what setup() changes, so that it is restored
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setenv(messages.LEVEL, "INFO")
    messages.setup()
