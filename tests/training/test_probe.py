"""``target_head: probe``: logistic regression on the stored features as the head's start."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from support.commands import call
from support.projects import tiny_params, workspace, write_params
from support.tiny_training import CELL, train
from uotft.core import storage
from uotft.core.errors import Interrupted
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.pipeline import forecast, readers, select
from uotft.training import probe


def toy(
    images: int, features: int = 6, classes: int = 4, spread: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Points around the corners of a cube of length 5, far from the origin."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % classes
    corners = 100 + 5 * np.eye(classes, features)
    return (corners[labels] + spread * rng.normal(size=(images, features))).astype("f4"), labels


def answers(made: probe.Probe, features: np.ndarray) -> np.ndarray:
    return (features.astype(np.float64) @ made.weight.T + made.bias).argmax(1)


@pytest.mark.parametrize(("images", "features"), [(40, 6), (40, 64), (12, 300)])
@pytest.mark.parametrize("classes", [2, 4])
def test_classes_that_can_be_separated_are(images: int, features: int, classes: int) -> None:
    points, labels = toy(images, features, classes, spread=0.05)
    made = probe.fit(points, labels)
    assert made.weight.shape == (classes, features)
    assert made.bias.shape == (classes,)
    assert (answers(made, points) == labels).all()
    assert (made.folds, made.right) == (min(5, images // classes), 100)


@pytest.mark.parametrize(("images", "features"), [(60, 8), (30, 50)])
@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_solution(images: int, features: int, classes: int) -> None:
    """On the points as they are, one scale apart, with every feature in its own place."""
    from sklearn.linear_model import LogisticRegression

    points, labels = toy(images, features, classes, spread=2)
    made = probe.fit(points, labels)
    centred = points - points.astype(np.float64).mean(0)
    scaled = centred / np.sqrt((centred**2).sum(1).mean())
    c = made.c * (2 if classes == 2 else 1)  # theirs penalises the difference of two rows
    theirs = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(scaled, labels)
    logits = points.astype(np.float64) @ made.weight.T + made.bias
    ours = np.exp(logits - logits.max(1, keepdims=True))
    ours /= ours.sum(1, keepdims=True)
    assert np.allclose(ours, theirs.predict_proba(scaled), atol=1e-5)
    assert (answers(made, points) == theirs.predict(scaled)).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_it_minimises_the_equation_of_its_page(classes: int) -> None:
    points, labels = toy(60, 8, classes, spread=2)
    made = probe.fit(points, labels)
    centred = points - points.astype(np.float64).mean(0)
    length = np.sqrt((centred**2).sum(1).mean())

    def objective(scale: float) -> float:
        logits = scale * (points.astype(np.float64) @ made.weight.T + made.bias)
        loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
        return made.c * loss.sum() + ((scale * length * made.weight) ** 2).sum() / 2

    assert objective(1) < min(objective(0.99), objective(1.01))


def test_the_order_of_the_images_changes_nothing() -> None:
    points, labels = toy(40, spread=3)
    one = probe.fit(points, labels)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(40)
        other = probe.fit(points[order], labels[order])
        assert np.array_equal(one.weight, other.weight)
        assert np.array_equal(one.bias, other.bias)
        assert one.facts == other.facts


def test_one_scale_for_all_features() -> None:
    """Twice the features give half of the weights, and the same answers."""
    points, labels = toy(40, spread=3)
    one, other = probe.fit(points, labels), probe.fit(2 * points, labels)
    assert one.facts == other.facts
    assert np.array_equal(one.weight, 2 * other.weight)


def test_a_class_of_one_image_has_a_default() -> None:
    points, labels = toy(41)
    few = np.flatnonzero(labels < 3)
    rows = np.append(few, np.flatnonzero(labels == 3)[0])
    made = probe.fit(points[rows], labels[rows])
    assert made.facts == {"C": probe.SINGLE}
    assert str(made).endswith("C = 3.16, the default where a class has one image")
    assert (answers(made, points) == labels).all()
    alone = probe.fit(*toy(4))
    assert (answers(alone, toy(4)[0]) == range(4)).all()


def test_images_that_are_all_the_same_give_a_head_without_an_opinion() -> None:
    made = probe.fit(np.ones((8, 5), np.float16), np.arange(8) % 2)
    assert np.allclose(made.weight, 0)
    assert np.isfinite(made.bias).all()


def test_the_fit_that_does_not_converge_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe, "ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.fit(*toy(40, spread=3))
    assert "did not converge in 2 iterations; it is used as it is" in caplog.text


def test_it_stops_between_two_fits() -> None:
    asked = iter([False] * 7 + [True])
    with pytest.raises(Interrupted, match="linear probe was interrupted"):
        probe.fit(*toy(40), stop=lambda: next(asked))


DIGITS = """
import hashlib, sys
import numpy as np
from uotft.training import probe
rng = np.random.default_rng(0)
made = probe.fit(rng.normal(size=(90, 400)).astype("f4"), np.arange(90) % 9)
print(hashlib.sha256(made.weight.tobytes() + made.bias.tobytes()).hexdigest())
"""


def test_the_number_of_threads_changes_no_digit() -> None:
    def made(threads: int) -> str:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        env = os.environ | dict.fromkeys(names, str(threads))
        command = [sys.executable, "-c", DIGITS]
        return subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout

    assert made(1) == made(2)


def probed(root: Path, **more: object):  # noqa: ANN201
    params = tiny_params()
    params["train"] |= {"target_head": "probe"} | more
    write_params(root, params)
    ws = workspace(root)
    select.select(ws, Cell(*CELL))
    return ws


def test_training_starts_from_it(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    ws = probed(fresh, objective="frozen")
    train(fresh)
    network, facts = model_io.read(ws.cell("models", Cell(*CELL)))
    features, labels = readers.labelled_features(ws, "digits", 0)
    made = probe.fit(features, labels)
    assert np.array_equal(network.head("target").weight.detach().numpy(), made.weight.astype("f4"))
    assert facts["probe"] == made.facts
    assert str(made) in caplog.text
    with torch.no_grad():
        found = network.head("target")(torch.as_tensor(np.array(features))).argmax(1).numpy()
    assert (found == answers(made, features)).all()


def test_it_is_the_start_of_fine_tuning_too(fresh: Path) -> None:
    """LP-FT: step 0 is validated with the probe, and the steps go on from there."""
    first = []
    for objective in ("frozen", "plain"):
        probed(fresh, objective=objective)
        points = train(fresh)
        first += [numbers for step, numbers in points if not step and "val/top1" in numbers]
    assert first[0] == first[1]
    assert points[-1][0] == 12


def test_the_head_reads_the_trunk_where_selection_compares_others(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, pool = probed(fresh), readers.pool(workspace(fresh), "digits")
    with_trunk = pool | {"trunk": np.asarray(pool["features"]) * 2}
    monkeypatch.setattr(readers, "pool", lambda ws, name: with_trunk)
    found, _ = readers.labelled_features(ws, "digits", 0)
    monkeypatch.undo()
    plain, _ = readers.labelled_features(ws, "digits", 0)
    assert np.array_equal(found, 2 * plain)


def test_the_gradient_forecast_starts_from_it(fresh: Path) -> None:
    def of(head: str) -> float:
        ws = probed(fresh, target_head=head)
        return forecast.gradient_products(ws, "digits", [0], progress=lambda x, y: x)[0].target

    assert of("probe") != of("random")


@pytest.mark.slow
def test_the_command_trains_it(project: Path) -> None:
    words = ("--set", "train.target_head=probe", "--set", "train.objective=frozen")
    cell = ("--dataset", "digits", "--strategy", "none", "--seed", "0")
    done = call("uotft", "train", *cell, *words, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "linear probe of" in done.stderr
    [made] = project.glob("variants/*/models/digits/none/0/model.json")
    facts = storage.read_json(made)
    assert facts["steps"] == 0
    assert facts["probe"]["C"] in probe.GRID
