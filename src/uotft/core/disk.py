"""Room on disks: compared with what is needed before work starts, and named where it runs out."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from uotft.core.errors import UserError

#: A full disk or full table of files, a quota, a limit on the size of one file (RLIMIT_FSIZE).
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def gib(size: float) -> str:
    """Bytes as people read them."""
    if size < 2**16:
        return f"{size / 2**10:.1f} KiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def need(wanted: dict[str, int], folder: Path, remedy: str = "make room") -> str:
    """A line on the bytes that are ``wanted`` and free, or an error if there is no room for them.

    ``folder`` need not be there yet; ``remedy`` ends the error.
    """
    place = _there(folder)
    free, needed = shutil.disk_usage(place).free, sum(wanted.values())
    parts = ", ".join(f"{gib(size)} {what}" for what, size in wanted.items())
    line = f"{parts} (about); {gib(free)} are free in {place}"
    if needed > free:
        raise UserError(f"{line}: {remedy}")
    return line


def device(folder: Path) -> int:
    """The number of the disk that ``folder`` is on, or would be."""
    return _there(folder).stat().st_dev


def ran_out(error: OSError, path: Path, size: int) -> UserError | None:
    """What to say where the disk refused to write ``path``; nothing for other errors.

    ``size`` bytes were to be written, or had been when it refused.
    """
    if error.errno not in FULL:
        return None
    place = _there(path.parent)
    free, files = shutil.disk_usage(place).free, os.statvfs(place).f_favail
    remedy = "raise the limit (ulimit -f)" if error.errno == errno.EFBIG else "make room"
    return UserError(
        f"{path}: cannot be written: {error.strerror}: {size:,} bytes or more are needed, "
        f"{free:,} bytes and {files:,} files are free in {place}: {remedy}, and give the same "
        "command again; what was there before is as it was"
    )


def _there(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
