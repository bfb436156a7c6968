"""The contract of the objectives, and each objective against values worked out by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from support.commands import call
from support.projects import tiny_params, workspace, write_params
from support.stages import put_under_features, run_train
from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.data.subset import sample
from uotft.models import model_io
from uotft.models.inputs import to_input
from uotft.models.network import Network, Routes
from uotft.pipeline import readers, select
from uotft.training import objectives, streams
from uotft.training.finish import reestimate_norm
from uotft.training.objectives import (
    StartingPoint,
    co_tuning,
    joint,
    joint_co_tuning,
    joint_l2_sp,
    l2_sp,
    plain,
    pseudo_label,
)

NAMES = registry.names("objectives")
LOGS = {
    "plain": {"target"},
    "frozen": set(),
    "joint": {"target", "source"},
    "pseudo_label": {"target", "source"},
    "co_tuning": {"target", "classifier"},
    "l2_sp": {"target", "start", "head"},
    "joint_co_tuning": {"target", "source", "classifier"},
    "joint_l2_sp": {"target", "source", "start", "head"},
}
CLASSES = {"target": 3, "source": 4}
LABELS = {name: torch.tensor([0, 2, 1, 0, 2]) for name in ("target", "source", "strong")}


def context(weight: float = 0.5) -> StartingPoint:
    """Two parameters under a head of 3 classes, and a classifier of 4 that saw 5 images."""
    torch.manual_seed(0)
    seen = torch.randn(5, 4), LABELS["target"]
    kept = np.array([3, 1, 0, 2])  # best first
    return StartingPoint(weight, nn.Linear(1, 1), nn.Linear(1, 3), lambda: seen, lambda: seen, kept)


def outputs_of(routes: Routes) -> dict[str, Tensor]:
    torch.manual_seed(1)
    heads = {name: head for name, (_, head) in routes.items()}
    return {n: torch.randn(5, CLASSES[head], requires_grad=True) for n, head in heads.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_keeps_the_contract(name: str) -> None:
    module = registry.load("objectives", name, "objective")
    assert objectives.parts(module) <= {"target", "source", "strong"}
    assert objectives.heads(module) <= {"target", "source"}
    assert ("target", "target") in module.ROUTES.values()
    assert "20" in module.__doc__, "cite the paper"
    says = "This objective reads no source images" in module.__doc__
    assert says == ("source" not in objectives.parts(module)), "say what selected classes are for"
    given = context()
    terms = objectives.ready(module, module.Settings(), given)
    outputs = outputs_of(module.ROUTES)
    made = terms(outputs, LABELS)
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss, _ in made.values())
    sum(weight * loss for loss, weight in made.values()).backward()
    assert outputs["target"].grad.abs().sum() > 0


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[label]


def test_plain_and_joint_by_hand() -> None:
    outputs = {"target": torch.tensor([[1.0, 0.0]]), "source": torch.tensor([[0.0, 2.0, 0.0]])}
    labels = {"target": torch.tensor([0]), "source": torch.tensor([2])}
    target, source = cross_entropy([1, 0], 0), cross_entropy([0, 2, 0], 2)
    made = joint.terms(outputs, labels, 0.3)
    assert made["target"] == (pytest.approx(target), 1.0)
    assert made["source"] == (pytest.approx(source), 0.3)
    assert plain.terms(outputs, labels, 0.3) == {"target": (pytest.approx(target), 1.0)}


# the weak view of the first image is sure (0.9, 0.1), that of the second undecided (0.5, 0.5)
WEAK = torch.tensor([[math.log(9.0), 0.0], [1.0, 1.0]])
STRONG = torch.tensor([[0.0, 2.0], [3.0, 0.0]])


def pseudo(**settings: float) -> dict[str, tuple[Tensor, float]]:
    outputs = {"target": torch.tensor([[1.0, 0.0]]), "weak": WEAK, "strong": STRONG}
    labels = {"target": torch.tensor([0])}
    return pseudo_label.terms(outputs, labels, 0.3, pseudo_label.Settings(**settings))


def test_pseudo_label_by_hand() -> None:
    first = 0.9 * cross_entropy([0, 2], 0) + 0.1 * cross_entropy([0, 2], 1)
    second = 0.5 * cross_entropy([3, 0], 0) + 0.5 * cross_entropy([3, 0], 1)
    made = pseudo()
    assert made["target"] == (pytest.approx(cross_entropy([1, 0], 0)), 1.0)
    assert made["source"] == (pytest.approx((first + second) / 2), 0.3)
    assert pseudo(threshold=0.8)["source"][0] == pytest.approx(first / 2), "still divided by m"
    sharp = 81 / 82 * cross_entropy([0, 2], 0) + 1 / 82 * cross_entropy([0, 2], 1)
    assert pseudo(temperature=0.5, threshold=0.8)["source"][0] == pytest.approx(sharp / 2)


def test_no_gradient_passes_the_weak_view() -> None:
    outputs = outputs_of(pseudo_label.ROUTES)
    made = pseudo_label.terms(outputs, LABELS, 1.0, pseudo_label.Settings())
    sum(loss for loss, _ in made.values()).backward()
    assert outputs["weak"].grad is None
    soft = outputs["weak"].detach().softmax(1)
    expected = (outputs["strong"].detach().softmax(1) - soft) / 5
    assert torch.allclose(outputs["strong"].grad, expected, atol=1e-6)


def test_the_relation_is_the_mean_prediction_of_a_class() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [math.log(4.0), 0.0]])
    relation = co_tuning.relation(logits, torch.tensor([1, 0, 1]))
    assert torch.allclose(relation, torch.tensor([[0.5, 0.5], [0.525, 0.475]]))


def test_calibration_finds_the_temperature() -> None:
    """Of 4 images the classifier is right on 3, so it should be 75 % sure, whatever it claims."""
    logits = torch.tensor([[8.0, 0.0]] * 4)
    scale = co_tuning.inverse_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert 8 * scale == pytest.approx(math.log(3), rel=1e-3)


@pytest.mark.parametrize("calibrate", [True, False])
def test_co_tuning_by_hand(calibrate: bool) -> None:
    seen = torch.tensor([[8.0, 0.0]]), torch.tensor([0])
    held_out = torch.tensor([[8.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    given = StartingPoint(0.3, nn.Linear(1, 1), nn.Linear(1, 3), lambda: seen, lambda: held_out)
    terms = co_tuning.prepare(given, co_tuning.Settings(weight=2.0, calibrate=calibrate))
    outputs = {"target": torch.tensor([[1.0, 0.0]]), "classifier": torch.tensor([[0.0, 2.0]])}
    made = terms(outputs, {"target": torch.tensor([0])})
    first = 0.75 if calibrate else 1 / (1 + math.exp(-8))
    expected = first * cross_entropy([0, 2], 0) + (1 - first) * cross_entropy([0, 2], 1)
    assert made["target"] == (pytest.approx(cross_entropy([1, 0], 0)), 1.0)
    assert made["classifier"] == (pytest.approx(expected, rel=1e-3), 2.0)


def test_co_tuning_pulls_the_classifier_towards_the_relation() -> None:
    given = context()
    terms = co_tuning.prepare(given, co_tuning.Settings(calibrate=False))
    outputs = outputs_of(co_tuning.ROUTES)
    terms(outputs, LABELS)["classifier"][0].backward()
    relation = co_tuning.relation(*given.seen_target())[LABELS["target"]]
    expected = (outputs["classifier"].detach().softmax(1) - relation) / 5
    assert torch.allclose(outputs["classifier"].grad, expected, atol=1e-6)
    assert outputs["target"].grad is None


def test_both_together_have_the_terms_of_each() -> None:
    given, outputs = context(), outputs_of(joint_l2_sp.ROUTES)
    made = joint_l2_sp.prepare(given, joint_l2_sp.Settings())(outputs, LABELS)
    pull = l2_sp.prepare(given, l2_sp.Settings())(outputs, LABELS)
    assert made == {**pull, **joint.terms(outputs, LABELS, 0.5)}

    outputs = outputs_of(joint_co_tuning.ROUTES)
    settings = joint_co_tuning.Settings(weight=2.0, calibrate=False)
    made = joint_co_tuning.prepare(given, settings)(outputs, LABELS)
    probabilities, seen = given.seen_target()
    kept = torch.stack([probabilities[seen == c][:, [3, 1, 0, 2]].softmax(1).mean(0)
                        for c in range(3)])  # fmt: skip
    assert made["classifier"] == (
        functional.cross_entropy(outputs["classifier"], kept[LABELS["target"]]), 2.0)  # fmt: skip
    assert made["source"] == (functional.cross_entropy(outputs["source"], LABELS["source"]), 0.5)


def test_clusters_are_none_of_the_classifiers_classes() -> None:
    given = replace(context(), classes=np.empty(0, int))
    with pytest.raises(UserError, match="with select.unit: cluster there are none; choose class"):
        joint_co_tuning.prepare(given, joint_co_tuning.Settings())


def test_l2_sp_by_hand_and_its_gradient() -> None:
    given, settings = context(), l2_sp.Settings(alpha=0.2, beta=0.5)
    terms = l2_sp.prepare(given, settings)
    start = [w.detach().clone() for w in given.backbone.parameters()]
    with torch.no_grad():
        for step, weight in enumerate(given.backbone.parameters(), 1):
            weight += step
    outputs = outputs_of(l2_sp.ROUTES)
    made = terms(outputs, LABELS)
    found = {name: (loss.item(), weight) for name, (loss, weight) in made.items()}
    assert found["start"] == (pytest.approx((1 + 4) / 2), 0.2)
    square = sum(float(v.detach().square().sum()) for v in given.head.parameters())
    assert found["head"] == (pytest.approx(square / 2), 0.5)
    assert made["target"][0] == functional.cross_entropy(outputs["target"], LABELS["target"])
    sum(weight * loss for loss, weight in made.values()).backward()
    for weight, first in zip(given.backbone.parameters(), start, strict=True):
        assert torch.allclose(weight.grad, 0.2 * (weight - first).detach())
    for weight in given.head.parameters():
        assert torch.allclose(weight.grad, 0.5 * weight.detach())


@pytest.mark.parametrize("strategy", ["uot", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_logs_every_term(fresh: Path, name: str, strategy: str) -> None:
    params = tiny_params()
    params["train"] |= {"objective": name}
    write_params(fresh, params)
    points = [n for _, n in run_train(fresh, strategy) if "loss/target" in n]
    reads = "source" in objectives.parts(registry.load("objectives", name, "objective"))
    used = name if strategy == "uot" or not reads else "plain"
    logged = {f"loss/{term}" for term in LOGS[used]}
    for numbers in points:
        assert set(numbers) == logged | {"learning_rate"}
        assert all(math.isfinite(value) for value in numbers.values())
    folder = workspace(fresh).cell("models", Cell("digits", strategy, 0))
    network, facts = model_io.read(folder)
    assert len(facts["reused"]) == (5 if reads and strategy == "uot" else 0)
    assert facts["objective"] == used
    heads = {"co_tuning": 12}.get(used, 5 * used.startswith("joint"))
    assert len(facts["source_classes"]) == heads
    assert ("source" in network.heads) == (heads > 0)


@pytest.mark.parametrize("name", ["plain", "frozen", "co_tuning", "l2_sp"])
def test_selected_classes_have_no_part_in_it(fresh: Path, name: str) -> None:
    params = tiny_params()
    params["train"] |= {"objective": name}
    write_params(fresh, params)
    made = []
    for strategy in ("none", "uot"):
        run_train(fresh, strategy)
        folder = workspace(fresh).cell("models", Cell("digits", strategy, 0))
        made.append(storage.fingerprint(folder / "model.safetensors"))
    assert made[0] == made[1]


def test_co_tuning_starts_from_the_whole_classifier(fresh: Path) -> None:
    params = tiny_params()
    params["train"] |= {"objective": "co_tuning", "source_head": "random"}
    params["train"]["recipe"] |= {"steps": 1, "learning_rate": 1e-9}
    write_params(fresh, params)
    run_train(fresh, "none")
    ws = workspace(fresh)
    network, _ = model_io.read(ws.cell("models", Cell("digits", "none", 0)))
    pretrained, _ = model_io.read(ws.pretrained())
    assert torch.allclose(
        network.head("source").weight, pretrained.head("target").weight, atol=1e-6
    )


def test_co_tuning_knows_the_drawn_images_alone(fresh: Path) -> None:
    """The other training images decide nothing, though the relation is learned from images."""
    params = tiny_params()
    params["train"] |= {"objective": "co_tuning"}
    write_params(fresh, params)
    ws, made = workspace(fresh), []
    images = readers.images(ws, "digits")
    pool = images.rows("train")
    drawn = sample(images.labels[pool], ws.params.subset, 0)
    others = np.setdiff1d(pool, pool[drawn])
    for rows in (others[:0], others, pool[drawn][:1]):
        images.images[rows] = 99
        put_under_features(ws, "digits", images)
        run_train(fresh, "none")
        folder = ws.cell("models", Cell("digits", "none", 0))
        made.append(storage.fingerprint(folder / "model.safetensors"))
    assert made[0] == made[1] != made[2]


def test_settings_of_an_objective_are_checked(fresh: Path) -> None:
    params = tiny_params()
    params["train"] |= {"objective": "l2_sp"}
    params["objectives"] |= {"l2_sp": {"alpha": -1.0}}
    write_params(fresh, params)
    with pytest.raises(UserError, match=r"objectives\.l2_sp:\n  alpha: got -1\.0"):
        run_train(fresh, "none")
    assert not workspace(fresh).cell("models", Cell("digits", "none", 0)).exists()


def history(root: Path, strategy: str = "uot") -> list[dict[str, str]]:
    return storage.read_csv(
        workspace(root).cell("models", Cell("digits", strategy, 0)) / "history.csv"
    )


def trained(root: Path, **train: object) -> dict[str, Tensor]:
    params = tiny_params()
    params["train"] |= train
    write_params(root, params)
    run_train(root)
    network, _ = model_io.read(workspace(root).cell("models", Cell("digits", "uot", 0)))
    return network.state_dict()


def test_the_second_stage_moves_the_target_head_alone(fresh: Path) -> None:
    before, after = trained(fresh), trained(fresh, head_steps=6)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"heads.target.weight", "heads.target.bias"}
    steps = [int(row["step"]) for row in history(fresh)]
    assert steps == [0, 4, 6, 8, 12, 16, 18]
    assert history(fresh)[-1]["val/top1"]


def test_the_second_stage_reads_batches_that_the_first_has_not(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    take = streams.Stream.__getitem__

    def noted(stream: streams.Stream, step: int) -> streams.Batch:
        if stream.key[1] == crc32(b"target"):
            read.append(step)
        return take(stream, step)

    monkeypatch.setattr(streams.Stream, "__getitem__", noted)
    recipe = tiny_params()["train"]["recipe"] | {"accumulate": 2}
    trained(fresh, recipe=recipe, head_steps=3)
    assert sorted(read) == [*range(2 * recipe["steps"] + 3)]


def test_norms_are_the_mean_over_the_labelled_images(fresh: Path) -> None:
    """By hand: the first norm layer's input, over every pixel of the seed's labelled images."""
    before, after = trained(fresh), trained(fresh, reestimate_norm=True)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")
               for name in changed)  # fmt: skip
    ws = workspace(fresh)
    images, pool = readers.images(ws, "digits"), readers.images(ws, "digits").rows("train")
    rows = pool[sample(images.labels[pool], ws.params.subset, 0)]
    network, _ = model_io.read(ws.cell("models", Cell("digits", "uot", 0)))
    with torch.no_grad():
        found = network.backbone.layers[0](to_input(torch.as_tensor(images.images[rows])))
    norm = network.backbone.layers[1]
    assert torch.allclose(norm.running_mean, found.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, found.var((0, 2, 3)), rtol=1e-4)


def test_the_last_point_is_of_the_norms_that_are_kept(fresh: Path) -> None:
    """MLflow keeps the first value of a step."""
    params = tiny_params()
    params["train"]["reestimate_norm"] = True
    write_params(fresh, params)
    last = [numbers for step, numbers in run_train(fresh) if step == 12 and "val/top1" in numbers]
    assert [f"{numbers['val/top1']}" for numbers in last] == [history(fresh)[-1]["val/top1"]]


def test_dropout_does_not_reach_the_norms() -> None:
    """timm has it between norm layers; it is off in a test."""
    backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(64))
    backbone.features, backbone.channels = 64, 1
    network = Network(backbone, target=2)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    reestimate_norm(network.train(), images)
    norm = network.backbone[2]
    pixels = to_input(torch.as_tensor(images)).flatten(1)
    assert torch.allclose(norm.running_var, pixels.var(0), rtol=1e-4)
    assert (norm.momentum, network.training, norm.training) == (0.1, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pseudo_label", "l2_sp"])
def test_two_processes_train_it_to_the_end(fresh: Path, name: str) -> None:
    """Three parts of a batch; weights that are read beside the model; then the head alone."""
    params = tiny_params()
    params["train"] |= {"objective": name, "head_steps": 6, "reestimate_norm": True}
    write_params(fresh, params)
    select.select(workspace(fresh), Cell("digits", "uot", 0))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    worker = ("-m", "uotft.runs.worker", str(fresh / "events"), "train", "digits", "uot", "0")
    done = call(sys.executable, *torchrun, *worker, cwd=fresh)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = history(fresh)
    assert [int(row["step"]) for row in rows] == [0, 4, 6, 8, 12, 16, 18]
    assert all(math.isfinite(float(row["loss/target"])) for row in rows if row["loss/target"])
    model_io.read(workspace(fresh).cell("models", Cell("digits", "uot", 0)))
