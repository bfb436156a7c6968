"""Features -> clusters of images, by k-means (FAISS).

Spherical k-means: points and centroids have length one, and similarity is the cosine. By default
FAISS starts from random points and trains on 256 points per centroid. Here each pass reads all
points, and greedy k-means++ (Arthur and Vassilvitskii 2007) chooses the first centroids; the second
matters more (docs/benchmarks.md). Memory beyond the features is one float32 copy of the points. The
same seed gives the same bytes on the same machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError
from uotft.core.settings import Cluster

SAMPLED = 10  # points per cluster that k-means++ chooses from
STILL = 1e-4  # share of the objective: k-means stops when an iteration adds less
LONG = 100_000_000  # points x clusters (some seconds) above which FAISS prints its iterations


@dataclass(frozen=True)
class Clusters:
    """k <= K non-empty clusters: unit ``centroids`` (k, D), ``labels`` (n,), ``counts`` (k,).

    ``objective`` is the mean cosine between a point and its centroid; ``history`` holds the same at
    the start of each iteration.
    """

    centroids: NDArray[np.float32]
    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    objective: float
    history: tuple[float, ...]

    @property
    def iterations(self) -> int:
        """Passes over the points; FAISS stops early once the objective hardly grows (STILL)."""
        return len(self.history)

    @property
    def gain(self) -> float:
        """The growth of the objective in the last iteration: near 0 once converged."""
        return self.objective - self.history[-1]


def kmeans(features: NDArray[np.floating[Any]], settings: Cluster) -> Clusters:
    """Cluster the directions of ``features`` (n, D).

    FAISS refills an empty centroid by splitting a large cluster. If points coincide there may be
    nothing to split; clusters that stay empty are left out, so k < K. More clusters than points, or
    a row that is zero or not finite, is a ``UserError``.
    """
    n, dimensions = features.shape
    if settings.clusters > n:
        raise UserError(
            f"cluster.clusters: got {settings.clusters}, but there are only {n} points; "
            f"choose 1 to {n}"
        )
    faiss, points = _faiss(), unit_rows(features)
    search = faiss.Kmeans(
        dimensions,
        settings.clusters,
        niter=settings.iterations,
        seed=settings.seed,
        spherical=True,
        min_points_per_centroid=1,  # FAISS warns below 39
        max_points_per_centroid=-(-n // settings.clusters),  # FAISS draws a sample above it
        early_stop_threshold=STILL,
        verbose=n * settings.clusters > LONG,
    )
    starts = _starts(points, settings)
    with _stdout_as_stderr():
        search.train(points, init_centroids=starts)
    cosines, nearest = search.assign(points)
    filled, labels, counts = np.unique(nearest, return_inverse=True, return_counts=True)
    return Clusters(
        centroids=search.centroids[filled],
        labels=labels,
        counts=counts,
        objective=float(cosines.mean(dtype=np.float64)),
        history=tuple((search.obj / n).tolist()),
    )


def _starts(points: NDArray[np.float32], settings: Cluster) -> NDArray[np.float32]:
    """The first centroids (K, D), by greedy k-means++ on a sample of the points."""
    from sklearn.cluster import kmeans_plusplus

    rng = np.random.default_rng(settings.seed)
    size = min(len(points), SAMPLED * settings.clusters)
    sample = points[np.sort(rng.choice(len(points), size, replace=False))]
    found = kmeans_plusplus(sample, settings.clusters, random_state=settings.seed)
    return np.asarray(found[0], np.float32)


def unit_rows(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """A copy (n, D) with rows of length one; a zero or non-finite row is a ``UserError``."""
    points = np.array(features, np.float32, order="C")
    squares = np.einsum("ij,ij->i", points, points)
    wrong = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    if len(wrong):
        what = "zero" if squares[wrong[0]] == 0 else "not finite"
        raise UserError(
            f"row {wrong[0]} of the features is {what} ({len(wrong)} such rows of {len(squares)}): "
            "the cosine needs a direction; check the weights of the backbone that made them"
        )
    points /= np.sqrt(squares, dtype=np.float32)[:, None]
    return points


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """Send the C library's stdout to stderr: FAISS prints its iterations there, among results."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what FAISS has printed but not yet written
        os.dup2(ours, 1)
        os.close(ours)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "select.unit: cluster needs FAISS, which is not installed: install uotft[cpu], or "
            "uotft[gpu] on a machine with a CUDA GPU, or choose unit: class"
        ) from error
    return faiss
