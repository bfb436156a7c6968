"""Options that a command would ignore are refused, in one line and before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.commands import answer
from support.image_folders import pictures
from uotft.cli.app import app
from uotft.core import config, storage, user_settings
from uotft.core.errors import UserError
from uotft.pipeline import init
from uotft.pipeline.init import Wanted
from uotft.runs import estimate

BANKS = "experiment run table4 --source-bank s.npz --target-bank t.npz --expect near*"


def refused(words: str, cwd: Path) -> str:
    """What a command says that is refused."""
    done = answer("uotft", *words.split(), cwd=cwd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "--on cub",
        "--seeds 2",
        "--set selectors.uot.metric=l2",
        "--rows UOT-cos",
        "--part 1/2",
        "--validation",
        "--dry-run",
        "--jobs 2",
        "--num-processes 2",
        "--scheduler tcp://here:8786",
    ],
)
def test_recall_from_class_means_has_no_trainings(option: str, tmp_path: Path) -> None:
    said = refused(f"{BANKS} {option}", tmp_path)
    assert "--source-bank goes with --target-bank, --expect, --table, --top-k" in said


def test_a_run_of_trainings_has_its_own_folder_for_the_tables(tmp_path: Path) -> None:
    said = refused("experiment run table4 --output tables", tmp_path)
    assert "--output goes with --source-bank" in said


def test_recall_from_class_means_is_that_of_top_k(tmp_path: Path) -> None:
    """Without --top-k it is the paper's 100 of 1,000 classes, here 3 of 30."""
    rng = np.random.default_rng(0)
    target, far = rng.normal(size=(6, 16)), rng.normal(size=(24, 16))
    names = [f"near {i}" for i in range(6)] + [f"far {i}" for i in range(24)]
    np.savez(tmp_path / "s.npz", means=np.vstack([target, far]), names=names)
    np.savez(tmp_path / "t.npz", means=target)
    for words, kept in (("", 3), ("--top-k 6", 6)):
        done = answer("uotft", *f"{BANKS} --output tables {words}".split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = storage.read_csv(tmp_path / "tables" / "table.csv")
        assert {float(row["kept"]) for row in rows} == {kept}


def test_one_training_has_no_number_of_jobs(tmp_path: Path) -> None:
    assert "--jobs goes with --all" in refused("train --dataset digits --jobs 2", tmp_path)


@pytest.mark.parametrize(
    ("command", "ignored"),
    [
        ("train", "--again"),
        ("train", "--seed 1 --strategy uot"),
        ("select", "--seed 0"),
        ("select", "--explain"),
        ("evaluate", "--strategy uot"),
    ],
)
def test_all_cells_have_no_options_of_one(command: str, ignored: str, tmp_path: Path) -> None:
    said = refused(f"{command} --dataset digits --all {ignored}", tmp_path)
    names = ", ".join(word for word in ignored.split() if word.startswith("--"))
    assert f"{command}: --all is every strategy" in said
    assert said.endswith(f"leave out {names}\n")


@pytest.mark.parametrize("strategy", ["all", "label", "score_quantile"])
def test_no_k_is_given_to_a_strategy_that_ignores_it(strategy: str, tmp_path: Path) -> None:
    banks = "--source-bank s.npz --target-bank t.npz --output x.json"
    said = refused(f"select --strategy {strategy} {banks} --top-k 2", tmp_path)
    assert f"--strategy {strategy} keeps as many classes as its own settings say" in said
    assert said.endswith("leave out --top-k\n")


@pytest.mark.parametrize("option", ["--size 224", "--top-k 5", "--output x", "--expect cat"])
def test_a_selection_of_the_project_has_its_settings(option: str, tmp_path: Path) -> None:
    said = refused(f"select --dataset digits {option}", tmp_path)
    assert "params.yaml has its settings" in said


@pytest.mark.parametrize(
    "options", ["--source photos/old", "--backbone resnet18", "--strategy none", "--strategy uot"]
)
def test_the_doctor_of_no_training_has_none_of_its_options(options: str, tmp_path: Path) -> None:
    said = refused(f"doctor {options}", tmp_path)
    assert "--source, --backbone and --strategy go with --for" in said


def test_a_subset_has_a_seed_that_a_training_can_have(tmp_path: Path) -> None:
    words = "data subset digits --output few.csv --subset shots=2 --seed 99999999999"
    done = answer("uotft", *words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert "'--seed': Input should be less than or equal to 4294967295" in done.stderr


def test_the_clusters_of_a_project_are_those_of_its_settings(tmp_path: Path) -> None:
    said = refused("units --clusters 100 --seed 0", tmp_path)
    assert "in place of --clusters, --seed, change cluster.clusters, cluster.seed there" in said


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user without settings, with photos/, on a machine of known speed."""
    speed = estimate.Speed(train=10.0, forward=40.0, decode=1000.0, device="cpu", threads=2)
    monkeypatch.setattr(estimate, "measure", lambda *given, **more: speed)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", 3, 12)
    return tmp_path


def test_a_dry_run_plans_with_a_copy_of_imagenet_and_does_not_remember_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "copy" / "n01440764").mkdir(parents=True)
    before = sorted(home.rglob("*"))
    app(["train", "--dataset", "photos", "--imagenet", "copy", "--dry-run"], standalone_mode=False)
    assert "1 of ImageNet's 1,000 classes in copy/" in capsys.readouterr().out
    assert sorted(home.rglob("*")) == before
    assert not user_settings.path().exists()


def test_a_project_has_the_copy_of_imagenet_that_its_training_names(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run plans with it; a training, here refused before it begins, writes it down."""
    init.init(home, Wanted("few", "imagenet", "photos", home))
    (home / "copy" / "n01440764").mkdir(parents=True)
    before = (home / "params.yaml").read_text()
    words = "train", "--dataset", "photos-images", "--imagenet", "copy"
    app([*words, "--dry-run"], standalone_mode=False)
    assert "1 of ImageNet's 1,000 classes in copy/" in capsys.readouterr().out
    assert (home / "params.yaml").read_text() == before
    with pytest.raises(UserError, match="--num-processes: got 3"):
        app([*words, "--num-processes", "3", "--num-machines", "2"], standalone_mode=False)
    assert config.load(home).datasets["imagenet"]["images"] == "copy"


def test_a_dry_run_of_all_cells_plans_all_of_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["train", "--dataset", "photos", "--all", "--dry-run"], standalone_mode=False)
    said = capsys.readouterr().out
    raw, _ = init.settings(Wanted("", "imagenet", "photos", home))
    number = len(raw["strategies"]) * len(raw["seeds"])
    assert f"{number} trainings: {', '.join(raw['strategies'])}" in said
    assert f"{number} trainings one after the other" in said


def test_a_dry_run_refuses_what_is_no_copy_of_imagenet(home: Path) -> None:
    (home / "copy").mkdir()
    (home / "copy" / "notes.txt").touch()
    assert "got notes.txt; expected a folder with" in refused(
        "train --dataset photos --source photos --imagenet copy --dry-run", home
    )


def test_a_dry_run_knows_a_set_of_the_project_by_its_path(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init.init(home, Wanted("small", "", "photos", home, alone=True))
    words = ["train", "--dataset", "./photos", "--strategy", "none", "--dry-run"]
    app(words, standalone_mode=False)
    assert "small_resnet on photos-images, without source images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    ["train --dataset digits --seed", "units --features f.npy --output s.npz --seed",
     "predict a.png --dataset digits --seed"],
)  # fmt: skip
def test_a_seed_that_numpy_does_not_take_is_refused(words: str, tmp_path: Path) -> None:
    done = answer("uotft", *words.split(), str(2**32), cwd=tmp_path)
    assert done.returncode == 2
    assert f"'--seed': Input should be less than or equal to {2**32 - 1}" in done.stderr


