import numpy as np
import pytest

from uotft.core.errors import UserError
from uotft.core.records import Scores, Selection
from uotft.selection.ranking import carriers, keep, recall, serves

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


def test_names_that_are_numbers_tie_by_value() -> None:
    assert keep(Scores(np.zeros(3)), ("10", "9", "2"), 3).tolist() == [2, 1, 0]
    assert keep(Scores(np.zeros(3)), ("1" + 20 * "0", "9", "2"), 3).tolist() == [2, 1, 0]


def test_k_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="got 0.*choose 1 to 4"):
        keep(Scores(np.zeros(4)), NAMES, 0)


@pytest.mark.parametrize(
    ("mass", "share", "k"),
    [
        ([8, 1, 1, 0], 0.99, 3),
        ([8, 1, 1, 0], 0.8, 1),
        ([8, 1, 1, 0], 0.81, 2),
        ([1, 1, 1, 1], 1.0, 4),
        ([0.1] * 4, 0.5, 2),
        ([1e-200, 1e-203, 1e-230, 0], 0.99, 1),
    ],
)
def test_the_fewest_classes_that_carry_the_mass(mass: list, share: float, k: int) -> None:
    with np.errstate(divide="ignore"):
        scores = Scores(np.log(np.array(mass, float)))
    assert carriers(scores, NAMES, share) == k


def test_recall() -> None:
    assert recall(np.array([3, 1, 0]), np.array([1, 2, 3])) == pytest.approx(200 / 3)


def test_serves_names_the_target_classes_that_take_the_mass() -> None:
    plan = np.array([[0.1, 0.1], [3.0, 1.0], [0.0, 2.0], [0.2, 0.2]])
    with np.errstate(divide="ignore"):
        log_plan = np.log(plan)
    scores = Scores(np.log(plan.sum(1)), log_plan=lambda rows: log_plan[rows])
    chosen = Selection("uot", np.array([1, 2]), NAMES, ("x", "y"), scores, {}, {})
    first, second = serves(chosen)
    assert [(s["name"], round(s["share"], 9)) for s in first] == [("x", 0.75), ("y", 0.25)]
    assert second[0]["name"] == "y"
    assert second[0]["share"] == pytest.approx(1)
    with pytest.raises(UserError, match="'random' has no transport plan"):
        serves(Selection("random", np.array([1]), NAMES, ("x", "y"), Scores(np.zeros(4)), {}, {}))
