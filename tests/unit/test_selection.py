import numpy as np
import pytest

from uotft.errors import UserError
from uotft.records import Scores
from uotft.selection import keep

NAMES = ("d", "c", "b", "a")


def test_best_first() -> None:
    assert keep(Scores(np.array([0.1, 0.4, 0.2, 0.3])), NAMES, 3).tolist() == [1, 3, 2]


def test_ties_go_by_name_and_ignore_rounding() -> None:
    assert keep(Scores(np.array([1.0, 1.0 + 1e-14, 1.0, 0.5])), NAMES, 3).tolist() == [2, 1, 0]


def test_minus_infinity_is_never_kept() -> None:
    assert keep(Scores(np.array([-np.inf, 0.0, -np.inf, 0.0])), NAMES, 4).tolist() == [3, 1]


def test_k_above_the_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="got 5.*only 4 classes"):
        keep(Scores(np.zeros(4)), NAMES, 5)


def test_a_cap_passes_over_the_rest_of_a_group_and_ties_stay_stable() -> None:
    scores = Scores(np.array([0.4, 0.3, 0.3, -np.inf]))
    groups = ("x", "y", "y", "z")
    assert keep(scores, NAMES, 4, groups, 1).tolist() == [0, 2]
    assert keep(scores, NAMES, 4, groups, 2).tolist() == keep(scores, NAMES, 4).tolist()
    assert keep(scores, NAMES, 1, groups, 1).tolist() == [0]


def test_nan_scores_are_refused() -> None:
    with pytest.raises(UserError, match="'c' is NaN"):
        keep(Scores(np.array([0, np.nan, 0, 0])), NAMES, 2)
