"""Spherical k-means on all points, beside FAISS's default and scikit-learn's MiniBatchKMeans.

Every side gets the same unit vectors and returns centroids and the cluster of every point. Seconds
cover both; the objective is the mean cosine of all points to their nearest centroid, computed here
in one way for all. Memory is what a side adds to the data. Each repetition has a seed of its own
and runs the sides in turn, every second one in reverse, each in a process of its own.

python benchmarks/kmeans.py --repetitions 5                     # 1,280,000 x 128 into 2000
python benchmarks/kmeans.py --repetitions 5 --points 320000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CHUNK = 65_536


def blobs(n: int, dimensions: int, centres: int) -> np.ndarray:
    """Unit vectors (n, D): ``centres`` blobs of unequal size and width, and 5 % of pure noise."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(centres, dimensions)) / np.sqrt(dimensions)
    middle[rng.random(centres) < 0.5] += middle[0]  # half of them crowd one side, as features do
    share, width = rng.dirichlet(np.full(centres, 0.7)), rng.uniform(0.3, 1.2, centres)
    points = np.empty((n, dimensions), np.float32)
    for start in range(0, n, CHUNK):
        part = points[start : start + CHUNK]
        own = rng.choice(centres, len(part), p=share)
        noise = rng.standard_normal(part.shape, np.float32) / np.sqrt(dimensions)
        part[:] = middle[own] + width[own, None] * noise
        lost = rng.random(len(part)) < 0.05
        part[lost] = noise[lost]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return points


def uotft(points: np.ndarray, clusters: int, iterations: int, seed: int) -> np.ndarray:
    """This project: every pass over all points."""
    from uotft.core.settings import Cluster
    from uotft.selection.clustering import kmeans

    wanted = Cluster(clusters=clusters, iterations=iterations, seed=seed)
    return kmeans(points, wanted).centroids


def faiss_default(points: np.ndarray, clusters: int, iterations: int, seed: int) -> np.ndarray:
    """FAISS with nothing set but cosine and iterations: a sample of 256 points a centroid."""
    import faiss

    search = faiss.Kmeans(points.shape[1], clusters, niter=iterations, spherical=True, seed=seed)
    search.train(points)
    search.assign(points)
    return search.centroids


def mini_batch(size: int) -> Callable[..., np.ndarray]:
    """scikit-learn's MiniBatchKMeans, which stops by itself; Euclidean, on unit vectors."""

    def run(points: np.ndarray, clusters: int, iterations: int, seed: int) -> np.ndarray:
        from sklearn.cluster import MiniBatchKMeans

        found = MiniBatchKMeans(clusters, batch_size=size, random_state=seed).fit(points)
        return found.cluster_centers_

    return run


SIDES = {
    "uotft, all points": uotft,
    "FAISS, default sample": faiss_default,
    "MiniBatchKMeans, 1024": mini_batch(1024),
    "MiniBatchKMeans, 10000": mini_batch(10_000),
}


def objective(points: np.ndarray, centroids: np.ndarray) -> float:
    """The mean cosine of a point to the nearest centroid."""
    unit = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
    parts = (points[i : i + CHUNK] @ unit.T for i in range(0, len(points), CHUNK))
    return float(sum(part.max(1).sum(dtype=np.float64) for part in parts) / len(points))


def peak_mib() -> float:
    """The most memory this process has held; its start does not inherit the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(side: str, file: str, clusters: int, iterations: int, seed: int) -> dict[str, float]:
    """Run one side once, in this process."""
    points = np.load(file)
    SIDES[side](points[: 2 * CHUNK : 64], 8, 2, seed)  # imports and warms up
    before, start = peak_mib(), time.perf_counter()
    centroids = SIDES[side](points, clusters, iterations, seed)
    seconds = time.perf_counter() - start
    memory = peak_mib() - before
    return {"seconds": seconds, "MiB": memory, "objective": objective(points, centroids)}


def main() -> None:
    """Print one line a side: medians, and the ratio of its time to the first side's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=1_280_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--blobs", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=20, help="of both FAISS sides")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "FILE", "SEED"), help="used inside")
    words = parser.parse_args()
    if words.measure:
        side, file, seed = words.measure
        print(json.dumps(measure(side, file, words.clusters, words.iterations, int(seed))))
        return
    results: dict[str, list[dict[str, float]]] = {side: [] for side in words.sides}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/points.npy"
        np.save(file, blobs(words.points, words.dimensions, words.blobs))
        for seed in range(words.repetitions):
            for side in words.sides[:: -1 if seed % 2 else 1]:
                command = [sys.executable, __file__, "--measure", side, file, str(seed)]
                command += ["--clusters", str(words.clusters)]
                command += ["--iterations", str(words.iterations)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                results[side].append(json.loads(done.stdout))
                print(f"{side}, seed {seed}: {results[side][-1]}", file=sys.stderr, flush=True)
    cores = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    print(
        f"{words.points} x {words.dimensions} into {words.clusters}, {cores} threads, "
        f"median of {words.repetitions}"
    )
    first = None
    for side, runs in results.items():
        seconds, memory, value = (
            statistics.median(run[key] for run in runs) for key in ("seconds", "MiB", "objective")
        )
        first = first or seconds
        spread = f"{min(r['seconds'] for r in runs):.1f} to {max(r['seconds'] for r in runs):.1f}"
        print(
            f"{side:24} {seconds:8.1f} s ({spread}), x{seconds / first:.2f}, "
            f"mean cosine {value:.4f}, +{memory:.0f} MiB"
        )


if __name__ == "__main__":
    main()
