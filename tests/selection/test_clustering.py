"""K-means: what it promises of every point, what it refuses, and that it repeats itself."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from support.commands import call
from support.repository import REPOSITORY
from uotft.core import storage
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


def settings(clusters: int, **changes: float) -> Cluster:
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


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BLOCK", 2**10)


@pytest.mark.usefixtures("small_blocks")
def test_block_by_block_it_is_the_k_means_of_all_points_at_once(tmp_path: Path) -> None:
    centres = RNG.normal(size=(25, 16))
    points = centres[RNG.integers(0, 25, 3000)] + RNG.normal(0, 0.7, (3000, 16))
    np.save(tmp_path / "points.npy", points.astype(np.float16))
    mapped = storage.mapped(tmp_path / "points.npy")
    whole, parts = kmeans(mapped, settings(20)), kmeans(mapped, settings(20, memory=0))
    assert np.array_equal(parts.labels, whole.labels)
    assert np.array_equal(parts.counts, whole.counts)
    assert parts.centroids == pytest.approx(whole.centroids, abs=1e-5)
    assert parts.objective == pytest.approx(whole.objective, abs=1e-6)
    assert parts.history == pytest.approx(whole.history, abs=1e-5), "the same passes"


@pytest.mark.usefixtures("small_blocks")
def test_block_by_block_an_empty_cluster_takes_half_of_the_largest() -> None:
    points = np.repeat(RNG.normal(size=(4, 8)), (500, 2, 2, 2), axis=0) + RNG.normal(
        0, 1e-3, (506, 8)
    )
    found = kmeans(points.astype(np.float32), settings(9, memory=0))
    assert len(found.counts) == 9
    assert (found.counts > 0).all()
    sums = clustering._Sums(3, 2)
    sums.add(np.array([[1, 0], [1, 0], [0, 1]], np.float32), np.array([0, 0, 2]))
    moved = sums.centroids(np.eye(3, 2, dtype=np.float32))
    assert moved[[0, 1]] == pytest.approx(np.array([[1, 0], [1, 0]]), abs=2e-3)
    assert moved[2].tolist() == [0, 1]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("clusters", [5, 30])
def test_block_by_block_clusters_that_stay_empty_are_left_out(clusters: int) -> None:
    points = np.repeat(RNG.normal(size=(5, 8)).astype(np.float32), 20, axis=0)
    found = kmeans(points, settings(clusters, memory=0))
    assert (found.counts > 0).all()
    assert found.counts.sum() == 100
    assert len(found.centroids) == len(found.counts) == found.labels.max() + 1 <= 5
    assert (found.labels.reshape(5, 20) == found.labels[::20, None]).all()


@pytest.mark.usefixtures("small_blocks")
def test_block_by_block_a_row_without_a_direction_is_named_by_its_number() -> None:
    points = np.ones((600, 4), np.float32)
    points[577] = 0
    with pytest.raises(UserError, match=r"row 577 of the features is zero"):
        kmeans(points, settings(2, memory=0))


PEAK = """
import sys
from pathlib import Path
from uotft.core import storage
from uotft.pipeline.units import cluster_bank
storage.BLOCK = 2**21
kept, made, memory = sys.argv[1:]
cluster_bank(kept, made, {"clusters": 20, "iterations": 2, "memory": float(memory)})
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak_mib(folder: Path, rows: int, memory: int) -> float:
    """The most memory of a process that clusters so many rows of 256 float16."""
    path = folder / "points.npy"
    points = np.lib.format.open_memmap(path, "w+", np.float16, (rows, 256))
    for start in range(0, rows, 10_000):
        points[start : start + 10_000] = RNG.standard_normal((10_000, 256), np.float32)
    del points
    words = (sys.executable, "-c", PEAK, str(path), str(folder / "bank.npz"), str(memory))
    # not ru_maxrss, which begins with what the starter holds
    done = call(*words, cwd=REPOSITORY, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it measures by /proc")
def test_the_memory_of_clustering_a_file_is_that_of_a_block(tmp_path: Path) -> None:
    """150,000 x 256 are 73 MiB on disk, and 146 MiB more as FAISS takes them all at once."""
    few, many = peak_mib(tmp_path, 20_000, 0), peak_mib(tmp_path, 150_000, 0)
    assert many - few < 8, "8 bytes a point, 1 MiB, and no features"
    assert peak_mib(tmp_path, 150_000, 8) - many > 100, "the measurement sees features in memory"


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
