"""`uotft init`: two sets of images become a project whose settings and pipeline fit together."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from support.child_processes import forget_accelerator
from support.image_folders import pictures, small
from support.projects import workspace, write_params
from support.stages import up_to_units
from uotft.core import config, storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.pipeline import init, overlap, prepare, readers, select, train as train_stage
from uotft.pipeline.init import PRESETS, Wanted, render, sets_of
from uotft.training import runtime

NAMES = [path.name.removesuffix(".yaml") for path in PRESETS.iterdir() if path.is_file()]
QUIET = {"progress": lambda items, label: items}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six old classes and three new ones."""
    return pictures(tmp_path / "old", 6, 12), pictures(tmp_path / "my birds", 3, 12, seed=1)


def raw(preset: str, folder: Path, folders: tuple[Path, Path]) -> dict:
    return yaml.safe_load(render(wanted(folder, preset, *folders), folder))


def wanted(home: Path, preset: str, source: Path | str, target: Path | str) -> Wanted:
    return Wanted(preset, str(source), str(target), home)


def made(folder: Path, preset: str, source: Path | str, target: Path | str) -> str:
    """What `uotft init` makes in a folder."""
    return init.init(folder, wanted(folder, preset, source, target))


def project(home: Path, source: Path | str, target: Path | str, preset: str = "") -> tuple:
    """What `uotft train` makes below a folder."""
    return init.project(wanted(home, preset, source, target))


def names(folder: Path, source: Path, target: Path) -> tuple[str, ...]:
    return tuple(each.name for each in sets_of(wanted(folder, "paper", source, target), folder))


@pytest.mark.parametrize("preset", NAMES)
def test_a_preset_is_complete(preset: str, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """params.yaml is valid, and has every setting that a stage of dvc.yaml reads."""
    params = raw(preset, tmp_path / "project", folders)
    (tmp_path / "project").mkdir()
    write_params(tmp_path / "project", params)
    checked = config.load(tmp_path / "project")
    assert (checked.source, checked.targets) == ("old", ["my-birds"])
    pipeline = (PRESETS / "project" / "pipeline.yaml").read_text()
    for stage in yaml.safe_load(pipeline)["stages"].values():
        for setting in stage.get("do", stage).get("params", []):
            for strategy in checked.strategies:
                values = {"key": "old", "item.strategy": strategy}
                values |= {"train.objective": checked.train.objective}
                section = params
                for key in _fill(setting, values).split("."):
                    section = section[key]


def _fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(.*?)\}", lambda found: values[found[1]], text)


