"""Linear probe: multinomial logistic regression on the labelled images' features.

    min over W, b of  C sum_i CE(W z_i + b, y_i) + |W|^2 / 2,    z_i = (f_i - mean f) / r

f_i are the features that the head reads, and r is the root mean square of |f_i - mean f|: one scale
for all features. A scale for each would blow up features that hardly vary. C is chosen by
stratified cross-validation: most images right, and of several the smallest cross-entropy. The probe
is a method of its own (Kornblith et al. 2019) and a start for fine-tuning (LP-FT, Kumar et al.
2022).

    uotft train --dataset digits --strategy none --set train.target_head=probe

The digits depend on the set of images alone: not on their order, nor on the number of threads.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import Interrupted
from uotft.core.records import Floats, Progress, silently

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Labels = NDArray[np.int64]

#: The values of C that are tried, ascending: each fit starts from the one before.
GRID = tuple(float(c) for c in 10.0 ** np.arange(-1, 4.25, 0.5))
SINGLE = GRID[3]  # C if a class has one image, so that none can be held out: 10^0.5
FOLDS = 5
ITERATIONS = 1000  # the most of one fit
CLOSE, ROUGH = 1e-8, 1e-6  # largest gradient at the end: of the probe, and in cross-validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A linear head, ``weight`` (T, D) and ``bias`` (T,), and how its C was chosen.

    ``right`` is the share of held-out images in percent, over ``folds`` folds; with 0 folds C is
    ``SINGLE``.
    """

    weight: Floats
    bias: Floats
    images: int
    c: float
    folds: int
    right: float

    @property
    def head(self) -> tuple[Floats, Floats]:
        """What a linear layer needs."""
        return self.weight, self.bias

    @property
    def facts(self) -> dict[str, Any]:
        """What model.json says of it."""
        held_out = {"folds": self.folds, "held_out_top1": self.right} if self.folds else {}
        return {"C": self.c, **held_out}

    def __str__(self) -> str:
        classes = len(self.bias)
        how = "the default where a class has one image"
        if self.folds:
            end = "" if GRID[0] < self.c < GRID[-1] else ", the end of what is tried"
            how = f"by {self.folds}-fold cross-validation, {self.right:.1f} % right{end}"
        return f"linear probe of {self.images} images, {classes} classes: C = {self.c:.3g}, {how}"


def fit(
    features: NDArray[Any],
    labels: Labels,
    *,
    progress: Progress = silently,
    stop: Callable[[], bool] = lambda: False,
) -> Probe:
    """The probe of some images: ``features`` (n, D) of any float type, ``labels`` (n,) 0..T-1.

    Every class needs an image. A fit that does not converge is logged as a warning; raises
    `Interrupted` before the next fit once ``stop`` is true.
    """
    from threadpoolctl import threadpool_limits  # scikit-learn needs it

    # sorted by class and content, so that neither folds nor sums depend on the order
    order = sorted(range(len(labels)), key=lambda i: (labels[i], features[i].tobytes()))
    points, labels = features[order].astype(np.float64), labels[order]
    mean = points.mean(0)
    points -= mean
    scale = float(np.sqrt(np.square(points).sum(1).mean())) or 1.0
    folds = min(FOLDS, int(np.bincount(labels).min()))
    with threadpool_limits(1):  # sums in another order have other last digits
        coordinates, basis = _coordinates(points / scale)
        c, right = SINGLE, float("nan")
        if folds > 1:
            c, right = _chosen(coordinates, labels, folds, progress, stop)
        model = _model(CLOSE)
        _fit(model, c, coordinates, labels, stop)
        weight, bias = _rows(model)
        weight = weight @ basis / scale
    return Probe(weight, bias - weight @ mean, len(labels), c, folds if folds > 1 else 0, right)


def _coordinates(points: Floats) -> tuple[Floats, Floats]:
    """``points`` (n, D) in a basis of the space that they span: (n, r), and the basis (r, D).

    W lies in that space too, and its length stays the same: the solution is that of all D features,
    for less work.
    """
    if len(points) >= points.shape[1]:
        return points, np.eye(points.shape[1])
    basis, coordinates = np.linalg.qr(points.T)
    return np.ascontiguousarray(coordinates.T), basis.T


def _chosen(
    points: Floats, labels: Labels, folds: int, progress: Progress, stop: Callable[[], bool]
) -> tuple[float, float]:
    """The C of the grid that does best on held-out images, and how many percent are right.

    ``labels`` are sorted, so every ``folds``-th image makes a stratified fold.
    """
    from scipy.special import log_softmax  # scikit-learn's own is infinite where it is sure

    fold = np.arange(len(labels)) % folds
    right, loss = np.zeros(len(GRID)), np.zeros(len(GRID))
    numbers: Iterable[int] = progress(range(folds), "cross-validation of the probe")
    for number in numbers:
        held, model = fold == number, _model(ROUGH)
        for place, c in enumerate(GRID):
            _fit(model, c, points[~held], labels[~held], stop)
            weight, bias = _rows(model)
            logits = points[held] @ weight.T + bias
            right[place] += (logits.argmax(1) == labels[held]).sum()
            loss[place] -= log_softmax(logits, 1)[np.arange(held.sum()), labels[held]].sum()
    best = min(range(len(GRID)), key=lambda place: (-right[place], loss[place]))
    return GRID[best], 100 * float(right[best]) / len(labels)


def _rows(model: LogisticRegression) -> tuple[Floats, Floats]:
    """Weight (T, r) and bias (T,); of two classes scikit-learn has the difference alone."""
    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(bias) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _model(tolerance: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(tol=tolerance, max_iter=ITERATIONS, warm_start=True)


def _fit(
    model: LogisticRegression, c: float, points: Floats, labels: Labels, stop: Callable[[], bool]
) -> None:
    """Fit at ``c``, from the model's last fit; a warning if that does not converge.

    Of two classes scikit-learn fits the difference w of the rows of W, and |w|^2 = 2 |W|^2.
    """
    from sklearn.exceptions import ConvergenceWarning

    if stop():
        raise Interrupted("the linear probe was interrupted")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # few images of many classes look like no classification
        warnings.simplefilter("always", ConvergenceWarning)
        model.set_params(C=2 * c if len(np.unique(labels)) == 2 else c).fit(points, labels)
    if any(issubclass(each.category, ConvergenceWarning) for each in caught):
        logger.warning(
            "the linear probe with C = %.3g did not converge in %s iterations; it is used as it is",
            c,
            int(model.n_iter_.max()),
        )
