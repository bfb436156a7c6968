"""Files that may hold a password: rewritten without opening them to more people."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from uotft.core import storage


def write(path: Path, content: bytes) -> None:
    """Write a file with the permissions that it has; only its owner can read a new one."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    before = os.umask(0o077)
    try:
        storage.write_bytes(path, content)
    finally:
        os.umask(before)
    path.chmod(mode)
