"""`uotft predict` and `uotft export` as a user calls them, on a tiny trained model."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.commands import answer, call
from support.projects import workspace
from support.stages import run_train
from uotft.core import storage
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.models.inputs import to_input
from uotft.pipeline import predict_export, readers

CELL = ("--dataset", "digits", "--strategy", "uot", "--seed", "0")


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one trained model and three of its test images as files."""
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("trained") / "project"))
    run_train(root)
    images = readers.images(workspace(root), "digits")
    for row in images.rows("test")[:3]:
        Image.fromarray(images.images[row]).save(root / f"{row}.png")
    return root


def probabilities(root: Path, files: list[Path]) -> np.ndarray:
    network, _ = model_io.read(workspace(root).cell("models", Cell("digits", "uot", 0)))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    with torch.no_grad():
        return network(to_input(torch.as_tensor(pixels)))["target"].softmax(1).numpy()


def test_predict_says_what_the_network_says(trained: Path) -> None:
    files = sorted(trained.glob("*.png"))
    done = call("uotft", "predict", *CELL, "--json", *map(str, files), cwd=trained)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for about, file, row in zip(said, files, probabilities(trained, files), strict=True):
        assert about["file"] == str(file)
        best = np.argsort(-row)[:5]
        assert [c["label"] for c in about["classes"]] == [str(c) for c in best]
        found = [c["probability"] for c in about["classes"]]
        assert found == pytest.approx(row[best].tolist(), rel=1e-5)


def test_an_interrupted_export_leaves_no_old_classes_beside_the_new_model(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = trained / "models/digits/uot/0", tmp_path / "digits.pt2"
    described = output.with_name("digits.pt2.json")
    described.write_text("of an older model")
    monkeypatch.setattr(storage, "write_json", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        predict_export.export(model, "torch", output)
    assert output.is_file()
    assert not described.exists()


def test_predict_needs_no_project_with_a_model_folder(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(trained / "models/digits/uot/0", folder)
    [file, *_] = sorted(trained.glob("*.png"))
    shutil.copy(file, tmp_path / "[one].png")
    done = call("uotft", "predict", "--model", str(folder), "[one].png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[one].png" in done.stdout
    best = probabilities(trained, [file])[0].max()
    assert f"{100 * best:.2f}" in done.stdout


def test_predict_answers_for_the_good_files_and_names_the_bad(trained: Path) -> None:
    [file, *_] = sorted(trained.glob("*.png"))
    (trained / "page.jpg").write_text("<html>")
    done = answer("uotft", "predict", *CELL, file.name, "page.jpg", "gone.png", cwd=trained)
    assert done.returncode == 2
    assert file.name in done.stdout
    assert "page.jpg: not an image" in done.stderr
    assert "gone.png: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_takes_a_folder_and_counts_what_is_no_image(trained: Path, tmp_path: Path) -> None:
    files = sorted(trained.glob("*.png"))
    inside = tmp_path / "new images/of May"
    inside.mkdir(parents=True)
    for file in files:
        shutil.copy(file, inside)
    (inside / "page.png").write_text("<html>")
    (inside / "notes.txt").write_text("of May")
    (tmp_path / "new images/README").write_text("images")
    one = str(files[1])
    done = answer("uotft", "predict", *CELL, "--json", one, f"{tmp_path}/new images", cwd=trained)
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert [answer["file"] for answer in said] == [one, *(str(inside / f.name) for f in files)]
    assert said[0]["classes"] == said[2]["classes"], "each file has its own answer"
    assert "new images: left out 2 non-image files: 1" in done.stderr.replace("\n", "")
    assert "1 of 5 files were left out:" in done.stderr
    assert "page.png: not an image" in done.stderr


def test_a_folder_without_an_image_says_what_is_there(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    done = answer("uotft", "predict", *CELL, str(tmp_path), cwd=trained)
    assert done.returncode == 2
    assert (
        f"{tmp_path}: no image in this folder or below (left out 1 non-image file: 1 .txt)"
        in done.stderr.replace("\n", "")
    )


def test_a_model_that_is_not_there_names_those_that_are(trained: Path) -> None:
    """`dvc repro` would make models of the pipeline's strategies and seeds alone."""
    variant = trained / "variants/train.lambda=0.3/models/digits/uot/0"
    variant.mkdir(parents=True)
    (variant / "model.json").write_text("{}")
    for strategy, seed, advice in (
        ("label", "0", "it is no cell of params.yaml; `uotft train --dataset"),
        ("uot", "7", "it is no cell of params.yaml; `uotft train --dataset"),
        ("none", "0", "`dvc repro` makes it"),
    ):
        words = ("--dataset", "digits", "--strategy", strategy, "--seed", seed)
        done = answer("uotft", "predict", *words, "a.png", cwd=trained)
        assert done.returncode == 2
        said = done.stderr.replace("\n", " ")
        assert f"models/digits/{strategy}/{seed}/model.json is missing: {advice}" in said
        assert "--dataset digits --strategy uot --seed 0" in said
        assert f"--model {variant}" in said
    shutil.rmtree(trained / "variants")


@pytest.mark.parametrize(
    ("form", "name"), [("onnx", "m.onnx"), pytest.param("torch", "m.pt2", marks=pytest.mark.slow)]
)
def test_export_writes_a_file_that_answers_alike(trained: Path, form: str, name: str) -> None:
    done = call("uotft", "export", *CELL, "--format", form, "--output", name, cwd=trained)
    assert done.returncode == 0, done.stderr
    about = json.loads((trained / f"{name}.json").read_text())
    assert about["classes"] == [str(c) for c in range(10)]
    assert about["difference"] <= about["tolerance"]
    files = sorted(trained.glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(trained / name)
        logits = torch.as_tensor(session.run(["logits"], {"pixels": pixels})[0])
    else:
        logits = torch.export.load(trained / name).module()(torch.as_tensor(pixels)).detach()
    wanted = probabilities(trained, files)
    assert logits.softmax(1).numpy() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "a.png"), "predict needs --dataset (with --strategy and --seed), or --model"),
        (("predict", "--dataset", "dogz", "a.png"), "'dogz' has no section under datasets"),
        (("predict", "--dataset", "digits", "--seed", "9", "a.png"), "9/model.json is missing"),
        (("predict", *CELL), "IMAGE"),
        (("export", *CELL, "--format", "tflite", "--output", "m"), "'tflite'; known are onnx, tor"),
        (("export", "--format", "onnx", "--output", "m"), "export needs --dataset"),
    ],
)
def test_mistakes(trained: Path, words: tuple[str, ...], message: str) -> None:
    before = sorted(trained.rglob("*"))
    done = answer("uotft", *words, cwd=trained)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(trained.rglob("*")) == before
