"""Fault 22: abused settings: unknown keys, wrong types, "False" for a bool, path traversal, shell
words, paths that are not UTF-8, a read-only project.

Expected: one clear message, exit code 2, no traceback, no shell, nothing half-written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.commands import answer, call, users_environment
from support.image_folders import pictures
from support.projects import clone, tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import config
from uotft.core.errors import UserError

SHELL = [
    "x; touch owned",
    "x' ; touch owned; '",
    "$(touch owned)",
    "`touch owned`",
    "x && touch owned #",
    'x"; touch owned; "',
    "x | touch owned",
    "x\ntouch owned\n",
    "x'\ntouch owned\n'",
    ";touch owned;/../glyphs",
    "{x: 1}\u2028touch owned",
    "x > owned",
]
TRAVERSAL = ["../../x", "/etc/passwd", "a/b", "..", ".", "", "-rf", "x\0y", "a b", "a.b"]
NO_TEXT = b"gr\xfcn"


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that nothing was run in; tests write its params.yaml."""
    return clone(tmp_path_factory.mktemp("cloned"))


def named(place: str, name: object) -> dict:
    """The tiny params.yaml with a hostile name in one place."""
    params = tiny_params()
    if place == "datasets":
        params["datasets"][name] = params["datasets"]["digits"]
    elif place == "source":
        params["source"] = name
    elif place == "everywhere":
        params["datasets"][name] = params["datasets"]["digits"]
        params |= {"source": name, "targets": [name]}
    else:
        params[place] = [name]
    return params


@pytest.mark.parametrize("place", ["datasets", "source", "targets", "strategies", "seeds"])
@pytest.mark.parametrize("name", [*SHELL, *TRAVERSAL])
def test_names_are_plain_words(tmp_path: Path, name: str, place: str) -> None:
    write_params(tmp_path, named(place, name))
    with pytest.raises(UserError, match=r"params\.yaml|strategy"):
        config.load(tmp_path)