@pytest.mark.parametrize("command", ["search --dataset digits", "experiment run table4"])
@pytest.mark.parametrize("seeds", [f"0,{2**32}", f"{2**32}-{2**32}"])
def test_so_is_one_of_several(command: str, seeds: str, tmp_path: Path) -> None:
    said = refused(f"{command} --seeds {seeds}", tmp_path)
    assert f"--seeds: got {seeds!r}; " in said
    assert f"{2**32 - 1}" in said


def test_clusters_that_no_command_could_read_are_refused_first(tmp_path: Path) -> None:
    said = refused("units --features missing.npy --output clusters.npy", tmp_path)
    assert "--output: got clusters.npy; a bank is a file that ends in .safetensors or" in said


def test_no_output_replaces_what_it_is_made_from(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=np.eye(4), names=list("abcd"))
    (tmp_path / "folder").mkdir()
    before = (tmp_path / "s.npz").read_bytes()
    for words in (
        "units --features s.npz --output ./s.npz",
        "select --source-bank s.npz --target-bank t.npz --output s.npz",
        "select --source-bank t.npz --target-bank s.npz --output s.npz",
        "select --source-bank t.npz --target-bank t.npz --table s.npz --output s.npz",
    ):
        assert "s.npz: would replace s.npz, which is read: name another" in refused(words, tmp_path)
    words = "select --source-bank s.npz --target-bank s.npz --output folder"
    assert "--output folder: a folder; name the file" in refused(words, tmp_path)
    assert (tmp_path / "s.npz").read_bytes() == before


def test_a_plan_has_a_strategy_that_there_is(tmp_path: Path) -> None:
    pictures(tmp_path / "birds", 2, 6)
    said = refused("train --dataset birds --strategy uott --dry-run", tmp_path)
    assert "'uott'" in said
