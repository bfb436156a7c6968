"""The channel between a command and one of its workers: a socket for work, and for "done".

The command sends one piece of work at a time: its words, and the file descriptors that the worker
holds meanwhile. The worker answers with DONE; a worker that fails ends, and its exit code says how.
When the command closes its end, or dies, the worker finds the end of the stream, and leaves.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Sequence

OPTION = "--channel"  # of `python -m uotft.runs.worker`, before the socket's file descriptor
DONE = b"done\n"
MOST_BYTES, MOST_HELD = 1 << 16, 16  # of one message, and of file descriptors with it


def send(end: socket.socket, words: Sequence[str], held: Sequence[int] = ()) -> None:
    """Send work; the receiver gets copies of the file descriptors ``held``."""
    message = json.dumps(list(words)).encode() + b"\n"
    sent = socket.send_fds(end, [message], list(held))
    end.sendall(message[sent:])


def receive(end: socket.socket) -> tuple[list[str], list[int]] | None:
    """Wait for work; None when there is no more."""
    try:
        message, held, _, _ = socket.recv_fds(end, MOST_BYTES, MOST_HELD)
    except ConnectionResetError:  # the command was killed
        return None
    while message and not message.endswith(b"\n"):
        if not (more := end.recv(MOST_BYTES)):
            return None
        message += more
    return (json.loads(message), held) if message else None


def answer(end: socket.socket) -> None:
    """Say that the work is done."""
    end.sendall(DONE)


def wait(ends: Sequence[socket.socket], seconds: float) -> None:
    """Wait until one of the workers answers or ends, at most so long."""
    select.select(ends, [], [], seconds)


def has_answer(end: socket.socket) -> bool:
    """Whether the worker has answered; takes the answer."""
    found, _, _ = select.select([end], [], [], 0)
    try:
        return bool(found) and end.recv(len(DONE), socket.MSG_WAITALL) == DONE
    except OSError:  # it was killed while our words were under way
        return False