@pytest.mark.slow
def test_no_name_reaches_the_shell_of_dvc(
    cloned: Path, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """DVC gives its commands to a shell, and knows nothing of what uotft refuses."""
    places = ["datasets", "targets", "everywhere", "strategies", "seeds", "source"]
    words = [*SHELL, {"x; touch owned #": "v"}, ["x; touch owned"]]
    cases = [(place, word) for word in words for place in places]
    cases = [(p, w) for p, w in cases if isinstance(w, str) or p not in ("datasets", "everywhere")]
    few = trials(6, len(cases))
    for number, (place, word) in enumerate(cases[:few]):
        write_params(cloned, named(place, word))
        done = call("dvc", "repro", "--keep-going", cwd=cloned)
        said = f"{place}: {word!r}: {done.stdout}{done.stderr}"
        assert done.returncode != 0, said
        assert "Traceback" not in done.stderr, said
        assert not [p for p in cloned.rglob("owned*") if ".git" not in p.parts], (number, said)
    measured(f"{few} hostile params.yaml before `dvc repro`: 0 reached the shell")


def test_every_word_of_a_command_that_dvc_runs_is_quoted() -> None:
    """Nothing of params.yaml stands in a command but ${item}, which DVC quotes."""
    for name in ("dvc.yaml", "src/uotft/presets/project/pipeline.yaml"):
        for stage, about in yaml.safe_load((REPOSITORY / name).read_text())["stages"].items():
            command = about.get("do", about)["cmd"]
            assert "$" not in command.replace("${item}", ""), stage
            assert "${item}" not in command or "matrix" in about, "of a dictionary alone"


def test_folders_with_hostile_names(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """`uotft init` makes a plain name of a folder's, and what DVC then runs runs no more."""
    root = tmp_path / "project"
    root.mkdir()
    old, new = (str(pictures(tmp_path / w, 2, 3)) for w in ("$(touch owned)", "a'; touch owned #"))
    done = call("uotft", "init", "--source", old, "--target", new, cwd=root)
    assert done.returncode == 0, done.stderr
    assert set(config.load(root).datasets) == {"touch-owned", "a-touch-owned"}
    made = call("dvc", "repro", "prepare", cwd=root)
    assert made.returncode == 0, made.stdout + made.stderr
    assert sorted(p.name for p in (root / "data").glob("*.npz")) == [
        "a-touch-owned.npz",
        "touch-owned.npz",
    ]
    assert not list(tmp_path.rglob("owned"))
    measured("2 folders with shell words in their names: prepared, nothing else run")


def hostile_words(word: str) -> list[tuple[str, ...]]:
    """Every place of the command line that takes a name or a setting."""
    digits = ("--dataset", "digits")
    return [
        ("prepare", "--dataset", word),
        ("train", "--dataset", word),
        ("train", *digits, "--strategy", word),
        ("train", *digits, "--set", f"{word}=1"),
        ("train", *digits, "--set", f"train.objective={word}"),
        ("train", *digits, "--subset", f"{word}=1"),
        ("evaluate", "--dataset", word),
        ("search", *digits, "--study", word or ".."),
        ("search", *digits, "--space", word or "."),
        ("experiment", "show", word),
        ("experiment", "run", word),
        ("register", word, "--name", word),
        ("compare", "--experiment", word or "x", "--by", word),
        ("predict", "--model", word or "x", "x.png"),
        ("export", "--format", word, "--model", "x", "--output", "made.onnx"),
        ("data", "prepare", word),
        ("data", "verify", word),
        ("data", "show", word, "--output", "made.png"),
        ("data", "subset", word, "--subset", "shots=1", "--output", "made.csv"),
        ("data", "overlap", "--target", word or "x"),
    ]


def test_hostile_words_of_the_command_line(
    tmp_path: Path, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    write_params(tmp_path, tiny_params())
    names = [n for n in ("x; touch owned", *SHELL[1:], *TRAVERSAL) if "\0" not in n]
    cases = hostile_words(names[0])  # every place, then every word in those that make a path
    deep = [hostile_words(n)[at] for n in names[1:] for at in (1, 4, 7, 15)]
    deep += [tuple(os.fsdecode(NO_TEXT) if w == "N" else w for w in c) for c in hostile_words("N")]
    cases += deep
    few = cases[: trials(20, len(cases))]
    assert [words for words in few if wrong(tmp_path, *words)] == []
    measured(f"{len(few)} command lines: exit code 2, no traceback, nothing run")


def wrong(root: Path, *words: str) -> str:
    """What is wrong with the answer to hostile words; empty if nothing is."""
    made = {".mlflow.lock", "mlflow.db", "mlruns", "search"}  # of a store that is asked for a run
    done = answer("uotft", *words, cwd=root)
    left = {p.name for p in root.iterdir()} - {"params.yaml"} - made
    return (
        ""
        if done.returncode == 2 and "Traceback" not in done.stderr and not left
        else (f"{done.returncode} {left} {done.stderr}")
    )


def test_a_project_in_a_folder_that_is_no_text(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + NO_TEXT))
    root.mkdir()
    write_params(root, tiny_params())
    done = call("uotft", "prepare", "--dataset", "digits", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "digits: 10 classes" in done.stdout
    assert "'dogz' has no section" in mistake(root, "train", "--dataset", "dogz")


def ordinary() -> list[str]:
    """The words before a command that take from root what others have not: all its rights."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("as root, without setpriv: permissions do not count")
    return ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("prepare", "--dataset", "digits"), "cache: Permission denied"),
        (("register", "--name", "x", "y"), ".mlflow.lock: Permission denied"),
        (("ui", "--port", "18999"), ".mlflow.lock: Permission denied"),
        (("search", "--dataset", "digits"), "search: Permission denied"),
        (("init", "--source", "old", "--target", "birds"), "Permission denied"),
    ],
)
def test_a_project_that_cannot_be_written(
    tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    root = tmp_path / "locked"
    root.mkdir()
    if words[0] == "init":
        for name in ("old", "birds"):
            pictures(root / name, 2, 2)
    else:
        write_params(root, tiny_params())
    before = sorted(root.rglob("*"))
    root.chmod(0o555)
    try:
        done = subprocess.run(
            [*ordinary(), sys.executable, "-m", "uotft", *words],
            cwd=root, env=users_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        root.chmod(0o755)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert named in done.stderr
    assert sorted(root.rglob("*")) == before


def mistake(root: Path, *words: str) -> str:
    before = sorted(root.rglob("*"))
    done = answer("uotft", *words, cwd=root)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(root.rglob("*")) == before
    return done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--dataset", "dogz"), "'dogz' has no section under datasets"),
        (
            ("train", "--dataset", "digits", "--strategy", "uto"),
            "'uto'; known are all, greedy_ot,",
        ),
        (("select", "--dataset", "digits"), "embeddings/glyphs.npz is missing; `dvc repro` makes"),
        (("embed", "--dataset", "digits"), "model.json is missing; `dvc repro` makes"),
        (("evaluate", "--dataset", "digits"), "digits.npz is missing; `dvc repro` makes"),
        (("compare",), "embeddings/glyphs.npz is missing; `dvc repro` makes"),
        (("train",), "--dataset"),
        (("train", "--dataset", "digits", "--seed", "-1"), "--seed"),
        (("train", "--dataset", "digits", "--num-processes", "0"), "--num-processes"),
        (
            ("train", "--dataset", "digits", "--num-processes", "3", "--num-machines", "2"),
            "--num-processes: got 3, the number over all machines, which 2 machines cannot share",
        ),
        (("pretrain", "--num-machines", "2", "--num-processes", "2"), "--main-process-ip"),
        (("train", "--dataset", "digits", "--source", "old"), "digits: no such folder of images"),
        (("init", "--source", "old", "--target", "new"), "params.yaml is there already"),
        (
            ("data", "overlap", "--source", "dogz", "--target", "digits"),
            "'dogz' is neither a folder nor a prepared data set: data set 'dogz' has no section",
        ),
        (("data", "overlap", "--source", "glyphs", "--target", "digits"), "glyphs.npz is missing"),
        (("data", "overlap", "--source", ".", "--target", "digits"), "no image in this folder"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_words(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    write_params(tmp_path, tiny_params())
    assert message in mistake(tmp_path, *words)


def test_no_project_here(tmp_path: Path) -> None:
    assert "params.yaml is missing; run uotft inside a project" in mistake(tmp_path, "compare")


def test_a_parameter_of_the_wrong_type(tmp_path: Path) -> None:
    params = tiny_params()
    params["train"]["recipe"]["steps"] = "False"
    write_params(tmp_path, params)
    said = mistake(tmp_path, "train", "--dataset", "digits")
    assert "params.yaml" in said
    assert "train.recipe.steps: got 'False'" in said


def test_k_above_the_number_of_source_classes(fresh: Path) -> None:
    params = yaml.safe_load((fresh / "params.yaml").read_text())
    params["select"]["top_k"] = 1000
    write_params(fresh, params)
    said = mistake(fresh, "select", "--dataset", "digits")
    assert "select.top_k: got 1000, but the source has only 12 classes" in said


def change(root: Path, path: str, value: object) -> None:
    params = section = tiny_params()
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent]
    section[last] = value
    write_params(root, params)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("train.augment.flip", "False", "train.augment.flip: got .False.*valid boolean"),
        ("train.reestimate_norm", 0, "train.reestimate_norm: got 0.*valid boolean"),
        ("train.batch_norm", False, "train.batch_norm: got False.*'target', 'mixed' or 'frozen'"),
        ("pretrain.recipe.steps", "False", "pretrain.recipe.steps: got 'False'.*integer"),
        ("pretrain.recipe.learning_rate", "1e-4", "got '1e-4'.*write 1.0e-4"),
        ("train.recipe.epochs", 3, "recipe.epochs: got 3: set either steps or epochs"),
        ("train.recipe.warmup", 12, "recipe.warmup: got 12: the warm-up must be shorter than st"),
        ("train.labda", 0.3, "train.labda: no such setting; known are.*lambda"),
        ("train.recipe.step", 3, "train.recipe.step: no such setting; known are.*steps"),
        ("train.lambda", -1.0, "train.lambda: got -1.0.*greater than or equal to 0"),
        ("strategies", ["uot", "uto"], "got 'uto'; known are.*greedy_ot.*uot"),
        ("strategies", ["uot", "uot"], "strategies: got.*is listed twice"),
        ("seeds", [0, 2**32], "seeds.*got 4294967296.*less than or equal to 4294967295"),
        ("seeds", [-1], "seeds.*got -1.*greater than or equal to 0"),
        (
            "targets",
            ["dogz"],
            "data set 'dogz' has no section under datasets: .*known are digits, glyphs",
        ),
        (
            "backbone.name",
            "resnet19",
            "backbone.name: got 'resnet19'; known are effic",
        ),
        ("selectors.uot", {"cost_scale": 0.0}, "selectors.uot:\n.*cost_scale: got 0.0"),
        ("objectives", {"jiont": {}}, "objectives: got 'jiont'; known are.*joint, .*l2_sp, plain"),
        ("datasets.digits.size", 1.5, "datasets.digits:\n.*size: got 1.5"),
        (
            "train.objective",
            "jiont",
            "train.objective: got 'jiont'; known are.*joint, .*l2_sp, plain",
        ),
    ],
)
def test_bad_values_are_named(tmp_path: Path, setting: str, value: object, message: str) -> None:
    change(tmp_path, setting, value)
    with pytest.raises(UserError, match=f"(?s){message}"):
        workspace(tmp_path)


@pytest.mark.parametrize("text", ["a: [", "\xff", "just words"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"params\.yaml"):
        workspace(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a b", "a;b", "a.b", "-a", ""])
def test_names_of_data_sets_are_plain_words(tmp_path: Path, name: str) -> None:
    params = tiny_params()
    params["datasets"][name] = {"kind": "folder", "path": "x"}
    write_params(tmp_path, params)
    with pytest.raises(UserError, match="datasets: the name '.*' may have only letters, digits"):
        config.load(tmp_path)
