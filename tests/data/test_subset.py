"""Draws of labelled images, their manifests, cells of their own, and half of the source."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.image_folders import pictures
from support.projects import tiny_params, workspace, write_params
from support.stages import run_train
from uotft.core import config, storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell, ImageSet
from uotft.core.settings import Subset
from uotft.data.datasets import folder
from uotft.data.subset import longtail, sample, sizes
from uotft.pipeline import (
    data_export,
    embed,
    evaluate,
    forecast,
    prepare,
    readers,
    select,
    train as train_stage,
    units,
    workspace as workspace_stage,
)
from uotft.selection import features
from uotft.training import runtime

LABELS = np.random.default_rng(0).choice(4, 200, p=[0.4, 0.3, 0.2, 0.1])
THERE = np.bincount(LABELS)


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def test_committed_draws() -> None:
    """What seeds drew when there were shots alone: published results stand on it."""
    assert sample(np.tile(np.arange(3), 5), Subset(shots=2), 0).tolist() == [6, 12, 13, 4, 2, 8]


def test_nothing_set_is_every_image() -> None:
    assert sorted(sample(LABELS, Subset(), 3)) == list(range(200))


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_fraction_of_every_class(share: float) -> None:
    sampled = sample(LABELS, Subset(fraction=share), 0)
    assert len(set(sampled.tolist())) == len(sampled)
    assert np.bincount(LABELS[sampled]).tolist() == [round(share * n) for n in THERE.tolist()]


def test_a_small_fraction_leaves_one_image() -> None:
    assert sizes(THERE, Subset(fraction=0.001), 0).tolist() == [1, 1, 1, 1]


def test_smaller_draws_of_a_seed_lie_inside_larger_ones() -> None:
    chains = [[Subset(fraction=f) for f in (0.01, 0.2, 0.4, 0.8, 1.0)]]
    chains += [[Subset(longtail=i) for i in (100, 10, 2, 1)], [Subset(shots=n) for n in (1, 5, 9)]]
    chains += [[Subset(longtail=10), Subset(shots=int(THERE.min())), Subset()]]
    for seed in (0, 1):
        for chain in chains:
            sampled = [set(sample(LABELS, subset, seed).tolist()) for subset in chain]
            assert all(a < b for a, b in zip(sampled, sampled[1:], strict=False)), chain


def test_seeds_draw_apart() -> None:
    for subset in (Subset(fraction=0.2), Subset(longtail=10)):
        assert set(sample(LABELS, subset, 0)) != set(sample(LABELS, subset, 1))
    ranks = [np.argsort(longtail(np.full(50, 30), 10, seed)).tolist() for seed in (0, 1)]
    assert ranks[0] != ranks[1], "other classes are the large ones"


@pytest.mark.parametrize(("classes", "images"), [(100, 66), (200, 30), (2, 100)])
def test_a_long_tail_is_a_power_of_the_rank(classes: int, images: int) -> None:
    """Section 4.3: the largest class has 10 times the images of the smallest."""
    found = np.sort(longtail(np.full(classes, images), 10, 0))[::-1]
    assert found[0] == images
    assert found[-1] == round(images / 10)
    steps = np.log(found / images)  # against log rank: one straight line
    slope = -np.log(10) / np.log(classes)
    assert steps == pytest.approx(slope * np.log(np.arange(1, classes + 1)), abs=0.5 / found[-1])


def test_a_long_tail_takes_no_more_than_is_there() -> None:
    assert (longtail(THERE, 10, 0) <= THERE).all()
    assert longtail(THERE, 1, 0).tolist() == [THERE.min()] * 4
    assert longtail(np.array([7]), 10, 0).tolist() == [7], "one class has no tail"
    assert longtail(np.full(9, 2), 10, 0).min() == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"shots": 2, "fraction": 0.5}, "set only one of shots, fraction, or none"),
        ({"fraction": 0.0}, r"subset\.fraction: got 0.0: .* greater than 0"),
        ({"longtail": 0.5}, r"subset\.longtail: got 0.5: .* greater than or equal to 1"),
        ({"share": 0.5}, r"subset\.share: no such setting; known are fraction, longtail, shots"),
    ],
)
def test_wrong_sections(tmp_path: Path, section: dict, message: str) -> None:
    write_params(tmp_path, tiny_params() | {"subset": section})
    with pytest.raises(UserError, match=message):
        config.load(tmp_path)


@pytest.mark.parametrize(
    "option", ["", "fraction", "fraction=", "fraction=x", "share=1", "shots=[1"]
)
def test_wrong_values_of_subset(option: str) -> None:
    with pytest.raises(
        UserError, match="--subset: got .*; write shots=N, fraction=SHARE or longtail="
    ):
        config.subset_settings(option)


def test_values_of_subset() -> None:
    assert config.subset_settings("fraction=0.2") == Subset(fraction=0.2)
    assert config.subset_settings("longtail=10") == Subset(longtail=10)
    assert config.subset_settings("shots=5") == Subset(shots=5)


def test_a_manifest_is_what_a_seed_trains_on(tiny: Path, tmp_path: Path) -> None:
    ws, output = workspace(tiny), tmp_path / "subset.csv"
    summary, again = data_export.write_subset(
        ws, "digits", "fraction=0.2", 1, output, progress=quiet
    )
    images = readers.images(ws, "digits")
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    pool = images.rows("train")
    sampled = pool[sample(images.labels[pool], Subset(fraction=0.2), 1)]
    written = {
        s: [int(x["row"]) for x in lines if x["split"] == s] for s in ("train", "val", "test")
    }
    assert written["train"] == sorted(sampled.tolist())
    assert all(written[s] == images.rows(s).tolist() for s in ("val", "test"))
    assert all(x["label"] == images.names[images.labels[int(x["row"])]] for x in lines)
    assert f"{len(sampled)} of {len(pool)} training images" in summary
    assert "cannot be read as a data set; write shards instead: --output FOLDER" in again
    with pytest.raises(UserError, match="it lists rows of another set and no files; `uotft data"):
        folder.load(folder.Settings(path=str(output)), quiet)


def photos(root: Path) -> workspace_stage.Workspace:
    """A project with the set `plain` of image files, and `web` of the same in shards."""
    pictures(root / "photos", 3, 12)
    params = tiny_params()
    view = {"stored": 16, "size": 12, "share": 0.9}
    params["datasets"]["plain"] = {"kind": "folder", "path": "photos", **view}
    write_params(root, params)
    ws = workspace(root)
    prepare.prepare(ws, "plain", progress=quiet)
    lines = data_export.write_subset(ws, "plain", "fraction=1", 0, root / "web", progress=quiet)
    params["datasets"]["web"] = section(lines)
    write_params(root, params)
    prepare.prepare(workspace(root), "web", progress=quiet)
    return workspace(root)


def section(lines: list[str]) -> dict:
    """The section that a user pastes into params.yaml."""
    return yaml.safe_load(lines[1].removeprefix("as a data set: "))


def sampled(images: ImageSet, subset: Subset, seed: int) -> dict[str, list[tuple[str, bytes]]]:
    """{part: (class, picture) of each image} of what a seed trains on, and of val and test."""
    pool = images.rows("train")
    parts = {"train": pool[sample(images.labels[pool], subset, seed)]}
    parts |= {part: images.rows(part) for part in ("val", "test")}
    return {
        part: sorted((images.names[images.labels[row]], pixels(images, row)) for row in rows)
        for part, rows in parts.items()
    }


def pixels(images: ImageSet, row: int) -> bytes:
    found = images.images[row : row + 1][0]
    return (found if found.ndim == 3 else np.repeat(found[..., None], 3, 2)).tobytes()


@pytest.mark.parametrize("output", ["small.csv", "small"])
@pytest.mark.parametrize("name", ["plain", "web", "digits"])
def test_what_is_written_is_a_data_set_again(
    tiny: Path, tmp_path: Path, name: str, output: str
) -> None:
    ws = photos(tmp_path)
    if name == "digits":
        ws = workspace(Path(shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)))
    arguments = (ws, name, "longtail=3", 1, ws.root / output)
    lines = data_export.write_subset(*arguments, progress=quiet)
    if output == "small.csv" and name != "plain":
        assert f"its rows are those of data/{name}.npz and cannot be read" in lines[1]
        return
    params = yaml.safe_load((ws.root / "params.yaml").read_text())
    params["datasets"]["small"] = section(lines)
    write_params(ws.root, params)
    prepare.prepare(workspace(ws.root), "small", progress=quiet)
    again = readers.images(workspace(ws.root), "small")
    expected = sampled(readers.images(ws, name), Subset(longtail=3), 1)
    assert sampled(again, Subset(), 0) == expected
    assert again.names == readers.images(ws, name).names
    if again.files is not None and name != "digits":
        assert (again.files.size, again.files.share) == (12, 0.9)
    with pytest.raises(UserError, match="already there, and not empty; name a new one"):
        data_export.write_subset(*arguments, progress=quiet)


def test_a_set_without_tests_stays_one(tmp_path: Path) -> None:
    """No test images are cut from the training part of a part of a source."""
    ws = photos(tmp_path)
    images = storage.read_images(ws.data("plain"))
    splits = images.splits.copy()
    splits[splits == "test"] = "unused"
    storage.write_images(ws.data("plain"), replace(images, splits=splits))
    for output in ("part.csv", "part"):
        lines = data_export.write_subset(
            ws, "plain", "shots=2", 0, tmp_path / output, progress=quiet
        )
        params = yaml.safe_load((tmp_path / "params.yaml").read_text())
        params["datasets"]["part"] = section(lines)
        write_params(tmp_path, params)
        prepare.prepare(workspace(tmp_path), "part", progress=quiet)
        again = readers.images(workspace(tmp_path), "part")
        assert (len(again.rows("train")), len(again.rows("test"))) == (6, 0)


def train(root: Path, setting: str, seed: int = 0) -> workspace_stage.Workspace:
    """Select and train one cell with another setting, in this process."""
    ws = workspace(root).with_changes([setting])
    select.select(ws, Cell("digits", "uot", seed))
    training = runtime.start(seed, 1), {"log": lambda *_: None, "progress": quiet}
    train_stage.train(ws, Cell("digits", "uot", seed), Context(training[0], **training[1]))
    return ws


def test_another_subset_leaves_the_pipelines_cells_alone(fresh: Path) -> None:
    run_train(fresh)
    cells = {p: storage.fingerprint(p) for kind in ("selections", "models")
             for p in (fresh / kind).rglob("*") if p.is_file()}  # fmt: skip
    ws = train(fresh, "subset.fraction=0.50", seed=3)
    made = fresh / "variants/subset.fraction=0.5"
    assert (made / "models/digits/uot/3/model.safetensors").is_file()
    assert (made / "selections/digits/uot/3/selection.json").is_file()
    assert all(storage.fingerprint(p) == content for p, content in cells.items())
    results = evaluate.evaluate(ws, "digits", "uot", progress=quiet)
    assert list(results) == ["3"], "of a variant the seeds that it has"
    assert (made / "metrics/digits/uot.json").is_file()
    with pytest.raises(UserError, match="no model yet"):
        evaluate.evaluate(ws, "digits", "none", progress=quiet)


def test_the_words_of_params_yaml_give_the_same_weights(fresh: Path) -> None:
    run_train(fresh)
    weights = [fresh / part / "models/digits/uot/0/model.safetensors" for part in (
        "", f"variants/subset.shots={tiny_params()['subset']['shots']}")]  # fmt: skip
    train(fresh, weights[1].parts[-6])
    assert storage.fingerprint(weights[0]) == storage.fingerprint(weights[1])


def test_half_of_the_source(fresh: Path) -> None:
    """Half of every class makes the means and is trained on; pre-training and embed have all."""
    everything = readers.images(workspace(fresh), "glyphs").rows("train")
    write_params(fresh, tiny_params() | {"source_fraction": 0.5})
    ws = workspace(fresh)
    with pytest.raises(UserError, match=r"made from 72 images, .* 0.5 gives 36: run dvc"):
        readers.source_part(ws, np.array([0]))
    with pytest.raises(UserError, match="72 images"):
        forecast.gradient_products(ws, "digits", [0], progress=quiet)
    units.units(ws)
    forecast.gradient_products(ws, "digits", [0], progress=quiet)
    pool, bank = features.read(ws.features("glyphs")), readers.source_bank(ws)
    rows = readers.source(ws).rows("train")
    assert len(rows) == 36
    assert pool["rows"].tolist() == everything.tolist()
    assert bank.counts.tolist() == [3] * 12
    first = np.isin(pool["rows"], rows) & (pool["labels"] == 0)
    assert bank.means[0] == pytest.approx(pool["features"][first].astype(float).mean(0))
    part = readers.source_part(ws, np.arange(12))
    assert part.rows.tolist() == rows.tolist()
    assert part.labels.tolist() == readers.images(ws, "glyphs").labels[rows].tolist()
    assert len(readers.images(ws, "glyphs").rows("train")) == 72
    assert run_train(fresh)[-1][1]["val/top1"] >= 0


def test_images_left_out_of_the_source_decide_nothing(fresh: Path) -> None:
    params = tiny_params() | {"source_fraction": 0.5}
    made = []
    for value in (None, 99):
        write_params(fresh, params)
        ws = workspace(fresh)
        images = readers.images(ws, "glyphs")
        if value is not None:
            others = np.setdiff1d(images.rows("train"), readers.source(ws).rows("train"))
            assert len(others) == 36
            images.images[others] = value
            storage.write_images(ws.data("glyphs"), images)
        embed.embed(ws, "glyphs", Context(runtime.start(0, 1), progress=quiet))
        units.units(ws)
        run_train(fresh)
        made.append(
            storage.fingerprint(ws.cell("models", Cell("digits", "uot", 0)) / "model.safetensors")
        )
    assert made[0] == made[1]


def test_a_subset_without_labels_says_so(tmp_path: Path) -> None:
    """Else its list would be read as a set of the one class unlabelled."""
    pictures(tmp_path / "photos", 1, 8)
    params = tiny_params()
    params["datasets"]["loose"] = {"kind": "folder", "path": "photos", "labels": False}
    params["datasets"]["loose"] |= {"stored": 16, "size": 12, "test": 0.0}
    write_params(tmp_path, params)
    ws = workspace(tmp_path)
    prepare.prepare(ws, "loose", progress=quiet)
    output = tmp_path / "few.csv"
    again = section(data_export.write_subset(ws, "loose", "shots=3", 0, output, progress=quiet))
    assert again["labels"] is False
    found = folder.load(folder.Settings(**{k: v for k, v in again.items() if k != "kind"}),
                        quiet, tmp_path)  # fmt: skip
    assert len(found.rows("train")) == 3
