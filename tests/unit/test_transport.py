import numpy as np
import pytest

from uotft import transport
from uotft.errors import UserError
from uotft.records import ClassBank
from uotft.selectors import uot


def bank(means: list[list[float]]) -> ClassBank:
    names = tuple(f"class {i}" for i in range(len(means)))
    return ClassBank(np.array(means, float), names, np.ones(len(means), int))


def test_costs() -> None:
    a, b = bank([[1, 0], [0, 2]]), bank([[3, 0]])
    assert transport.cost(a, b, "cosine").tolist() == [[0.0], [1.0]]
    assert transport.cost(a, b, "l2").tolist() == [[2.0], [pytest.approx(13**0.5)]]


@pytest.mark.parametrize(
    ("means", "metric", "message"),
    [
        ([[1, 0], [np.nan, 0]], "l2", r"'class 1' \(row 1\).*NaN"),
        ([[1, 0], [np.inf, 0]], "cosine", r"row 1.*infinite"),
        ([[0, 0], [1, 0]], "cosine", r"row 0.*zero"),
        ([[1, 0, 0]], "cosine", "3 features and target means 2"),
    ],
)
def test_bad_means_are_refused(means: list, metric: transport.Metric, message: str) -> None:
    with pytest.raises(UserError, match=message):
        transport.cost(bank(means), bank([[1, 1]]), metric)


def test_the_source_class_near_a_target_receives_the_mass() -> None:
    scores = uot.score(bank([[1, 0], [0, 1], [1, 1]]), bank([[1, 0.1]]), uot.Settings(), 0)
    assert scores.values.argmax() == 0
    assert scores.plan is not None
    assert scores.plan.shape == (3, 1)


def test_a_solver_that_stops_early_is_an_error_not_a_ranking() -> None:
    hasty = uot.Settings(solver=transport.Solver(max_iterations=2))
    with pytest.raises(transport.NotConverged, match="after 2 sweeps.*raise max_iterations"):
        uot.score(bank([[1, 0], [0, 1]]), bank([[1, 1], [1, 0]]), hasty, 0)


@pytest.mark.parametrize("cost_scale", [1e-4, 1e-2, 1.0, 10.0])
def test_any_cost_scale_gives_finite_scores(cost_scale: float) -> None:
    rng = np.random.default_rng(0)
    source, target = bank(rng.normal(size=(30, 8)).tolist()), bank(rng.normal(size=(5, 8)).tolist())
    assert np.isfinite(
        uot.score(source, target, uot.Settings(cost_scale=cost_scale), 0).values
    ).all()
