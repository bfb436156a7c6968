"""What MLflow's pages show of a run at first sight: short texts, and no number that is not one."""

from __future__ import annotations

from uotft.tracking import notes


def test_kept_classes_are_a_short_line() -> None:
    names = [f"class {i}" for i in range(60)]
    assert notes.classes(names) == "60 classes: class 0, class 1, class 2, class 3, class 4, …"
    assert notes.classes(["owl", "a\nb"]) == "2 classes: owl, a b"
    assert notes.classes(["owl"]) == "1 class: owl"
    assert notes.classes([]) == "0 classes"
    assert notes.classes(["owl 1", "owl 2"], "cluster") == "2 clusters: owl 1, owl 2"
    assert len(notes.classes(["x" * 9000] * 9)) <= 500


def test_numbers_that_a_strategy_lacks_are_not_numbers() -> None:
    """MLflow's parallel coordinates put a run without a number above the greatest one."""
    others = [{"cost_scale": 0.01, "metric": "cosine"}, {"quantile": 1, "strict": True}]
    assert notes.lacking({}, others) == {"cost_scale": "-", "quantile": "-"}
    assert notes.lacking({"cost_scale": 0.5}, others) == {"quantile": "-"}


def test_the_source_column_says_strategy_seed_and_accuracy() -> None:
    assert notes.headline("uot", "0") == "uot, seed 0"
    assert notes.headline("uot", "0", "test", 85.2) == "85.20 % test (uot, seed 0)"
    assert notes.headline("uot", "0", "val", 85.2) == "val 85.20 % (uot, seed 0)"
