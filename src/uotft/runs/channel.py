"""The socket between a command and one of its workers: work goes in, "done" comes back.

The command sends one piece of work at a time: its arguments, and the file descriptors that the
worker keeps open until it is done. The worker then answers DONE. A worker that fails exits, and its
exit code says how. When the command closes its end or dies, the worker reads the end of the stream
and exits.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Sequence

OPTION = "--channel"  # option of `python -m uotft.runs.worker`; its value is a file descriptor
DONE = b"done\n"
MOST_BYTES, MOST_HELD = 1 << 16, 16  # bytes and file descriptors that one read accepts


def send(end: socket.socket, arguments: Sequence[str], held: Sequence[int] = ()) -> None:
    """Send work; the receiver gets duplicates of the file descriptors ``held``."""
    message = json.dumps(list(arguments)).encode() + b"\n"
    sent = socket.send_fds(end, [message], list(held))
    end.sendall(message[sent:])


def receive(end: socket.socket) -> tuple[list[str], list[int]] | None:
    """Wait for work: its arguments and the file descriptors to keep open; None when there is none.

    The caller closes the file descriptors.
    """
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
    """Wait until one of the workers answers or exits, at most ``seconds``."""
    select.select(ends, [], [], seconds)


def has_answer(end: socket.socket) -> bool:
    """Whether the worker has answered; reads the answer off the socket."""
    found, _, _ = select.select([end], [], [], 0)
    try:
        return bool(found) and end.recv(len(DONE), socket.MSG_WAITALL) == DONE
    except OSError:  # the worker was killed before it had read what we sent
        return False
