"""The contract of the shelf: every strategy, found unaided, scores every class."""

import numpy as np
import pytest

from uotft import registry
from uotft.errors import UserError
from uotft.records import ClassBank
from uotft.selectors import greedy_ot, label, nearest

RNG = np.random.default_rng(3)
SOURCE = ClassBank(
    RNG.random((20, 6)), tuple(f"digit {i}" for i in range(20)), np.full(20, 9), "net"
)
TARGET = ClassBank(RNG.random((4, 6)), tuple("abcd"), np.full(4, 2), "net")


@pytest.mark.parametrize("name", registry.names("selectors"))
def test_every_strategy_keeps_the_contract(name: str) -> None:
    module = registry.load("selectors", name, "strategy")
    first = module.score(SOURCE, TARGET, module.Settings(), 7)
    again = module.score(SOURCE, TARGET, module.Settings(), 7)
    assert first.values.shape == (20,)
    assert not np.isnan(first.values).any()
    assert np.array_equal(first.values, again.values)
    assert "(" in (module.__doc__ or "") or name in ("none", "nearest"), "cite the paper"


def test_random_follows_the_seed() -> None:
    module = registry.load("selectors", "random", "strategy")
    scores = [module.score(SOURCE, TARGET, module.Settings(), seed).values for seed in (0, 1)]
    assert not np.array_equal(*scores)


def test_greedy_ot_is_minus_the_mean_distance() -> None:
    expected = [-np.mean([np.linalg.norm(s - t) for t in TARGET.means]) for s in SOURCE.means]
    assert greedy_ot.score(SOURCE, TARGET, greedy_ot.Settings(), 0).values == pytest.approx(
        expected
    )


def test_nearest_looks_at_the_closest_target_class_only() -> None:
    near_one = ClassBank(np.array([[1.0, 0], [0.5, 0.5]]), ("one", "both"), np.ones(2, int))
    target = ClassBank(np.array([[1.0, 0], [0, 1], [0, 1]]), tuple("xyz"), np.ones(3, int))
    assert nearest.score(near_one, target, nearest.Settings(), 0).values.argmax() == 0
    assert greedy_ot.score(near_one, target, greedy_ot.Settings(), 0).values.argmax() == 1


def test_label_takes_names_and_patterns() -> None:
    scores = label.score(SOURCE, TARGET, label.Settings(classes=["digit 3", "digit 1?"]), 0).values
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [3, *range(10, 20)]


def test_label_takes_the_class_names_of_images() -> None:
    names = tuple(f"image {i:02}" for i in range(20))
    images = ClassBank(SOURCE.means, names, SOURCE.counts, "net", "image", labels=SOURCE.names)
    scores = label.score(images, TARGET, label.Settings(classes=["digit 3"]), 0).values
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [3]


def test_label_refuses_a_name_that_matches_nothing() -> None:
    with pytest.raises(UserError, match="'letter' matches none of the 20 source classes"):
        label.score(SOURCE, TARGET, label.Settings(classes=["letter"]), 0)
