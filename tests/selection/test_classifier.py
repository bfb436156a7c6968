"""Stand-ins for class means find a target's kind where bare rows find little but its own class."""

from __future__ import annotations

import numpy as np
import pytest

from uotft.core.errors import UserError
from uotft.core.records import ClassBank
from uotft.selection import classifier
from uotft.selection.strategies import greedy_ot, nearest, uot

KINDS, EACH, D = 8, 20, 128


def weight(rng: np.random.Generator) -> np.ndarray:
    """A classifier (160, 128) of eight kinds of twenty classes; a row has little of its kind."""
    kinds, own = rng.normal(size=(KINDS, 1, D)), rng.normal(size=(KINDS, EACH, D))
    lengths = rng.uniform(0.8, 1.2, size=(KINDS * EACH, 1))
    return lengths * (0.35 * kinds + own).reshape(-1, D) + rng.normal(size=D)


def bank(means: np.ndarray) -> ClassBank:
    return ClassBank(means, tuple(map(str, range(len(means)))), np.ones(len(means), np.int64))


@pytest.mark.parametrize("strategy", [uot, nearest, greedy_ot])
def test_the_kind_of_a_single_class_is_found(strategy) -> None:
    bare, stand_ins = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = weight(rng)
        target = bank(rows[:1] - rows.mean(0) + 0.2 * rng.normal(size=(1, D)))
        for found, form in ((bare, rows - rows.mean(0)), (stand_ins, classifier.stand_ins(rows))):
            settings = strategy.Settings(metric="cosine")
            scores = strategy.score(bank(form), target, settings, 0).values
            found.append((np.argsort(-scores)[:EACH] < EACH).mean())
    assert np.mean(stand_ins) > np.mean(bare) + 0.05


def test_a_length_decides_nothing_under_l2() -> None:
    rng = np.random.default_rng(0)
    rows = weight(rng)
    target = bank(100 * (rows[:1] - rows.mean(0)))
    ranks = [
        np.argsort(-greedy_ot.score(bank(classifier.stand_ins(rows)), target, settings, 0).values)
        for settings in (greedy_ot.Settings(metric="l2"), greedy_ot.Settings(metric="cosine"))
    ]
    assert np.array_equal(*ranks)


def test_they_are_the_weighted_sums_of_rows_of_length_one() -> None:
    rows = weight(np.random.default_rng(1))
    v = rows - rows.mean(0)
    sums = np.array([sum((v[s] @ v[q]) * v[q] for q in range(len(v))) for s in range(len(v))])
    wanted = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert np.allclose(classifier.stand_ins(rows.astype(np.float32)), wanted, atol=1e-5)


@pytest.mark.parametrize("rows", [np.ones((3, 4)), np.ones((1, 4))])
def test_rows_that_are_all_alike_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(UserError, match="source_means: classifier.*do not tell the classes apart"):
        classifier.stand_ins(rows)
