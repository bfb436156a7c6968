"""`uotft register`, and the registered model in a process that has no project around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from support.commands import answer, call
from support.projects import runs, workspace
from uotft.core import storage
from uotft.pipeline import predict_export, readers

LOAD = """
import json, sys
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model("models:/figures@champion")
import uotft
pixels, files = np.load(sys.argv[1], allow_pickle=False), sys.argv[2:]
given = (pixels, pixels.tolist(), files, pd.DataFrame({"file": files}))
answers = [model.predict(one).to_dict("list") for one in given]
print(json.dumps({"code": uotft.__file__, "answers": answers}))
"""


def register(project: Path, *words: str) -> str:
    done = call("uotft", "register", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "MLflow says the same in other words"
    return done.stdout


def test_a_model_is_registered_once_and_predicts_anywhere(project: Path, tmp_path: Path) -> None:
    [run] = [r for r in runs(project) if r.info.run_name == "digits-uot-0"]
    [other] = [r for r in runs(project) if r.info.run_name == "digits-none-0"]
    which = f"digits-uot-0 ({run.info.run_id})"
    words = "--name", "figures"

    assert register(project, "digits-uot-0", *words) == f"models:/figures/1: run {which}\n"
    again = "models:/figures/1, models:/figures@champion: registered before, with the weights of "
    cell = "--dataset", "digits", "--alias", "champion"
    assert register(project, *cell, *words) == f"{again}run {which}\n"
    assert "models:/figures/2: run digits-none-0" in register(project, other.info.run_id, *words)

    client = mlflow.MlflowClient()
    versions = client.search_model_versions("name = 'figures'")
    assert sorted(int(v.version) for v in versions) == [1, 2]
    version = client.get_model_version("figures", "1")
    assert version.run_id == run.info.run_id
    top1 = storage.read_json(project / "metrics/digits/uot.json")["0"]["top1"]
    assert version.tags["test/top1"] == str(top1)
    assert version.tags["strategy"] == "uot"
    assert version.tags["selection.sha256"] == run.data.tags["selection.sha256"]
    assert f"test/top1 {top1:.2f} %" in version.description
    assert run.data.tags["mlflow.note.content"] in version.description

    # with the code, the weights and the settings inside the model
    images = readers.images(workspace(project), "digits").images[:3]
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for file, pixels in zip(files, images, strict=True):
        Image.fromarray(pixels).save(file)
    store_ = f"sqlite:///{project / 'mlflow.db'}"
    done = call(
        sys.executable, "-c", LOAD, "images.npy", *files,
        cwd=tmp_path, MLFLOW_TRACKING_URI=store_, PYTHONPATH="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["code"]).is_relative_to(project / "mlruns")
    expected, _ = predict_export.predict(project / "models/digits/uot/0", files)
    for each in said["answers"]:
        assert each["label"] == [a.classes[0][0] for a in expected]
        assert np.allclose(each["probability"], [a.classes[0][1] for a in expected], atol=1e-6)


KNOWN = "but the store has no such run with a model; known are digits-none-0, digits-none-1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits-uto-0 --name a", f"RUN: got 'digits-uto-0', {KNOWN}"),
        ("it's --name a", 'RUN: got "it\'s", but the store has no such run'),
        ("--name a", "register needs RUN, or --dataset"),
        ("digits-uot-0 --name a/b", "Invalid model name 'a/b'"),
        ("digits-uot-0 --name a --alias latest", "--alias: got 'latest'"),
        ("digits-uot-0 --name a --alias v1", "--alias: got 'v1'"),
        ("--dataset digits --seed 9 --name a", "models/digits/uot/9/model.json is missing"),
    ],
)
def test_mistakes(project: Path, words: str, message: str) -> None:
    done = answer("uotft", "register", *words.split(), cwd=project)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    names = [model.name for model in mlflow.MlflowClient().search_registered_models()]
    assert "a" not in names, "nothing is half-registered"
