"""`uotft select` on two files of class means, as a user with features of his own runs it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.commands import answer, call

WORDS = ("select", "--source-bank", "s.npz", "--target-bank", "t.npz", "--output", "out.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty source classes, of which the first six are near one target class each."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(6, 16))
    source = rng.normal(size=(30, 16))
    source[:6] = target + 0.1 * rng.normal(size=(6, 16))
    names = [f"near {i}" for i in range(6)] + [f"far {i}" for i in range(24)]
    np.savez(tmp_path / "s.npz", means=source, names=names, counts=np.full(30, 5))
    np.savez(tmp_path / "t.npz", means=target)
    return tmp_path


def test_the_command_of_the_readme(folder: Path) -> None:
    words = ("--strategy", "uot", "--metric", "cosine", "--cost-scale", "0.01", "--top-k", "6")
    done = call("uotft", *WORDS, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uot: 6 of 30 kept: near ")
    said = json.loads((folder / "out.json").read_text())
    assert {c["name"] for c in said["classes"]} == {f"near {i}" for i in range(6)}
    assert [c["rank"] for c in said["classes"]] == [1, 2, 3, 4, 5, 6]
    scores = [c["score"] for c in said["classes"]]
    assert scores == sorted(scores, reverse=True)
    assert len(said["scores"]) == 30
    assert said["settings"]["cost_scale"] == 0.01
    assert said["settings"]["top_k"] == 6
    assert set(said["fingerprints"]) == {"source", "target"}
    assert sorted(p.name for p in folder.iterdir()) == ["out.json", "s.npz", "t.npz"]


def test_auto_k_explanation_recall_and_pictures(folder: Path) -> None:
    words = ("--explain", "--expect", "near *", "--pictures", "pictures")
    done = answer("uotft", *WORDS, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "recall of the 6 expected: 100.00 %"
    assert lines[1].startswith("uot: 6 of 30 kept"), "auto: the six that carry the mass"
    assert "near 3: 3 100 %, " in done.stdout, "near 3 serves target class 3"
    said = json.loads((folder / "out.json").read_text())
    assert said["settings"]["top_k_rule"] == "carries 0.99 of the transported mass"
    assert said["recall"] == {"expected": 6, "percent": 100.0}
    assert all(c["serves"][0]["name"] == c["name"].split()[1] for c in said["classes"])
    pictures = sorted(p.name for p in (folder / "pictures").iterdir())
    assert pictures == ["plan.png", "recall.png", "similarity.png"]


def test_a_curve_that_cannot_be_solved_everywhere_costs_no_selection(folder: Path) -> None:
    words = ("--top-k", "4", "--set", "solver=pot", "--expect", "near *", "--pictures", "pictures")
    done = answer("uotft", *WORDS, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "recall.png leaves out the cost scale 0.0001" in done.stderr
    assert len(json.loads((folder / "out.json").read_text())["classes"]) == 4
    assert (folder / "pictures" / "recall.png").is_file()


def test_other_strategies_and_settings(folder: Path) -> None:
    (folder / "mine.txt").write_text("far 3\nnear 1\n")
    for words, kept in (
        (("--strategy", "nearest", "--top-k", "1", "--metric", "l2"), "near"),
        (("--strategy", "manual", "--set", "file=mine.txt"), "2 of 30 kept: far 3, near 1"),
        (("--strategy", "label", "--set", "classes=[near 4]"), "1 of 30 kept: near 4"),
        (("--strategy", "all"), "30 of 30 kept"),
        (("--set", "solver=blocks", "--set", "tau_target=10", "--top-k", "2"), "2 of 30 kept"),
        (("--strategy", "random", "--top-k", "auto", "--seed", "3"), "6 of 30 kept"),
    ):
        done = answer("uotft", *WORDS, *words, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert kept in done.stdout


def test_images_with_a_cap_for_each_class(folder: Path) -> None:
    means = np.load(folder / "s.npz")["means"]
    np.savez(folder / "s.npz", means=means, labels=np.array(["a", "b", "c"])[np.arange(30) % 3])
    done = answer("uotft", *WORDS, "--top-k", "6", "--max-per-class", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    classes = json.loads((folder / "out.json").read_text())["classes"]
    assert sorted(c["label"] for c in classes) == ["a", "b", "c"]
    assert all("abc"[c["row"] % 3] == c["label"] for c in classes)


def test_nothing_heavy_is_imported(folder: Path) -> None:
    """Torch, POT or MLflow would each take longer than the whole command."""
    code = f"import sys; sys.argv = {['uotft', *WORDS, '--top-k', '3']!r}\nimport uotft.cli.app\n"
    code += "try: uotft.cli.app.app()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "3 of 30 kept" in done.stdout
    heavy = {"torch", "ot", "mlflow", "faiss", "matplotlib", "accelerate", "sklearn", "scipy"}
    heavy |= {"torchvision", "optuna", "pandas", "pyarrow", "PIL", "rich", "jinja2", "sqlalchemy"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--top-k", "0"), "top_k: got 0: give a whole number of at least 1, or auto"),
        (("--top-k", "31"), "select.top_k: got 31, but the source has only 30 classes"),
        (("--top-k", "many"), "top_k: got 'many'"),
        (("--metric", "euclid"), "strategy uot:|metric: got 'euclid'"),
        (("--strategy", "random", "--metric", "l2"), "metric: no such setting"),
        (("--cost-scale", "0"), "cost_scale: got 0"),
        (("--set", "tau=1"), "tau: no such setting; known are cost_scale, device"),
        (("--set", "tau_target=["), "--set tau_target: got '[', which is not YAML"),
        (("--set", "tau"), "--set: got 'tau'; write NAME=VALUE"),
        (("--expect", "middle *"), "--expect: .*'middle *' matches none"),
        (("--strategy", "nearest", "--top-k", "2", "--explain"), "'nearest' has no transport plan"),
        (("--top-k", "2", "--max-per-class", "1"), "s.npz has no array 'labels'"),
        (("--dataset", "digits"), "select --dataset goes with"),
        (("--source-bank", "no.npz"), "no.npz: no such file"),
    ],
)
def test_mistakes(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = answer("uotft", *WORDS, *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in message.split("|"):
        for piece in part.split(".*"):
            assert piece in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["s.npz", "t.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.__setitem__((4, 2), np.nan), "s.npz: class 'near 4' (row 4): its mean is NaN"),
        (lambda m: m.__setitem__(7, 0.0), "s.npz: class 'far 1' (row 7): its mean is all zero"),
        (lambda m: m.resize((30, 15), refcheck=False), "means of 15 features and t.npz of 16"),
    ],
)
def test_bad_means(folder: Path, change, message: str) -> None:
    with np.load(folder / "s.npz") as arrays:
        means, names = arrays["means"].copy(), arrays["names"]
    change(means)
    np.savez(folder / "s.npz", means=means, names=names)
    done = answer("uotft", *WORDS, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (folder / "out.json").exists()


def test_two_backbones_and_a_pickle(folder: Path) -> None:
    means = np.load(folder / "t.npz")["means"]
    np.savez(folder / "t.npz", means=means, backbone="resnet50")
    means = np.load(folder / "s.npz")["means"]
    np.savez(folder / "s.npz", means=means, backbone="resnet18")
    done = answer("uotft", *WORDS, cwd=folder)
    assert done.returncode == 2
    assert "s.npz and t.npz were made with different backbones (resnet18, resnet50)" in done.stderr
    (folder / "s.npz").write_bytes(pickle.dumps({"means": means}))
    done = answer("uotft", *WORDS, cwd=folder)
    assert done.returncode == 2
    assert "s.npz: not a readable npz of plain arrays" in done.stderr


def test_one_of_the_three_files_alone(tmp_path: Path) -> None:
    done = answer("uotft", "select", "--source-bank", "s.npz", cwd=tmp_path)
    assert done.returncode == 2
    assert "select needs --dataset, or --source-bank, --target-bank and --output" in done.stderr


def test_clusters_of_unlabelled_features(folder: Path) -> None:
    """600 unlabelled points around the source's classes: k-means, then the same selection."""
    with np.load(folder / "s.npz") as arrays:
        means = arrays["means"]
    rng = np.random.default_rng(1)
    owners = rng.permutation(np.arange(600) % 30)
    points = means[owners] + 0.05 * rng.normal(size=(600, 16))
    np.save(folder / "points.npy", points.astype(np.float32))
    words = ("units", "--features", "points.npy", "--output", "s.npz", "--clusters", "60")
    done = answer("uotft", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("s.npz: 60 clusters of 600 rows, mean cosine 0.9")
    with np.load(folder / "s.npz") as arrays:
        members, counts = arrays["members"], arrays["counts"]
    assert counts.sum() == 600
    done = answer("uotft", *WORDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    kept = [c["row"] for c in json.loads((folder / "out.json").read_text())["classes"]]
    assert set(owners[np.isin(members, kept)].tolist()) == set(range(6)), "the near ones, no other"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--features", "s.npz"), "--features and --output go together"),
        (("--features", "no.npy", "--output", "o.npz"), "no.npy: no such file"),
        (("--features", "s.npz", "--output", "o.npz"), "cluster.clusters: got 2000, but there are"),
        (
            ("--features", "s.npz", "--output", "o.npz", "--clusters", "0"),
            "clusters: got 0: Input should be greater than or equal to 1",
        ),
    ],
)
def test_mistakes_in_clusters(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = answer("uotft", "units", *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert not (folder / "o.npz").exists()
