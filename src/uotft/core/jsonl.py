"""JSON lines: one process appends while another reads, and a kill of either breaks nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import time
from typing import Any

from uotft.core import disk

Line = dict[str, Any]


def append(path: Path, value: Line) -> None:
    """Append one line, with the current time ``at`` in ms.

    If a kill cut off the last line, starts a new one. Raises a UserError on a full disk.
    """
    line = json.dumps({"at": int(time() * 1000), **value}).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            file.write(line if file.read(1) in (b"", b"\n") else b"\n" + line)
    except OSError as error:
        if full := disk.ran_out(error, path, len(line)):
            raise full from error
        raise


def read(path: Path, start: int = 0) -> tuple[list[Line], int]:
    """The complete lines of a file from byte ``start`` on, and the byte after the last of them.

    Skips lines that a kill cut off: the process that resumes the work writes them again.
    """
    found: list[Line] = []
    if not path.is_file():
        return found, start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):  # the writer has not finished it yet
                break
            start += len(line)
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found, start
