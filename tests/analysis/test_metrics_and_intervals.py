"""metrics, statistics, evaluate, compare: the numbers that a table stands on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr, ttest_rel
from sklearn.metrics import balanced_accuracy_score

from support.child_processes import killed, pair
from uotft.analysis import comparison, markdown
from uotft.analysis.statistics import correlation, interval, paired
from uotft.core.context import Context
from uotft.training import metrics, runtime
from uotft.training.evaluation import answers, confusion


def test_accuracies_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.choice(3, 60, p=[0.7, 0.2, 0.1]), rng.integers(0, 3, 60)
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (true, predicted), 1)
    assert metrics.top1(matrix) == pytest.approx(100 * (true == predicted).mean())
    expected = 100 * balanced_accuracy_score(true, predicted)
    assert metrics.mean_per_class(matrix) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("correct", "images", "classes", "chance"),
    [
        (3, 30, 10, True),  # 10 %
        (0, 30, 10, True),
        (7, 30, 10, False),
        (510, 1000, 2, True),
        (540, 1000, 2, False),
        (9, 50, 10, True),  # p = 0.058
        (10, 50, 10, False),  # p = 0.025
        (20, 20, 2, False),
        (0, 0, 2, False),  # nothing was asked
        (9, 9, 1, False),  # and here nothing can be
    ],
)
def test_what_cannot_be_told_from_guessing(
    correct: int, images: int, classes: int, *, chance: bool
) -> None:
    assert metrics.at_chance(correct, images, classes) == chance


def test_paired_interval_against_scipy() -> None:
    a, b = {0: 3.0, 1: 5.0, 2: 4.5, 3: 9.0}, {0: 2.0, 1: 4.5, 2: 4.0, 7: 0.0}
    result = paired(a, b)
    expected = ttest_rel([3.0, 5.0, 4.5], [2.0, 4.5, 4.0]).confidence_interval(0.95)
    assert result.n == 3
    assert (result.mean - result.half, result.mean + result.half) == pytest.approx(tuple(expected))


def test_one_seed_has_no_interval() -> None:
    assert np.isnan(interval([4.0]).half)


@pytest.mark.parametrize("pooled", [True, False])
def test_correlations_against_scipy(pooled: bool) -> None:
    x, noise = np.random.default_rng(0).normal(size=(2, 6, 8)).round(1)
    y = x + noise
    points = (x.ravel(), y.ravel()) if pooled else (x.mean(1), y.mean(1))
    for ranks, expected in ((True, spearmanr), (False, pearsonr)):
        found = correlation(x, y, ranks=ranks, pooled=pooled)
        assert found.value == pytest.approx(expected(*points).statistic)
        assert found.low < found.value < found.high
        assert found.n == len(points[0])


def test_a_correlation_needs_three_points_and_two_seeds() -> None:
    x = np.array([[1.0, 2.0]])
    assert str(correlation(x, x, ranks=False, pooled=True)) == "too few points"
    one_seed = correlation(
        np.arange(4.0)[:, None], np.arange(4.0)[:, None], ranks=False, pooled=True
    )
    assert one_seed.value == pytest.approx(1)
    assert not one_seed.is_significant(), "without an interval nothing is shown"


class Brightness(torch.nn.Module):
    """Says class 1 for bright images."""

    channels = 1

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = images.mean((1, 2, 3))
        return {"target": torch.stack([-mean, mean], 1)}


def test_every_image_is_counted_once() -> None:
    images = np.zeros((13, 4, 4), np.uint8)
    images[:5] = 255
    labels = np.array([1] * 4 + [0] * 9)
    matrix = confusion(
        Brightness(), images, labels, Context(runtime.start(0, 1)), classes=2, batch_size=4
    )  # 13 is no multiple of 4
    assert matrix.tolist() == [[8, 1], [0, 4]]
    predicted = answers(Brightness(), images, Context(runtime.start(0, 1)), batch_size=4)
    assert predicted.tolist() == [1] * 5 + [0] * 8


def test_two_processes_count_every_image_once(tmp_path: Path) -> None:
    """13 images are no multiple of two processes times three; one image is fewer than two."""
    images = np.zeros((13, 4, 4), np.uint8)
    images[:5] = 255
    labels = np.array([1] * 4 + [0] * 9)

    def work(rank: int) -> None:
        for n in (13, 1):
            matrix = confusion(
                Brightness(),
                images[:n],
                labels[:n],
                Context(runtime.start(0, 1)),
                classes=2,
                batch_size=3,
            )
            np.save(tmp_path / f"{n}-{rank}.npy", matrix)
        predicted = answers(Brightness(), images, Context(runtime.start(0, 1)), batch_size=3)
        np.save(tmp_path / f"said-{rank}.npy", predicted)

    assert not any([killed(pid) for pid in pair(work)])
    for rank in range(2):
        assert np.load(tmp_path / f"13-{rank}.npy").tolist() == [[8, 1], [0, 4]]
        assert np.load(tmp_path / f"1-{rank}.npy").tolist() == [[0, 0], [0, 1]]
        assert np.load(tmp_path / f"said-{rank}.npy").tolist() == [1] * 5 + [0] * 8


def result(top1: float) -> dict:
    return {"top1": top1, "mean_per_class": top1 - 1, "source_classes": 4}


def test_comparison_pairs_seeds() -> None:
    rows = comparison.table(
        {
            "none": {"0": result(80), "1": result(90)},
            "uot": {"0": result(81), "1": result(91)},
        }
    )
    assert rows[1].against["none"].mean == pytest.approx(1)
    assert rows[1].against["none"].half == pytest.approx(0), "paired: the seeds' spread cancels"
    assert rows[0].against == {}
    assert "| uot | 2 | 4 | 86.00 ± " in markdown.table(comparison.cells(rows))


def test_the_note_on_overlap() -> None:
    def seeds(*top1: float, clean: dict | None) -> dict:
        extra = {} if clean is None else {"clean": clean}
        return {str(i): {"top1": value, "images": 50, **extra} for i, value in enumerate(top1)}

    assert comparison.overlap_note({"none": seeds(80.0, 90.0, clean=None)}) == ""
    some = {"none": seeds(80.0, 90.0, clean={"images": 47, "top1": 81.5})}
    assert comparison.overlap_note(some) == (
        "3 of 50 test images are also in the source. "
        "Mean top-1 with / without them, %: none 85.00 / 81.50."
    )
    more = seeds(82.0, clean={"images": 45, "top1": 80.0})
    mixed = {"all": seeds(70.0, clean=None), **some, "random": more}
    assert comparison.overlap_note(mixed).startswith("3 to 5 of 50 test images are also in the so")
    assert comparison.overlap_note(mixed).endswith("none 85.00 / 81.50, random 82.00 / 80.00.")
    every = {"none": seeds(80.0, clean={"images": 0})}
    assert comparison.overlap_note(every) == "50 of 50 test images are also in the source."
