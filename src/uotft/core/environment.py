"""What the tools that uotft uses find in their environment: no reports home, no shared caches.

What a user has set stays.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

#: Each tool's own switch; DO_NOT_TRACK is what some agree on.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
SITE_CACHE = "DVC_SITE_CACHE_DIR"


def prepare() -> None:
    """Set what is not set, for this process and those that it starts."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if SITE_CACHE not in os.environ:
        with suppress(OSError):  # a home that cannot be written: DVC's own place, then
            os.environ[SITE_CACHE] = str(site_cache())


def site_cache() -> Path:
    """A folder of this user's alone for DVC's indexes, which are pickles.

    By default DVC keeps them in /var/tmp/dvc, where who comes first can plant others
    (CVE-2025-69872).
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uotft"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "dvc"
