"""From two folders of image files to predictions, through every stage; and what is in the way."""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from support.child_processes import pair
from support.finished_trials import line_of
from support.foreign_weights import torchvision_file
from support.projects import tiny_params, workspace, write_params
from support.stages import up_to_units
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import Interrupted, UserError
from uotft.core.records import Cell
from uotft.models import export, inputs, predict
from uotft.pipeline import (
    evaluate,
    forecast,
    overlap,
    predict_export,
    prepare,
    pretrain,
    readers,
    select,
    train as train_stage,
)
from uotft.pipeline.report_images import WorkspaceImages
from uotft.training import runtime

VIEW = {"kind": "folder", "stored": 40, "size": 32}
STILL = {"rotation": 0.0, "shear": 0.0, "zoom": 0.0, "shift": 0.0}
WEAK = {**STILL, "crop": 0.3, "flip": True}
STRONG = {**WEAK, "operations": 2}
QUIET = {"progress": lambda items, label: items}


def example(scene: int, number: int, size: tuple[int, int]) -> Image.Image:
    """A picture of the class ``scene``: noise of its own on soft blobs."""
    rng = np.random.default_rng((scene, number))
    pixels = np.asarray(pictures.scene(scene, size)) + rng.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw(root: Path) -> dict[str, dict[str, object]]:
    """Eight source classes of JPEGs, three target classes of PNGs in parts; returns sections."""
    for scene in range(8):
        contents = {
            f"{i:02}.jpg": pictures.encoded(example(scene, i, (60, 44)), "JPEG", quality=90)
            for i in range(10)
        }
        pictures.write(root / f"things/scene{scene}", contents)
    for scene, (part, n) in ((s, p) for s in range(3) for p in (("train", 8), ("test", 5))):
        contents = {
            f"{part}{i:02}.png": pictures.encoded(example(scene, 100 * len(part) + i, (44, 52)))
            for i in range(n)
        }
        pictures.write(root / f"mine/{part}/scene{scene}", contents)
    return {name: {**VIEW, "path": str(root / name)} for name in ("things", "mine")}


def params(sections: dict[str, dict[str, object]]) -> dict:
    found = tiny_params()
    found |= {"source": "things", "targets": ["mine"], "datasets": sections, "seeds": [0]}
    found["strategies"] = ["none", "uot"]
    found["backbone"] |= {"channels": 3}
    found["select"] |= {"top_k": 3}
    found["pretrain"] |= {"batch_size": 16, "augment": WEAK}
    found["pretrain"]["recipe"] |= {"steps": 40}
    found["train"] |= {"augment": WEAK, "strong": STRONG}
    return found


