"""Features -> clusters of images, by k-means (FAISS).

Spherical k-means: points and centroids have length one, and similarity is the cosine. By default
FAISS starts from random points and trains on 256 points per centroid. Here each pass reads all
points, and greedy k-means++ (Arthur and Vassilvitskii 2007) chooses the first centroids; the second
matters more (docs/benchmarks.md). Memory beyond the features is one float32 copy of the points. The
same seed gives the same bytes on the same machine.

Features that would take more than ``cluster.memory`` are read block by block in every pass: Lloyd's
iteration from the same start, with FAISS for the nearest centroids. Memory is then a block, the
centroids and 8 bytes a point, whatever the number of points (docs/scaling.md).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.errors import Impossible, UserError
from uotft.core.settings import Cluster

SAMPLED = 10  # points per cluster that k-means++ chooses from
STILL = 1e-4  # share of the objective: k-means stops when an iteration adds less
LONG = 100_000_000  # points x clusters (some seconds) above which FAISS prints its iterations
NUDGE = 1 / 1024  # relative: how far the halves of a split cluster start apart, as in FAISS


logger = logging.getLogger(__name__)


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
    n = len(features)
    if settings.clusters > n:
        raise Impossible(
            f"cluster.clusters: got {settings.clusters}, but there are only {n} points; "
            f"choose 1 to {n}"
        )
    faiss = _faiss()
    if 4 * features.size > settings.memory * 2**30:
        return _in_blocks(faiss, features, settings)
    points = unit_rows(features)
    search = faiss.Kmeans(
        points.shape[1],
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


def _in_blocks(faiss: Any, features: NDArray[np.floating[Any]], settings: Cluster) -> Clusters:
    """`kmeans`, with one block of unit rows in memory at a time."""
    n, dimensions = features.shape
    rows, found = _sampled(n, settings), list[NDArray[np.float32]]()
    for start, points in _unit_blocks(features):  # the first of all passes refuses bad rows
        found.append(points[rows[(rows >= start) & (rows < start + len(points))] - start])
    centroids, history = _plus_plus(np.concatenate(found), settings), list[float]()
    nearest = np.empty(n, np.int64)

    def assign(then: Callable[[NDArray[np.float32], NDArray[np.int64]], object]) -> float:
        """Fill ``nearest``; calls ``then`` with each block and the clusters of its rows."""
        index: Any = faiss.IndexFlatIP(dimensions)
        total = 0.0
        index.add(centroids)
        for start, points in _unit_blocks(features):
            cosines, own = index.search(points, 1)
            nearest[start : start + len(points)] = own[:, 0]
            total += float(cosines.sum(dtype=np.float64))
            then(points, own[:, 0])
        return float(total / n)

    for number in range(settings.iterations):
        sums = _Sums(settings.clusters, dimensions)
        history.append(assign(sums.add))
        logger.debug("k-means: iteration %d, mean cosine %.6f", number, history[-1])
        centroids = sums.centroids(centroids)
        if number and history[-1] - history[-2] < STILL * abs(history[-2]):
            break
    objective = assign(lambda points, own: None)
    counts = np.bincount(nearest, minlength=settings.clusters)
    filled = np.flatnonzero(counts)
    for start in range(0, n, storage.BLOCK):
        part = nearest[start : start + storage.BLOCK]
        part[:] = np.searchsorted(filled, part)
    return Clusters(centroids[filled], nearest, counts[filled], objective, tuple(history))


class _Sums:
    """The sums of the points of each cluster, in float64 over the blocks, and their numbers."""

    def __init__(self, clusters: int, dimensions: int) -> None:
        self.sums, self.counts = np.zeros((clusters, dimensions)), np.zeros(clusters, np.int64)

    def add(self, points: NDArray[np.float32], own: NDArray[np.int64]) -> None:
        """Add a block of points (m, D) to their clusters ``own`` (m,)."""
        from scipy.sparse import csr_array

        ones, start = np.ones(len(own), np.float32), np.arange(len(own) + 1)
        member = csr_array((ones, own, start), shape=(len(own), len(self.counts)))
        self.sums += member.T @ points
        self.counts += np.bincount(own, minlength=len(self.counts))

    def centroids(self, before: NDArray[np.float32]) -> NDArray[np.float32]:
        """The unit means; half of the largest cluster takes the place of an empty one."""
        counts, made = self.counts.copy(), self.sums.astype(np.float32)
        made[counts == 0] = before[counts == 0]
        sign = np.where(np.arange(made.shape[1]) % 2, -NUDGE, NUDGE).astype(np.float32)
        for empty in np.flatnonzero(counts == 0).tolist():
            if counts[largest := int(counts.argmax())] < 2:
                break
            made[empty], made[largest] = made[largest] * (1 + sign), made[largest] * (1 - sign)
            counts[empty] = counts[largest] // 2
            counts[largest] -= counts[empty]
        return unit_rows(made)


def _unit_blocks(
    features: NDArray[np.floating[Any]],
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(number of the first row, unit rows) of each block."""
    start = 0
    for part in storage.blocks(features):
        yield start, unit_rows(part, start)
        start += len(part)


def _starts(points: NDArray[np.float32], settings: Cluster) -> NDArray[np.float32]:
    """The first centroids (K, D), by greedy k-means++ on a sample of the points."""
    return _plus_plus(points[_sampled(len(points), settings)], settings)


def _sampled(points: int, settings: Cluster) -> NDArray[np.int64]:
    """The rows that k-means++ chooses from, ascending."""
    rng, size = np.random.default_rng(settings.seed), min(points, SAMPLED * settings.clusters)
    return np.sort(rng.choice(points, size, replace=False))


def _plus_plus(sample: NDArray[np.float32], settings: Cluster) -> NDArray[np.float32]:
    from sklearn.cluster import kmeans_plusplus

    found = kmeans_plusplus(sample, settings.clusters, random_state=settings.seed)
    return np.asarray(found[0], np.float32)


def unit_rows(features: NDArray[np.floating[Any]], first: int = 0) -> NDArray[np.float32]:
    """A copy (n, D) with rows of length one; a zero or non-finite row is a ``UserError``.

    ``first`` is the number of the first row, for that message.
    """
    points = np.array(features, np.float32, order="C")
    squares = np.einsum("ij,ij->i", points, points)
    wrong = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    if len(wrong):
        what = "zero" if squares[wrong[0]] == 0 else "not finite"
        raise UserError(
            f"row {first + wrong[0]} of the features is {what} ({len(wrong)} such rows of "
            f"{len(squares)}): the cosine needs a direction; check the weights of the backbone "
            "that made them"
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
