"""Ports for servers that tests start."""

from __future__ import annotations

import socket
from contextlib import suppress
from random import SystemRandom

#: The kernel gives higher ports to whoever asks for any, so these stay free until a server binds.
LOWEST, HIGHEST = 20_000, 32_000


def free_port() -> int:
    """A port of this machine that nobody has."""
    while True:
        port = SystemRandom().randrange(LOWEST, HIGHEST)  # trainings seed `random`
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