def train(root: Path, strategy: str = "uot") -> dict:
    ws = workspace(root)
    select.select(ws, Cell("mine", strategy, 0))
    train_stage.train(
        ws, Cell("mine", strategy, 0), Context(runtime.start(0, 1), log=lambda *_: None, **QUIET)
    )
    return storage.read_json(ws.cell("models", Cell("mine", strategy, 0)) / "model.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace on two folders of files, up to one trained and evaluated model a strategy."""
    root = tmp_path_factory.mktemp("folders")
    write_params(root, params(draw(root / "pictures")))
    ws = workspace(root)
    up_to_units(root)
    overlap.overlap("things", "mine", ws.overlap("mine"), **QUIET, workspace=lambda: ws)
    for strategy in ("none", "uot"):
        train(root, strategy)
        evaluate.evaluate(ws, "mine", strategy, **QUIET)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, which the test may change; its pictures are still those of the original."""
    return Path(shutil.copytree(made, tmp_path / "project"))


def test_folders_are_prepared(made: Path) -> None:
    summary = json.loads((made / "data/things.json").read_text())
    assert summary["classes"] == 8
    assert summary["images"] == {"test": 16, "train": 48, "val": 16}
    assert "unreadable" not in summary
    assert len([*(made / "cache").iterdir()]) == 2


def test_selection_and_training_read_files(made: Path) -> None:
    facts = storage.read_json(workspace(made).cell("models", Cell("mine", "uot", 0)) / "model.json")
    assert facts["image_size"] == [32, 32, 3]
    assert facts["objective"] == "joint"
    assert len(facts["reused"]) == 3
    results = storage.read_json(workspace(made).metrics("mine", "uot"))["0"]
    assert results["images"] == 15
    assert np.sum(results["confusion"]) == 15


def test_clusters_of_a_source_without_labels_are_trained_on(tmp_path: Path) -> None:
    """Its folders are named like classes, and mean nothing."""
    sections = draw(tmp_path / "pictures")
    sections["things"] |= {"labels": False}
    found = params(sections)
    _, path = torchvision_file("resnet18", tmp_path, num_classes=12)
    found["backbone"] = {"name": "resnet18", "weights": str(path)}
    found["select"] |= {"unit": "cluster"}
    found["cluster"] |= {"clusters": 8}
    found["train"] |= {"objective": "pseudo_label"}
    write_params(tmp_path, found)
    up_to_units(tmp_path)
    ws = workspace(tmp_path)
    overlap.overlap("things", "mine", ws.overlap("mine"), **QUIET, workspace=lambda: ws)
    facts = train(tmp_path)
    assert [name.partition(" ")[0] for name in facts["reused"]] == ["cluster"] * 3
    assert storage.read_json(tmp_path / "data/things.json")["images"] == {"train": 79, "val": 1}
    assert forecast.forecast(ws, "mine", **QUIET) == {}, "one class has no gradient"


def test_training_follows_its_seed(made: Path, copy: Path) -> None:
    before = storage.read_json(
        workspace(made).cell("models", Cell("mine", "uot", 0)) / "model.json"
    )
    assert train(copy)["sha256"] == before["sha256"]


def test_pseudo_labels_with_randaugment(copy: Path) -> None:
    changed = params(deepcopy(workspace(copy).params.datasets))
    changed["train"] |= {"objective": "pseudo_label"}
    write_params(copy, changed)
    assert train(copy)["objective"] == "pseudo_label"
    lines = storage.read_csv(workspace(copy).cell("models", Cell("mine", "uot", 0)) / "history.csv")
    assert all(np.isfinite(float(line["loss/source"])) for line in lines if line["loss/source"])


def test_a_predicted_file_is_seen_as_test_images_are(made: Path, tmp_path: Path) -> None:
    ws = workspace(made)
    model, found = ws.cell("models", Cell("mine", "uot", 0)), readers.images(ws, "mine")
    rows = found.rows("test")
    paths = [str(found.files.path(row)) for row in rows]
    tests = inputs.Views(found, rows)[:]
    read = predict.reader(storage.read_json(model / "model.json"))
    assert all(np.array_equal(read(Path(p)), v) for p, v in zip(paths, tests, strict=True))

    answers, bad = predict_export.predict(model, [*paths, str(made / "nowhere.jpg")])
    assert [Path(line.split(":")[0]).name for line in bad] == ["nowhere.jpg"]
    confusion = np.zeros((3, 3), int)
    for row, answer in zip(rows, answers, strict=True):
        confusion[found.labels[row], found.names.index(answer.classes[0][0])] += 1
    assert confusion.tolist() == storage.read_json(ws.metrics("mine", "uot"))["0"]["confusion"]

    photo = tmp_path / "wide.jpg"
    example(1, 7, (300, 100)).save(photo, quality=95)
    square = tmp_path / "square.jpg"
    example(1, 7, (300, 100)).crop((100, 0, 200, 100)).save(square, quality=95)
    wide, centre = (read(path).astype(int) for path in (photo, square))
    assert np.abs(wide - centre).mean() < 8, "the middle, not a stretch"


def test_an_export_says_what_part_of_a_picture_it_wants(made: Path, tmp_path: Path) -> None:
    model = workspace(made).cell("models", Cell("mine", "uot", 0))
    about = predict_export.export(model, "torch", tmp_path / "a.pt2")
    assert about["input"]["shape"] == ["images", 32, 32, 3]
    assert about["input"]["share"] == 0.875
    assert (about["input"]["background"], about["input"]["white"]) == ("white", 0)
    assert about["difference"] <= export.TOLERANCE


def test_the_report_shows_files(made: Path) -> None:
    ws = workspace(made)
    sheets = WorkspaceImages(ws).examples("mine", [line_of(ws, "mine", "uot")], 12)
    assert [len(sheet) for sheet in sheets.values()] == [3, 3]
    assert all(image.shape == (32, 32, 3) for sheet in sheets.values() for _, image in sheet)


# ---- what is in the way


def test_a_copy_of_a_test_image_is_found_by_its_bytes(copy: Path, made: Path) -> None:
    ws = workspace(made)
    mine = readers.images(ws, "mine")
    rows = mine.rows("test")[:5].tolist()
    shutil.copytree(made / "pictures", copy / "both")
    for row in rows:  # some of them fall into the part that is compared
        shutil.copy(mine.files.path(row), copy / f"both/things/scene7/copy{row}.png")
    sections = {name: {**VIEW, "path": str(copy / "both" / name)} for name in ("things", "mine")}
    write_params(copy, params(sections))
    ws = workspace(copy)
    for name in ("things", "mine"):
        prepare.prepare(ws, name, **QUIET)
    things = readers.images(ws, "things")
    found = overlap.overlap("things", "mine", None, **QUIET, workspace=lambda: ws)
    trained = {things.files.path(r).name: r for r in things.rows("train").tolist()}
    pairs = {(row, trained[f"copy{row}.png"]) for row in rows if f"copy{row}.png" in trained}
    assert pairs
    assert {(m["target"], m["source"]) for m in found["matches"] if m["reason"] == "bytes"} == pairs


def test_a_file_that_changes_before_training_is_named(copy: Path, made: Path) -> None:
    shutil.copytree(made / "pictures", copy / "own")
    sections = {name: {**VIEW, "path": str(copy / "own" / name)} for name in ("things", "mine")}
    write_params(copy, params(sections))
    ws = workspace(copy)
    (copy / "cache/mine/40-another").mkdir()
    prepare.prepare(ws, "mine", **QUIET)
    assert "40-another" not in [path.name for path in (copy / "cache/mine").iterdir()]
    shutil.rmtree(copy / "cache")
    readers.images(ws, "mine").files.path(0).write_bytes(pictures.encoded(pictures.scene(50)))
    with pytest.raises(UserError, match="it changed since `uotft prepare` read it"):
        inputs.Views(readers.images(ws, "mine"), np.arange(3))[:]


def test_a_stop_is_heard_while_files_are_decoded(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uotft.data import pixel_cache

    monkeypatch.setattr(pixel_cache, "CHUNK", 4)
    shutil.rmtree(copy / "cache")
    ws = workspace(copy)
    with pytest.raises(Interrupted, match="before its images were decoded"):
        pretrain.pretrain(
            ws, Context(runtime.start(0, 1), log=lambda *_: None, **QUIET, stop=lambda: True)
        )
    assert not readers.images(ws, "things").images.there.any()


def test_processes_share_the_decoding(tmp_path: Path) -> None:
    from uotft.data import pixel_cache
    from uotft.training.streams import decode

    images, rows = pictures.scenes(tmp_path, 21, stored=40, size=32), np.arange(1, 20)

    def work(rank: int) -> None:
        decoded, square = [], pixel_cache.square

        def counted(content: bytes, side: int, path: Path, *how: object) -> np.ndarray:
            decoded.append(path.name)
            return square(content, side, path, *how)

        pixel_cache.pool.cache_clear()  # threads stay behind in a fork
        pixel_cache.square = counted
        accelerator = runtime.start(0, 1)
        assert accelerator.num_processes == 2
        decode(images, rows, Context(accelerator))
        assert images.images.there[rows].all()
        storage.write_json(tmp_path / f"{rank}.json", decoded)

    assert [os.waitpid(pid, 0)[1] for pid in pair(work)] == [0, 0]
    first, second = (storage.read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert sorted(first + second) == [f"{row:03}.png" for row in rows]
    assert abs(len(first) - len(second)) == 1


def test_predict_reads_a_view_of_any_file(tmp_path: Path) -> None:
    from uotft.data.files import View

    view = View(stored=40, size=32)
    for name, content in pictures.odd_files().items():
        (tmp_path / name).write_bytes(content)
        assert predict.see(tmp_path / name, view).shape == (32, 32, 3)
    for name, content in pictures.bad_files().items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            predict.see(tmp_path / name, view)


def test_a_folder_without_a_model_is_named_with_what_it_needs(tmp_path: Path) -> None:
    wanted = r"is not the folder of a trained model: it needs model\.json and model\.safetensors"
    with pytest.raises(UserError, match=rf"birds/uot/0 {wanted}.*models/TARGET/STRATEGY/SEED"):
        predict_export.predict(tmp_path / "birds/uot/0", ["a.png"])
    with pytest.raises(UserError, match=wanted):
        predict_export.export(tmp_path, "onnx", tmp_path / "made.onnx")
    (tmp_path / "model.safetensors").touch()
    for text in ("{}", "[]"):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(UserError, match=r"model\.json: not the model.json of a model of uotft"):
            predict_export.export(tmp_path, "onnx", tmp_path / "made.onnx")
