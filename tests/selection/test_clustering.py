"""K-means: what it promises of every point, what it refuses, and that it repeats itself."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

from support.commands import call
from support.repository import REPOSITORY
from uotft.core.errors import UserError
from uotft.core.settings import Cluster
from uotft.selection import clustering
from uotft.selection.clustering import kmeans, unit_rows

RNG = np.random.default_rng(5)


def blobs(centres: int, each: int, dimensions: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """``each`` points of any length around each of ``centres`` directions at right angles."""
    truth = np.repeat(np.arange(centres), each)
    points = np.eye(centres, dimensions)[truth] + RNG.normal(0, 0.02, (len(truth), dimensions))
    return (points * RNG.uniform(0.1, 10, (len(truth), 1))).astype(np.float32), truth


def settings(clusters: int, **changes: int) -> Cluster:
    return Cluster(clusters=clusters, **{"iterations": 20, **changes})


def test_separate_directions_are_found_whatever_their_length() -> None:
    points, truth = blobs(3, 40)
    # a random start may put two centroids into one blob: any one of three seeds must find all
    best = max((kmeans(points, settings(3, seed=s)) for s in range(3)), key=lambda c: c.objective)
    pairs = set(zip(best.labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 3
    assert best.objective > 0.99
    assert abs(best.gain) < 1e-6


def test_each_point_is_with_its_nearest_centroid_and_the_objective_is_the_mean_cosine() -> None:
    points = RNG.normal(size=(500, 6)).astype(np.float32)
    found = kmeans(points, settings(20))
    cosines = points / np.linalg.norm(points, axis=1, keepdims=True) @ found.centroids.T
    own = cosines[np.arange(500), found.labels]
    assert np.linalg.norm(found.centroids, axis=1) == pytest.approx(1, abs=1e-5)
    assert own == pytest.approx(cosines.max(1), abs=1e-5)
    assert found.objective == pytest.approx(own.mean(), abs=1e-5)
    assert found.counts.tolist() == np.bincount(found.labels).tolist()
    assert found.iterations == len(found.history) <= 20
    assert found.history[0] < found.history[-1] <= found.objective + 1e-6


def test_every_point_counts_not_a_sample_of_256_a_centroid() -> None:
    points = RNG.normal(0.2, 1, size=(5000, 4)).astype(np.float32)
    mean = (points / np.linalg.norm(points, axis=1, keepdims=True)).mean(0)
    found = kmeans(points, settings(1, iterations=1))
    assert found.centroids[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


@pytest.mark.parametrize("clusters", [5, 8, 30, 100])
def test_more_clusters_than_distinct_points_leaves_the_empty_ones_out(clusters: int) -> None:
    distinct = RNG.normal(size=(5, 8)).astype(np.float32)
    found = kmeans(np.repeat(distinct, 20, axis=0), settings(clusters))
    again = kmeans(np.repeat(distinct, 20, axis=0), settings(clusters))
    assert (found.counts > 0).all()
    assert found.counts.sum() == 100
    assert len(found.centroids) == len(found.counts) == found.labels.max() + 1 <= 5
    assert np.array_equal(found.labels, again.labels)
    twins = found.labels.reshape(5, 20)
    assert (twins == twins[:, :1]).all(), "equal points share a cluster"


def test_as_many_clusters_as_points() -> None:
    found = kmeans(RNG.normal(size=(12, 4)).astype(np.float32), settings(12))
    assert found.counts.tolist() == [1] * 12
    assert found.objective == pytest.approx(1)


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(UserError, match=r"cluster\.clusters: got 13.*only 12 points"):
        kmeans(np.ones((12, 4), np.float32), settings(13))


@pytest.mark.parametrize(
    ("value", "what"), [(0, "zero"), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_a_row_without_a_direction_is_named(value: float, what: str) -> None:
    points = np.ones((6, 3), np.float32)
    points[[4, 5]] = value
    with pytest.raises(UserError, match=rf"row 4 of the features is {what} \(2 such rows of 6\)"):
        kmeans(points, settings(2))


def test_the_input_is_left_alone_and_no_float64_copy_is_made() -> None:
    points = RNG.normal(size=(50_000, 32)).astype(np.float32)
    before = points.copy()
    tracemalloc.start()
    kmeans(points, settings(4, iterations=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(points, before)
    # one float32 copy, and a few numbers a point; a float64 copy alone would be 2 x
    assert peak < 1.8 * points.nbytes


REPEAT = """
import hashlib, sys
import numpy as np
from uotft.selection.clustering import kmeans
from uotft.core.settings import Cluster
points = np.random.default_rng(1).normal(size=(20_000, 32)).astype(np.float32)
found = kmeans(points, Cluster(clusters=100, iterations=5, seed=int(sys.argv[1])))
print(hashlib.sha256(found.centroids.tobytes() + found.labels.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_one_thread_or_two() -> None:
    def run(seed: int, threads: int) -> str:
        words = (sys.executable, "-c", REPEAT, str(seed))
        done = call(*words, cwd=REPOSITORY, OMP_NUM_THREADS=str(threads))
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    assert run(0, 1) == run(0, 1) == run(0, 2) != run(1, 1)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"not installed: install uotft\[cpu\], or uotft\[gpu\]"):
        kmeans(np.ones((3, 2), np.float32), settings(2))


@pytest.mark.parametrize(("dtype", "length"), [(np.float32, 1), (np.float16, 300)])
def test_unit_rows_have_length_one(dtype: type, length: float) -> None:
    """The square of a long row is more than float16 holds."""
    rows = unit_rows((length * RNG.normal(size=(9, 5))).astype(dtype)[:, ::-1])
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)


def test_progress_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clustering, "LONG", 10)
    clustering.kmeans(
        np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), Cluster(clusters=3)
    )
    print("a result")  # noqa: T201
    said = capfd.readouterr()
    assert said.out == "a result\n"
    assert "Iteration" in said.err
