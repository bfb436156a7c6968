"""Removes folders of which some files may have to stay for a while."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GONE = ".gone"  # the ending of a folder that is being removed


def remove(folder: Path) -> None:
    """Rename an existing folder out of the way, then delete as many of its files as possible.

    Files may remain: on NFS a file that is open elsewhere stays as .nfs… until it is closed, and a
    kill can come at any moment. Because of the rename no code finds the leftovers, and the next
    call deletes them.
    """
    gone = folder.with_name(f".{folder.name}.{os.getpid()}{GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    sweep(folder.parent)


def sweep(folder: Path) -> None:
    """Delete what earlier calls of ``remove`` left in ``folder``."""
    for rest in folder.glob(f".*{GONE}"):
        shutil.rmtree(rest, ignore_errors=True)
