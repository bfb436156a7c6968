"""Fault 20: stale inputs: pictures, labels, settings, backbone, weights, code, units, subset,
selection or model change behind DVC's back, one at a time.

Expected: every stage that reads it refuses it with an error that names the file, and writes
nothing.

Each stage is called directly; the error is a `UserError`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support import pictures
from support.image_folders import pictures as draw
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap, run_train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.pipeline import (
    compare,
    embed,
    evaluate,
    forecast,
    overlap,
    predict_export,
    prepare,
    pretrain,
    readers,
    select,
    train as train_stage,
    units as units_stage,
    workspace as workspace_stage,
)
from uotft.selection import banks, features
from uotft.training import runtime

QUIET = {"progress": lambda items, label: items}
VIEW = {"kind": "folder", "stored": 16, "size": 12}
Change = Callable[[Path], None]


def params(root: Path) -> dict:
    """Two folders of pictures, one seed, two strategies."""
    found = tiny_params()
    sections = {name: {**VIEW, "path": str(root / "pictures" / name)} for name in ("photos", "own")}
    found |= {"source": "photos", "targets": ["own"], "datasets": sections, "seeds": [0, 1]}
    found["backbone"] |= {"channels": 3}
    found["select"] |= {"top_k": 3}
    found["train"]["target_head"] = "class_means"
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of image files in which every stage has run."""
    root = tmp_path_factory.mktemp("made")
    draw(root / "pictures/photos", 6, 10)
    draw(root / "pictures/own", 3, 16, seed=1)
    write_params(root, params(root))
    ws = workspace(root)
    for name in ("photos", "own"):
        prepare.prepare(ws, name, **QUIET)
    pretrain.pretrain(ws, Context(runtime.start(0, 1), log=lambda *_: None, **QUIET))
    for name in ("photos", "own"):
        embed.embed(ws, name, Context(runtime.start(0, 1), **QUIET))
    units_stage.units(ws)
    overlap.overlap("photos", "own", ws.overlap("own"), **QUIET, workspace=lambda: ws)
    for strategy in ws.params.strategies:
        for seed in ws.params.seeds:
            select.select(ws, Cell("own", strategy, seed))
            STAGES["train"](ws, strategy, seed)
        evaluate.evaluate(ws, "own", strategy, **QUIET)
    forecast.forecast(ws, "own", **QUIET)
    compare.compare(ws)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed; its pictures are still those of the original."""
    return Path(shutil.copytree(made, tmp_path / "project"))


def train(ws: workspace_stage.Workspace, strategy: str = "uot", seed: int = 0) -> None:
    accelerator = runtime.start(seed, 1)
    train_stage.train(
        ws, Cell("own", strategy, seed), Context(accelerator, log=lambda *_: None, **QUIET)
    )


STAGES: dict[str, Callable] = {
    "units": lambda ws: units_stage.units(ws),
    "select": lambda ws: select.select(ws, Cell("own", "uot", 0)),
    "train": train,
    "forecast": lambda ws: forecast.forecast(ws, "own", **QUIET),
    "evaluate": lambda ws: evaluate.evaluate(ws, "own", "uot", **QUIET),
    "compare": lambda ws: compare.compare(ws),
}
SOURCE, TARGET = ("units", "select", "train", "forecast"), ("select", "train", "forecast")
ALL = tuple(STAGES)


def setting(section: str, **changed: object) -> Change:
    """Other words in params.yaml, and nothing made anew."""

    def change(root: Path) -> None:
        found = params(root)
        found["datasets"] = params_of(root)["datasets"]
        at = found
        for word in section.split("."):
            at = at[word]
        at |= changed
        write_params(root, found)

    return change


def params_of(root: Path) -> dict:
    return workspace(root).params.model_dump(by_alias=True)


def subset(root: Path) -> None:
    found = params_of(root)
    found["subset"] = {"shots": 3}
    write_params(root, found)


def prepared(name: str, **changed: object) -> Change:
    """Other settings, and data/NAME.npz made of them, but no features."""

    def change(root: Path) -> None:
        setting(f"datasets.{name}", **changed)(root)
        prepare.prepare(workspace(root), name, **QUIET)

    return change


def picture(name: str) -> Change:
    """One other picture of the same class."""

    def change(root: Path) -> None:
        shutil.copytree(root / "pictures" / name, root / name)
        first = next(p for p in sorted((root / name).rglob("*.png")))
        first.write_bytes(pictures.encoded(pictures.scene(3)))
        ws = workspace(root)
        images = readers.images(ws, name)
        images.files.sha256[0] += 1  # as `prepare` would have seen it
        storage.write_images(ws.data(name), images)

    return change


def label(name: str) -> Change:
    def change(root: Path) -> None:
        ws = workspace(root)
        images = readers.images(ws, name)
        first, last = images.rows("train")[[0, -1]]
        images.labels[first] = images.labels[last]
        storage.write_images(ws.data(name), images)

    return change


def network(root: Path) -> None:
    """Weights that differ in one number."""
    ws = workspace(root)
    found, facts = model_io.read(ws.pretrained())
    found.head("target").weight.data[0, 0] += 1e-3
    model_io.write(ws.pretrained(), found, facts)


def flipped(path: str) -> Change:
    def change(root: Path) -> None:
        content = bytearray((root / path).read_bytes())
        content[-1] ^= 1
        (root / path).write_bytes(content)

    return change


def units(root: Path) -> None:
    """Features made anew, of more digits, and the units are those of before."""
    ws = workspace(root)
    path = ws.features("photos") / features.INDEX
    index = storage.read_arrays(path)
    storage.write_arrays(path, **index | {"features_means": index["features_means"] + 1e-9})


def selection(root: Path) -> None:
    path = workspace(root).cell("selections", Cell("own", "uot", 0)) / "selection.json"
    chosen = storage.read_json(path)
    chosen["classes"] = chosen["classes"][::-1]
    storage.write_json(path, chosen)


def model(root: Path) -> None:
    ws = workspace(root)
    folder = ws.cell("models", Cell("own", "uot", 0))
    found, facts = model_io.read(folder)
    found.head("target").weight.data[0, 0] += 1
    model_io.write(folder, found, facts)


# what is changed, how, the stages that must refuse, the file that they name
CHANGES: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "source picture": (picture("photos"), (*SOURCE, "evaluate", "compare"), "data/photos.npz"),
    "target picture": (picture("own"), (*TARGET, "evaluate", "compare"), "data/own.npz"),
    "source label": (label("photos"), (*SOURCE, "evaluate", "compare"), "data/photos.npz"),
    "target label": (label("own"), (*TARGET, "evaluate", "compare"), "data/own.npz"),
    **{
        f"{side} {key}, made": (
            prepared(name, **{key: value}),
            (*of, "evaluate", "compare"),
            f"data/{name}.npz",
        )
        for name, side, of in (("photos", "source", SOURCE), ("own", "target", TARGET))
        for key, value in (("size", 14), ("share", 0.7), ("stored", 20), ("val", 0.5), ("seed", 1))
    },
    **{
        f"{side} {key}, in params.yaml": (
            setting(f"datasets.{name}", **{key: value}),
            of,
            f"data/{name}.npz was prepared with other settings .*{key}",
        )
        for name, side, of in (
            ("photos", "source", (*SOURCE, "compare")),
            ("own", "target", (*TARGET, "evaluate", "compare")),
        )
        for key, value in (
            ("size", 14), ("share", 0.7), ("stored", 20), ("val", 0.5), ("test", 0.3),
            ("seed", 1), ("unreadable", "skip"),
        )
    },
    "backbone": (setting("backbone", widths=[4, 4]), ALL, "section backbone of params.yaml"),
    "weights": (network, ALL, "pretrained/photos"),
    "dtype": (
        setting("embed", dtype="float16"), SOURCE, "embeddings/.*-images holds float32, embed.dty"
    ),
    "target features": (
        flipped("embeddings/own-images/features.npy"), TARGET, "own-images/features.npy is damaged"
    ),
    "units": (units, (*TARGET, "compare"), "made from other features than .*photos-images"),
    "subset": (subset, ("train", "forecast", "compare"), "selection.json was made with other"),
    "top_k": (
        setting("select", top_k=4), ("train", "forecast", "compare"), r"selection.json .*\(top_k\)"
    ),
    "top_k by the plan": (
        setting("select", top_k="auto"),
        ("train", "forecast", "compare"),
        r"selection.json .*\(top_k\)",
    ),
    "strategy": (
        setting("selectors.uot", cost_scale=0.1),
        ("train", "forecast", "compare"),
        r"uot/0/selection.json was made with other settings \(cost_scale\)",
    ),
    "selection": (selection, ("evaluate", "compare"), "models/own/uot/0 was trained with another"),
    "model": (model, ("compare",), "own/uot.json was measured on another version of .*/uot/0"),
    "damaged model": (flipped("models/own/uot/0/model.safetensors"), ("evaluate",), "model.safet"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_one_other_input_is_refused_by_every_stage(
    copy: Path, name: str, measured: Callable[[str], None]
) -> None:
    change, refusing, message = CHANGES[name]
    # the copies' paths are those of the original, which stays as it is
    change(copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    for stage in refusing:
        with pytest.raises(UserError, match=message):
            STAGES[stage](workspace(copy))
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    made = {path for path in after if after[path] != before.get(path)}
    assert {path.relative_to(copy).parts[0] for path in made} <= {"cache"}
    measured(f"{len(refusing)} of {len(refusing)} stages that read it refuse")


def test_nothing_is_refused_where_nothing_changed(copy: Path) -> None:
    for stage in STAGES.values():
        stage(workspace(copy))


def test_features_of_other_code_are_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[str], None]
) -> None:
    monkeypatch.setattr(features, "RECIPE", features.RECIPE + 1)
    refusing = (*SOURCE, "compare")
    for stage in refusing:
        with pytest.raises(UserError, match="-images was made by another version of"):
            STAGES[stage](workspace(copy))
    measured(f"{len(refusing)} of {len(refusing)} stages that read it refuse")


def test_banks_of_two_networks_are_refused(copy: Path, measured: Callable[[str], None]) -> None:
    """`uotft select` with two files of means."""
    path = workspace(copy).embedding("photos")
    bank = banks.read(path)
    banks.write(copy / "other.npz", replace(bank, backbone="another"))
    files = select.BankFiles(str(path), f"{copy}/other.npz", f"{copy}/s.json")
    with pytest.raises(
        UserError, match=r"photos\.npz and .*other\.npz were made with different ba"
    ):
        select.select_banks(files, select.bank_request("uot", {}, {}))
    assert not (copy / "s.json").exists()
    measured("means of two networks refused, nothing written")


@pytest.mark.parametrize("use", ["predict", "export"])
def test_weights_that_are_not_those_of_model_json_are_refused(copy: Path, use: str) -> None:
    flipped("models/own/uot/0/model.safetensors")(copy)
    folder = copy / "models/own/uot/0"
    image = str(next((copy.parent / "project").rglob("*.png")))
    uses = {
        "predict": lambda: predict_export.predict(folder, [image]),
        "export": lambda: predict_export.export(folder, "torch", copy / "a.pt2"),
    }
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that model\.json"):
        uses[use]()
    assert not (copy / "a.pt2").exists()


# ---- the same on the arrays of the embedded default


def test_a_stale_selection_is_refused(fresh: Path) -> None:
    run_train(fresh)
    ws = workspace(fresh)
    bank = banks.read(ws.embedding("glyphs"))
    bank.means[0] += 1
    banks.write(ws.embedding("glyphs"), bank)
    with pytest.raises(UserError, match=r"selection\.json was made from another .*glyphs\.npz"):
        readers.read_selection(ws, Cell("digits", "uot", 0))


@pytest.mark.parametrize("dataset", ["glyphs", "digits"])
def test_embeddings_of_other_images_are_refused(fresh: Path, dataset: str) -> None:
    """Wherever they are read: units, selecting, training, forecasting."""
    run_train(fresh)
    ws = workspace(fresh)
    images = readers.images(ws, dataset)
    images.images[images.rows("train")[0], 3, 3] ^= 1
    storage.write_images(ws.data(dataset), images)
    reading = [
        lambda: select.select(ws, Cell("digits", "uot", 0)),
        lambda: forecast.gradient_products(ws, "digits", [0], progress=lambda items, label: items),
        lambda: run_train_alone(ws),
    ]
    if dataset == "glyphs":
        reading.append(lambda: units_stage.units(ws))
    for read in reading:
        with pytest.raises(
            UserError, match=rf"was made from another .*data/{dataset}\.npz: run dvc repro"
        ):
            read()
    embed.embed(ws, dataset, Context(runtime.start(0, 1), progress=lambda items, label: items))
    units_stage.units(ws)
    select.select(ws, Cell("digits", "uot", 0))


def run_train_alone(ws: workspace_stage.Workspace) -> None:
    quiet = {"log": lambda *_: None, "progress": lambda items, label: items}
    train_stage.train(ws, Cell("digits", "uot", 0), Context(runtime.start(0, 1), **quiet))


def test_features_that_do_not_say_what_they_are_of(fresh: Path) -> None:
    """Those that were made before this was written down: DVC alone knows them."""
    ws = workspace(fresh)
    index = storage.read_arrays(ws.embedding("digits"))
    del index["data"]
    storage.write_arrays(ws.embedding("digits"), **index)
    select.select(ws, Cell("digits", "uot", 0))


def test_embeddings_of_two_backbones_are_refused(fresh: Path) -> None:
    ws = workspace(fresh)
    pool = storage.read_arrays(ws.embedding("digits"))
    pool["backbone"] = np.array("another")
    storage.write_arrays(ws.embedding("digits"), **pool)
    with pytest.raises(UserError, match=r"pretrained/glyphs does not match .*digits-images"):
        select.select(ws, Cell("digits", "uot", 0))
    shutil.rmtree(ws.pretrained())  # then the two are compared with each other
    with pytest.raises(UserError, match="made with different backbones"):
        select.select(ws, Cell("digits", "uot", 0))


def test_test_images_that_changed_since_training_are_refused(fresh: Path) -> None:
    for seed in (0, 1):
        run_train(fresh, seed=seed)
    ws = workspace(fresh)
    images = readers.images(ws, "digits")
    images.images[images.rows("test")[0]] = 0
    storage.write_images(ws.data("digits"), images)
    with pytest.raises(
        UserError, match=r"overlap/digits\.json was made from another .*digits\.npz"
    ):
        evaluate.evaluate(ws, "digits", "uot", progress=lambda items, label: items)
    find_overlap(fresh)
    with pytest.raises(UserError, match=r"digits\.npz changed since seed 0 was trained"):
        evaluate.evaluate(ws, "digits", "uot", progress=lambda items, label: items)


def test_damaged_weights_are_refused(fresh: Path) -> None:
    folder = workspace(fresh).pretrained()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that model\.json"):
        model_io.read(folder)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("backbone", r"pretrained/glyphs does not match the section backbone of params\.yaml"),
        ("classes", r"pretrained/glyphs does not match the classes of .*glyphs\.npz: run dvc"),
        (
            "weights",
            r"pretrained/glyphs does not match .*embeddings/glyphs\.npz: run dvc repro",
        ),
    ],
)
def test_a_pre_trained_network_of_something_else_is_refused(
    fresh: Path, what: str, message: str
) -> None:
    run_train(fresh)
    ws = workspace(fresh)
    network, facts = model_io.read(ws.pretrained())
    facts["validation"] = {}
    if what == "backbone":
        params = tiny_params()
        params["backbone"]["widths"] = [8, 8]
        write_params(fresh, params)
    elif what == "classes":
        facts["classes"] = facts["classes"][::-1]
    else:
        network.head("target").weight.data += 1
    model_io.write(ws.pretrained(), network, facts)
    with pytest.raises(UserError, match=message):
        run_train(fresh)


def test_units_of_another_kind_are_refused(fresh: Path) -> None:
    params = tiny_params()
    params["select"]["unit"] = "image"
    write_params(fresh, params)
    with pytest.raises(UserError, match=r"glyphs\.npz holds units 'class', select.unit is 'image'"):
        select.select(workspace(fresh), Cell("digits", "uot", 0))
    assert not (fresh / "selections").exists()
