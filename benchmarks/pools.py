"""Memory and seconds of keeping features: random ones, 1000 classes, in shards of 2048 rows.

python benchmarks/pools.py 1280000 512 float16      # rows, features, type
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from uotft.selection import features as pools

BATCH = 512
CLASSES = 1000


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(rows: int, size: int, dtype: str) -> None:
    """Keep every shard, put them together, and print what it took."""
    rng = np.random.default_rng(0)
    labels, names = rng.integers(0, CLASSES, rows), np.arange(CLASSES).astype(str)
    shards, before, kept = pools.cut(rows, BATCH), peak_mib(), 0.0
    with tempfile.TemporaryDirectory(dir=".") as folder:
        left, made = Path(folder, "left"), Path(folder, "made")
        for shard in shards:
            features = rng.standard_normal((len(shard), size), np.float32)
            start = time.perf_counter()
            pools.keep(left, shard, {"features": features}, dtype)
            kept += time.perf_counter() - start
        start = time.perf_counter()
        pools.join(left, shards, made, labels, dtype, names=names)
        joined = time.perf_counter() - start
        on_disk = (made / "features.npy").stat().st_size / 2**20
    print(
        f"{rows} x {size} {dtype}: {on_disk:.0f} MiB on disk, {peak_mib() - before:.0f} MiB of "
        f"memory, {kept:.1f} s to keep shards, {joined:.1f} s to put them together"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