def test_the_paper_says_so(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Section 4.1 of Liu et al. (2022), and docs/training.md."""
    write_params(tmp_path, raw("paper", tmp_path, folders))
    params = workspace(tmp_path).params
    train, recipe = params.train, params.train.recipe
    assert (recipe.epochs, recipe.steps, recipe.drops) == (100, 0, [0.6, 0.8])
    assert (recipe.head_lr_factor, recipe.momentum, recipe.weight_decay) == (10.0, 0.9, 1e-4)
    assert (train.target_batch, train.source_batch, train.batch_norm) == (256, 256, "mixed")
    assert (train.target_head, train.source_head) == ("random", "random")
    assert train.augment.crop == 0.08
    assert train.augment.flip
    assert not train.augment.moves
    assert (train.strong.operations, train.strong.magnitude) == (2, 10)
    view = config.dataset_settings(params, "my-birds")
    assert (view.stored, view.size, view.share) == (256, 224, 0.875)
    assert params.selectors["uot"] == {
        "metric": "cosine", "cost_scale": 0.01, "epsilon": 1.0, "tau_source": 1.0,
        "tau_target": 100.0,
    }  # fmt: skip


def test_k_is_the_papers_where_the_source_has_more_classes(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    for number in range(200):
        (many / "train" / str(number)).mkdir(parents=True)
    (few / "a").mkdir(parents=True)
    assert raw("paper", tmp_path, (many, few))["select"]["top_k"] == 100
    assert raw("paper", tmp_path, (few, many))["select"]["top_k"] == "auto"


def test_names_fit_stages_and_are_no_folders_of_the_project(tmp_path: Path) -> None:
    here, out = tmp_path / "project", tmp_path / "photos"
    for folder in (here / "birds", out / "models", out / "a" / "train", out / "b" / "train"):
        folder.mkdir(parents=True)
    assert names(here, out / "models", here / "birds") == ("models-images", "birds-images")
    assert names(here, out / "a" / "train", out / "b" / "train") == ("train-source", "train")
    (tmp_path / "Ünï: 2").mkdir()
    assert names(here, out, tmp_path / "Ünï: 2") == ("photos", "n-2")
    params = raw("paper", here, (out, here / "birds"))
    assert params["datasets"]["birds-images"]["path"] == "birds", "below the project: it may move"
    assert params["datasets"]["photos"]["path"] == str(out)


def test_archives_and_lists_are_named_without_their_ending(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("old.v2.tar.gz", "Birds_64px.ZIP", "list.parquet")]
    for file in files:
        file.write_bytes(b"")
    assert names(tmp_path, files[0], files[1]) == ("old-v2", "Birds_64px")
    assert names(tmp_path, files[1], files[2]) == ("Birds_64px", "list")
    params = raw("small", tmp_path, (files[0], files[1]))
    assert params["datasets"]["Birds_64px"]["path"] == "Birds_64px.ZIP"
    assert params["select"]["top_k"] == "auto", "nobody has counted its classes"


def test_what_is_there_stays(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "dvc.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"dvc\.yaml is there already"):
        made(tmp_path, "paper", *folders)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dvc.yaml", "my birds", "old"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("papr", "old", "my birds"), "--preset: got 'papr'; known are few, paper"),
        (("paper", "odl", "my birds"), "odl: no such folder of images"),
        (("paper", "old", "my bird"), "my bird: no such folder of images"),
        (("paper", "old", "my birds/../old"), "the source is the target itself"),
        (
            ("paper", "old", "old/class 0/0.png"),
            r"0\.png: no such folder of images, nor a file that",
        ),
    ],
)
def test_mistakes_write_nothing(
    tmp_path: Path, folders: tuple[Path, Path], arguments: tuple[str, str, str], message: str
) -> None:
    preset, source, target = arguments
    with pytest.raises(UserError, match=message):
        made(tmp_path / "new", preset, tmp_path / source, tmp_path / target)
    assert not (tmp_path / "new").exists()


def test_the_project_of_two_folders_is_made_once(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    old, birds = folders
    both = project(tmp_path, old, birds)
    assert both == (tmp_path / "uotft-my-birds", "my-birds")
    assert (both[0] / ".dvc").is_dir()
    assert "/models/" in (both[0] / ".gitignore").read_text()
    params = both[0] / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 100", "epochs: 7"))
    assert project(tmp_path, old, birds) == both
    assert "epochs: 7" in params.read_text(), "settings of one's own stay"
    with pytest.raises(UserError, match="is the project of other images: .*newer is not the"):
        project(tmp_path, pictures(tmp_path / "newer", 4, 12, seed=2), birds)


def test_a_preset_takes_the_place_of_one_that_nobody_has_edited(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    old, birds = map(str, folders)
    folder, _ = project(tmp_path, old, birds)
    params = folder / "params.yaml"
    assert yaml.safe_load(params.read_text())["backbone"]["name"] == "resnet18"
    project(tmp_path, old, birds, "small")
    assert yaml.safe_load(params.read_text())["backbone"]["name"] == "small_resnet"
    params.write_text(params.read_text().replace("steps: 400 ", "steps: 7 ", 1) + "# mine\n")
    mine = params.read_text()
    project(tmp_path, old, birds, "small")
    assert params.read_text() == mine
    with pytest.raises(UserError, match="has been edited and differs from --preset paper: leave"):
        project(tmp_path, old, birds, "paper")
    assert params.read_text() == mine


def test_a_source_keeps_the_images_that_no_test_would_read(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """A project of an earlier version stays as it is, since another cut would make all anew."""
    old, birds = map(str, folders)
    for preset in NAMES:
        sections = raw(preset, tmp_path / "new", folders)["datasets"]
        assert sections["old"]["test"] == 0
        assert "test" not in sections["my-birds"]
    folder, _ = project(tmp_path, old, birds)
    prepare.prepare(workspace(folder), "old", **QUIET)
    assert storage.read_json(folder / "data/old.json")["images"] == {"train": 60, "val": 12}
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace(", test: 0", ""))
    project(tmp_path, old, birds, "small")
    assert yaml.safe_load(params.read_text())["backbone"]["name"] == "small_resnet"
    assert "test" not in yaml.safe_load(params.read_text())["datasets"]["old"]
    assert "test" not in raw("paper", tmp_path, ("caltech", birds))["datasets"]["caltech"]


def test_projects_beside_each_other_share_a_tracking_store(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    old, birds = map(str, folders)
    folder, _ = project(tmp_path, old, birds)
    assert workspace(folder).tracking == tmp_path
    project(tmp_path, old, birds, "small")
    assert workspace(folder).tracking == tmp_path, "another preset changes nothing of it"
    made(tmp_path / "mine", "small", old, birds)
    assert workspace(tmp_path / "mine").tracking == tmp_path / "mine"


SIDES = "source", "target"


def loose(folder: Path) -> Path:
    """Pictures without folders of classes, as a camera leaves them."""
    made = pictures(folder, 1, 4)
    for path in (made / "class 0").iterdir():
        path.rename(made / path.name)
    (made / "class 0").rmdir()
    return made


def listed(folder: Path) -> Path:
    pictures(folder / "photos", 1, 4)
    lines = ["path,label", *(f"photos/class 0/{n}.png,robin" for n in range(4))]
    (folder / "birds.csv").write_text("\n".join(lines))
    return folder / "birds.csv"


@pytest.mark.parametrize(
    ("side", "make", "message"),
    [
        ("target", loose, "no image in a folder named after its class"),
        ("source", loose, "--preset small learns classes first: put them into a folder for each"),
        *(
            (side, lambda folder: pictures(folder, 1, 4), "are of one class, 'class 0'")
            for side in SIDES
        ),
        *(
            (side, listed, "birds.csv: all training images are of one class, 'robin'")
            for side in SIDES
        ),
    ],
)
def test_images_that_make_no_set_are_refused_at_once(
    tmp_path: Path, side: str, make: Callable[[Path], Path], message: str
) -> None:
    sides = {"source": pictures(tmp_path / "good", 2, 4), "target": tmp_path / "good"}
    sides[side] = make(tmp_path / "wrong")
    with pytest.raises(UserError, match=message):
        made(tmp_path / "new", "small", sides["source"], sides["target"])
    assert not (tmp_path / "new").exists()


def test_a_source_of_loose_pictures_has_no_labels(
    tmp_path: Path, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A folder of a class, or a table that may hold labels, is no such source."""
    caplog.set_level("INFO", "uotft.pipeline.init")
    old = loose(tmp_path / "camera")
    made(tmp_path / "new", "few", old, folders[1])
    params = config.load(tmp_path / "new")
    assert params.datasets["camera"]["labels"] is False
    assert (params.select.unit, params.train.objective) == ("cluster", "pseudo_label")
    assert params.cluster.clusters == 2, "of four pictures; 200 of 2,000 or more"
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("camera: no labels, 4 images in colour")
    assert messages[1].startswith("camera: its pictures lie in no folder of a class, so they are a")
    assert "are enlarged to 224; lower size" in messages[-1], "--preset small would be refused"
    (old / "labels.csv").touch()
    with pytest.raises(UserError, match=r"no image in a folder(?s:.)*labels\.csv; to read one, "):
        made(tmp_path / "other", "few", old, folders[1])
    (old / "labels.csv").rename(old / "notes.txt")
    (old / "robin").mkdir()
    with pytest.raises(UserError, match="no image in a folder named after its class"):
        made(tmp_path / "other", "few", old, folders[1])


def test_init_says_what_it_sees(
    tmp_path: Path, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "uotft.pipeline.init")
    for path in folders[0].rglob("*.png"):
        Image.open(path).convert("L").save(path)
    made(tmp_path / "new", "paper", *folders)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("old: 6 classes, 72 images grey, 20 to 2")
    assert messages[1].startswith("my-birds: 3 classes, 36 images in colour, 20 to 2")
    assert messages[2].startswith("the network sees each picture at 224 pixels a side")
    assert messages[3].startswith("old is grey and my-birds in colour")
    assert re.match(
        r"old: pictures of 2\d pixels a side are enlarged to 224; use --preset", messages[4]
    )

    caplog.clear()
    pictures(tmp_path / "photos", 2, 4, side=100)
    made(tmp_path / "other", "small", folders[0], tmp_path / "photos")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[2].startswith("the network sees each picture at 32 pixels a side")
    assert re.match(r"photos: pictures of 10\d pixels a side are shrunk to 32, which", messages[-1])


def test_small_is_neither_taken_nor_advised_where_classes_of_imagenet_are_the_source(
    tmp_path: Path, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    birds = folders[1]
    with pytest.raises(UserError, match="--preset small trains .* `uotft init` without --source"):
        made(tmp_path / "new", "small", "imagenet", birds)
    assert not (tmp_path / "new").exists()
    made(tmp_path / "new", "few", "imagenet", birds)
    assert "are enlarged to 224; lower size" in caplog.text
    caplog.clear()
    alone = Wanted("paper", "", str(birds), tmp_path, alone=True)
    init.init(tmp_path / "paper", alone)
    assert "are enlarged to 224; use --preset small" in caplog.text
    init.init(tmp_path / "small", replace(alone, preset="small"))
    assert config.load(tmp_path / "small").strategies == ["none"]


def test_init_leaves_the_index_of_git_alone(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    git("init", "--quiet")
    git("add", "old/class 0")  # what the user has staged stays so
    before = git("diff", "--cached", "--name-only")
    project(tmp_path, *map(str, folders))
    assert (tmp_path / "uotft-my-birds" / ".dvc" / "config").is_file()
    assert git("diff", "--cached", "--name-only") == before != ""


def test_the_last_rule_of_git_stays(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / ".gitignore").write_text(".env")  # many editors end a file like this
    made(tmp_path, "paper", *folders)
    rules = (tmp_path / ".gitignore").read_text().splitlines()
    assert rules[0] == ".env"
    assert "/models/" in rules


@pytest.mark.parametrize(
    ("preset", "recipe"),
    [
        ("small", {}),
        ("paper", {}),
        ("few", {}),
        ("paper", {"schedule": "cosine", "warmup": 1, "precision": "bf16", "channels_last": True,
         "compile": True, "accumulate": 2, "ema": 0.5}),
    ],
    ids=["small", "paper", "few", "every setting at once"],
)  # fmt: skip
def test_a_preset_trains(
    tmp_path: Path,
    folders: tuple[Path, Path],
    preset: str,
    recipe: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prepare to train, in this process; the network is traced, but not turned into C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    params = small(raw(preset, tmp_path / "project", folders))
    params["train"]["recipe"] |= recipe
    (tmp_path / "project").mkdir()
    write_params(tmp_path / "project", params)
    ws = workspace(tmp_path / "project")
    up_to_units(ws.root)
    overlap.overlap("old", "my-birds", ws.overlap("my-birds"), workspace=lambda: ws, **QUIET)
    select.select(ws, Cell("my-birds", "uot", 0))
    forget_accelerator()
    accelerator, points = runtime.start(0, 1, ws.params.train.recipe.precision), []
    context = Context(accelerator, log=lambda *point: points.append(point), **QUIET)
    train_stage.train(ws, Cell("my-birds", "uot", 0), context)
    forget_accelerator()
    network, facts = model_io.read(ws.cell("models", Cell("my-birds", "uot", 0)))
    images = len(readers.images(ws, "my-birds").rows("train"))
    assert images == 3 * 8, "all of them, without subset"
    assert facts["steps"] == 2 * images // (8 * recipe.get("accumulate", 1))
    assert facts["image_size"] == [12, 12, 3]
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    assert "loss/source" in points[0][1]
    assert storage.read_json(ws.data("old").with_suffix(".json"))["classes"] == 6
