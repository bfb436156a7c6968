"""The forecast, its stage, and its evaluation: delta^2 before training beside the gains."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from support.projects import workspace, write_params
from support.stages import put_under_features
from uotft.analysis import forecast_evaluation
from uotft.analysis.page import Picture, Table, Text
from uotft.core import storage
from uotft.core.records import Cell
from uotft.data.subset import sample
from uotft.models.backbones import small_resnet
from uotft.models.inputs import to_input
from uotft.models.network import Network
from uotft.pipeline import forecast, readers, select as select_stage, units
from uotft.training import gradients

LABELS = np.repeat([0, 1, 2, 3], [3, 5, 2, 4])
KEPT = np.array([3, 1])


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    backbone = small_resnet.build(small_resnet.Settings(widths=[2, 3]))
    return Network(backbone, target=2, source=4).eval()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (len(LABELS), 8, 8)).astype(np.uint8)


def of_source(network: Network, images: np.ndarray, **words) -> gradients.Gradients:
    return gradients.gradients(network.backbone, network.head("source"), images, LABELS, **words)


def by_autograd(network: Network, head: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One gradient an image, (n, P), in the plainest way."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        features = network.backbone(to_input(torch.as_tensor(image[None])))
        loss = functional.cross_entropy(network.head(head)(features), torch.tensor([label]))
        parts = torch.autograd.grad(loss, list(network.backbone.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.array(rows, dtype=np.float64)


def test_clusters_average_images_under_their_own_labels(
    network: Network, images: np.ndarray
) -> None:
    clusters = np.arange(len(LABELS)) % 3
    found = of_source(network, images, groups=clusters)
    each = by_autograd(network, "source", images, LABELS)
    assert found.counts.tolist() == [5, 5, 4]
    for c in range(3):
        assert np.allclose(found.means[c], each[clusters == c].mean(0), rtol=1e-3, atol=1e-5)


def test_products_equal_direct_computation(network: Network, images: np.ndarray) -> None:
    """Every measure from class products is what autograd gives image by image."""
    labels = np.array([0, 0, 1, 1])
    few = gradients.gradients(network.backbone, network.head("target"), images[:4], labels)
    [p] = gradients.products([few.mean()], of_source(network, images, batch_size=2))
    found = gradients.measures(p, KEPT)

    f = by_autograd(network, "target", images[:4], labels).mean(0)
    each = by_autograd(network, "source", images, LABELS)
    far = np.square(f - each).sum(1)
    rows = np.isin(LABELS, KEPT)
    means = {c: each[c == LABELS].mean(0) for c in KEPT}
    of_set = each[rows].mean(0)
    assert found == pytest.approx(
        {
            "delta2": far[rows].mean(),
            "worst_class": max(far[c == LABELS].mean() for c in KEPT),
            "class_means": np.mean([np.square(f - means[c]).sum() for c in LABELS[rows]]),
            "set_mean": np.square(f - of_set).sum(),
            "cosine": f @ of_set / np.linalg.norm(f) / np.linalg.norm(of_set),
        },
        rel=1e-4,
    )


def test_the_targets_own_images_are_nearest(network: Network, images: np.ndarray) -> None:
    """A source class that holds the target's one image, under the target's head, is at zero."""
    images[LABELS == 0] = images[0]
    head = network.head("source")
    target = gradients.gradients(network.backbone, head, images[:1], LABELS[:1])
    [p] = gradients.products([target.mean()], of_source(network, images))
    alone = [gradients.measures(p, np.array([c])) for c in range(4)]
    assert alone[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert alone[0]["delta2"] == pytest.approx(0, abs=1e-5 * p.target)
    assert min(m["delta2"] for m in alone[1:]) > 0.1 * p.target


def test_the_order_of_images_and_classes_changes_nothing(
    network: Network, images: np.ndarray
) -> None:
    order = np.random.default_rng(1).permutation(len(LABELS))
    backbone, head = network.backbone, network.head("source")
    plain, mixed = (
        gradients.products(
            [np.ones(of.means.shape[1])], of
        )[0]
        for of in (
            of_source(network, images),
            gradients.gradients(backbone, head, images[order], LABELS[order]),
        )
    )  # fmt: skip
    expected = gradients.measures(plain, KEPT)
    assert gradients.measures(mixed, KEPT[::-1]) == pytest.approx(expected, rel=1e-4)


def test_it_repeats_itself_and_leaves_the_network_alone(
    network: Network, images: np.ndarray
) -> None:
    before = copy.deepcopy(network.state_dict())
    first, again = of_source(network.train(), images), of_source(network, images)
    assert np.array_equal(first.means, again.means)
    assert np.array_equal(first.squares, again.squares)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---- the stage


@pytest.fixture
def selected(fresh: Path) -> Path:
    """A tiny workspace with the selections of two strategies and two seeds."""
    select(fresh)
    return fresh


def select(root: Path) -> None:
    for strategy in ("none", "uot"):
        for seed in (0, 1):
            select_stage.select(workspace(root), Cell("digits", strategy, seed))


def run_forecast(root: Path) -> dict:
    forecast.forecast(workspace(root), "digits", progress=lambda items, label: items)
    return storage.read_json(workspace(root).forecast("digits"))


def test_the_file_holds_every_cell_and_its_curve(selected: Path) -> None:
    cells = run_forecast(selected)
    assert list(cells) == ["uot"], "none keeps no class, so there is nothing to forecast"
    assert list(cells["uot"]) == ["0", "1"]
    for cell in cells["uot"].values():
        curve = {point["k"]: point for point in cell["curve"]}
        assert cell["selected"]["k"] == 5
        assert cell["selected"] == curve[5], "the order is rebuilt from the scores"
        assert (min(curve), max(curve)) == (1, 12)
        assert all(point["delta2"] > point["class_means"] > 0 for point in cell["curve"])
    assert cells["uot"]["0"] != cells["uot"]["1"]


def test_only_the_drawn_images_decide(selected: Path) -> None:
    """Scramble validation, test and undrawn training images: the forecast stays the same."""
    before = run_forecast(selected)
    ws = workspace(selected)
    images = readers.images(ws, "digits")
    pool = images.rows("train")
    drawn = [pool[sample(images.labels[pool], ws.params.subset, seed)] for seed in (0, 1)]
    others = np.setdiff1d(np.arange(len(images.labels)), np.concatenate(drawn))
    images.images[others] = 99
    put_under_features(ws, "digits", images)
    select(selected)
    assert run_forecast(selected) == before
    images.images[drawn[0][0]] = 99
    put_under_features(ws, "digits", images)
    select(selected)
    after = run_forecast(selected)
    assert after["uot"]["0"] != before["uot"]["0"]


@pytest.mark.parametrize("unit", ["cluster", "image"])
def test_other_units(fresh: Path, unit: str) -> None:
    """A forecast for clusters; none, and nothing in the report, for single images."""
    params = yaml.safe_load((fresh / "params.yaml").read_text())
    params["select"]["unit"] = unit
    write_params(fresh, params)
    ws = workspace(fresh)
    units.units(ws)
    for seed in (0, 1):
        for strategy in ("none", "uot"):
            select_stage.select(ws, Cell("digits", strategy, seed))
    cells = forecast.forecast(ws, "digits", progress=lambda items, label: items)
    if unit == "cluster":
        assert cells["uot"]["0"]["curve"][-1]["k"] == 9, "as many as there are clusters"
    else:
        assert cells == {}
        top1 = {"none": {0: 1.0, 1: 1.0}, "uot": {0: 1.0, 1: 1.0}}
        found = forecast_evaluation.evaluate("digits", cells, ["none", "uot"], {"test": top1})
        assert found is None


def test_its_part_of_the_report(selected: Path) -> None:
    cells = run_forecast(selected)
    top1 = {"none": {0: 80.0, 1: 82.0}, "uot": {0: 81.0, 1: 84.0}}
    both = {"validation": top1, "test": top1}
    found = forecast_evaluation.evaluate("digits", cells, ["none", "uot"], both)
    assert found.table[1][0] == "uot"
    assert found.table[1][-1].startswith("+1.50 ± ")
    assert found.correlations[1][2] == "too few points", "one strategy"
    assert found.picture.startswith(b"\x89PNG")
    assert "do not show that the forecast predicts" in found.note
    assert found.note in found.text()
    assert "| uot | 5 | " in found.text()
    parts = [part for section in found.sections() for part in section.parts]
    assert parts == [
        Table(found.table), Table(found.correlations), Picture(found.picture, "forecast"),
        Text(found.note),
    ]  # fmt: skip


@pytest.mark.parametrize("strategies", [["uot"], ["none", "random"]])
def test_nothing_to_evaluate(strategies: list[str]) -> None:
    """Without none there is no gain, without a kept class no forecast."""
    cells = {"uot": {"0": {"selected": {"k": 1, "delta2": 1.0, "cosine": 0.0}, "curve": []}}}
    assert forecast_evaluation.evaluate("digits", cells, strategies, {}) is None


# ---- the evaluation


def values(rows: list[list[float]]) -> forecast_evaluation.Values:
    return {f"s{i}": dict(enumerate(row)) for i, row in enumerate(rows)}


def test_gains_are_paired() -> None:
    top1 = {"none": {0: 80.0, 1: 90.0}, "uot": {0: 81.0, 1: 91.5, 7: 99.0}}
    assert forecast_evaluation.gains(top1, ["uot"]) == {"uot": {0: 1.0, 1: 1.5}}


@pytest.mark.parametrize(
    ("sign", "says"), [(-1, "yes, as theorem 1 says"), (1, "yes, against theorem 1")]
)
def test_a_planted_correlation_is_found_with_its_sign(sign: int, says: str) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 5, 6)) / 20
    forecast_ = np.arange(5)[:, None] + noise[0]
    gained = sign * np.arange(5)[:, None] + noise[1]
    rows = forecast_evaluation.correlations(values(forecast_), {"test": values(gained)})
    assert [row[1] for row in rows] == ["n", "5", "30"]
    assert {row[-1] for row in rows[1:]} == {f"{says}; {says}"}
    assert "not shown" not in forecast_evaluation.verdict(rows)


def test_no_correlation_is_said_plainly() -> None:
    noise = np.random.default_rng(3).normal(size=(2, 5, 6))
    rows = forecast_evaluation.correlations(values(noise[0]), {"test": values(noise[1])})
    assert {row[-1] for row in rows[1:]} == {"no; no"}
    assert "Every interval includes zero" in forecast_evaluation.verdict(rows)
