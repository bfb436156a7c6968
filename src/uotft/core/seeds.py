"""Which numbers can be seeds: those that NumPy's older generator takes."""

from __future__ import annotations

LAST_SEED = 2**32 - 1
