"""Laws that every clustering keeps, on small random point sets."""

import numpy as np
from hypothesis import given, settings, strategies as st

from uotft.core.settings import Cluster
from uotft.selection.clustering import kmeans


@st.composite
def points(draw: st.DrawFn) -> np.ndarray:
    """Points with directions; some of them twins."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, dimensions = draw(st.integers(1, 60)), draw(st.integers(2, 8))
    rows = rng.normal(size=(n, dimensions)).astype(np.float32)
    return rows[rng.integers(0, n, n)] if draw(st.booleans()) else rows


@given(points(), st.data())
def test_every_point_is_in_exactly_one_cluster_and_no_cluster_is_empty(rows, data) -> None:
    wanted = data.draw(st.integers(1, len(rows)))
    found = kmeans(rows, Cluster(clusters=wanted, iterations=4, seed=data.draw(st.integers(0, 99))))
    assert found.labels.shape == (len(rows),)
    assert np.bincount(found.labels, minlength=wanted)[: len(found.counts)].all()
    assert np.bincount(found.labels).tolist() == found.counts.tolist()
    assert len(found.centroids) == len(found.counts) <= wanted
    assert -1.001 <= found.objective <= 1.001


@given(points(), st.integers(-10, 10))
def test_the_length_of_features_changes_nothing(rows, power: int) -> None:
    wanted = Cluster(clusters=min(5, len(rows)), iterations=4)
    scaled = kmeans(rows * np.float32(2.0**power), wanted)  # powers of two scale without rounding
    assert np.array_equal(scaled.labels, kmeans(rows, wanted).labels)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_the_order_of_points_leaves_the_objective_about_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(600, 6)).astype(np.float32)
    wanted = Cluster(clusters=12, iterations=25)
    moved = kmeans(rows[rng.permutation(600)], wanted)
    assert abs(moved.objective - kmeans(rows, wanted).objective) < 0.03
