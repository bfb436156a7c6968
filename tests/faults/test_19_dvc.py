"""Fault 19: DVC's cache rots or loses a file; DVC's lock is held; the site cache is another user's.

Expected: `uotft data verify` reports it; selection and training refuse what was made of other
bytes; a training whose inputs are made needs no lock.

DVC checks out what its read-only cache holds without a look (treeverse/dvc#5978).
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.commands import call, users_environment
from support.dvc_lock import holding
from support.projects import alone, workspace
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline import compare, select, train, verify
from uotft.training import runtime

QUIET = {"progress": lambda items, label: items}

WORDS = ("train", "--dataset", "digits", "--strategy", "none", "--seed")


@pytest.fixture(scope="module")
def project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own, since others count the runs of theirs."""
    return alone(project, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_what_is_up_to_date_is_trained_on_without_the_lock(project: Path) -> None:
    with holding(project) as other:
        done = call("uotft", *WORDS, "7", cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"uotft: process {other.pid} (" in done.stderr
    assert (
        "holds DVC's lock; by dvc.lock all is made with the settings of params.yaml" in done.stderr
    )
    assert "dvc repro" not in done.stderr
    assert "trained digits-none-7" in done.stdout


@pytest.mark.slow
def test_what_is_missing_waits_for_the_lock(project: Path) -> None:
    (project / "overlap/digits.json").unlink()
    with holding(project) as other:
        process = subprocess.Popen(
            [sys.executable, "-m", "uotft", *WORDS, "8"],
            cwd=project,
            env=users_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = process.stderr.readline()
    _, rest = process.communicate(timeout=300)
    assert said.startswith(f"uotft: waiting for process {other.pid} (")
    assert said.endswith("which holds DVC's lock: to be made are overlap@digits\n")
    assert process.returncode == 0, rest[-3000:]
    assert "bringing up to date: dvc repro" in rest
    assert (project / "models/digits/none/8/model.safetensors").is_file()


def flip(path: Path, at: int) -> None:
    """Change a bit of one byte of a read-only file, whose mode and times stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(stat.S_IMODE(before.st_mode))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def objects(project: Path) -> list[Path]:
    """DVC's copies of all that dvc.lock tells of."""
    found = sorted(p for p in (project / ".dvc/cache/files/md5").rglob("*") if p.is_file())
    assert found
    return found


def verified(project: Path) -> list[str]:
    return verify.everything(workspace(project), lambda items, label: items)[1]


@pytest.fixture(scope="module")
def whole(project: Path) -> Path:
    """The project with nothing wrong in its cache."""
    other = call("dvc", "repro", cwd=project, timeout=300)
    assert other.returncode == 0, other.stderr[-3000:]
    assert verified(project) == []
    return project


@pytest.mark.parametrize("how", [pytest.param("flip", marks=pytest.mark.slow), "delete"])
def test_verify_reports_a_copy_that_changed_or_is_gone(
    whole: Path, how: str, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    rng, every = np.random.default_rng(0), objects(whole)
    used = {p for p in every if used_by_lock(whole, p)}
    drawn = [p for p in rng.permutation(sorted(used)).tolist()][: trials(4, 200)]
    for path in drawn:
        content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        if how == "flip":
            flip(path, int(rng.integers(len(content))))
        else:
            path.unlink()
        bad = verified(whole)
        word = "changed" if how == "flip" else "missing"
        assert bad
        assert all(line.startswith(f"{path}: {word}, DVC's ") for line in bad), bad
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    assert verified(whole) == []
    measured(f"{how}: {len(drawn)} of {len(drawn)} reported, of {len(used)} copies; no other named")


def used_by_lock(project: Path, path: Path) -> bool:
    """Whether dvc.lock means this copy: those of earlier versions are nobody's any more."""
    name = path.parent.name + path.name
    lock = (project / "dvc.lock").read_text()
    lists = [p for p in objects(project) if p.suffix == ".dir" and p.parent.name + p.name in lock]
    return name in lock or any(name in p.read_text() for p in lists)


def test_the_command_says_it_with_its_exit_code(whole: Path) -> None:
    done = call("uotft", "data", "verify", cwd=whole)
    assert done.returncode == 0, done.stdout
    assert "stages in dvc.lock: " in done.stdout
    assert done.stdout.endswith("and DVC's copies; 0 wrong\n")
    metrics = whole / "metrics/digits/uot.json"
    before = metrics.read_bytes()
    metrics.write_bytes(before.replace(b"top1", b"top2", 1))
    done = call("uotft", "data", "verify", cwd=whole)
    metrics.write_bytes(before)
    assert done.returncode == 1
    line = f"{metrics}: not the version in dvc.lock; dvc repro makes it"
    assert done.stdout.splitlines()[0] == line


CORRUPT = {
    "data/glyphs.npz": ("select", r"data/glyphs\.npz"),
    "data/digits.npz": ("select", r"data/digits\.npz"),
    "embeddings/digits-images/features.npy": ("select", r"features\.npy is damaged"),
    "embeddings/digits-images/index.npz": ("select", r"digits-images"),
    "embeddings/glyphs.npz": ("train", r"embeddings/glyphs\.npz"),
    "pretrained/glyphs/model.safetensors": ("train", r"model\.safetensors is not the file that"),
    "overlap/digits.json": ("train", r"overlap/digits\.json"),
    "selections/digits/uot/0/selection.json": ("train", r"selection\.json is damaged: it has"),
    "metrics/digits/uot.json": ("compare", r"metrics/digits/uot\.json is not what "),
}
AT = {"selections": b'"row": ', "metrics": b'"images": 1'}  # a number, which has no checksum


@pytest.mark.parametrize("name", CORRUPT)
def test_what_dvc_checks_out_of_a_rotten_cache_is_refused(
    whole: Path, name: str, measured: Callable[[str], None]
) -> None:
    """By the stage that reads it, called directly; DVC itself notices nothing."""
    stage, message = CORRUPT[name]
    path, content = whole / name, (whole / name).read_bytes()
    same = [p for p in objects(whole) if p.read_bytes() == content]
    [kept] = same
    mode = stat.S_IMODE(kept.stat().st_mode)
    at, marker = len(content) - len(content) // 3, AT.get(name.partition("/")[0], b'"sha256": "')
    if name.endswith(".json"):
        at = content.index(marker) + len(marker)
    flip(kept, at)
    path.unlink()
    done = call("dvc", "checkout", "--force", cwd=whole)
    silent = done.returncode == 0 and path.is_file() and path.read_bytes() != content
    if not silent:  # a DVC that looks: then what it refuses to check out is not there
        path.unlink(missing_ok=True)
    ws = workspace(whole)
    run = {
        "select": lambda: select.select(ws, Cell("digits", "uot", 0)),
        "train": lambda: train.train(
            ws, Cell("digits", "uot", 0), Context(runtime.start(0, 1), log=lambda *_: None, **QUIET)
        ),
        "compare": lambda: compare.compare(ws),
    }
    with pytest.raises(UserError, match=message):
        run[stage]()
    assert any(line.startswith(f"{path}: not the version in dvc.lock") for line in verified(whole))
    for place in (kept, path):
        place.unlink(missing_ok=True)
        place.write_bytes(content)
    kept.chmod(mode)
    measured(f"{name}: dvc checkout {'silent' if silent else 'noticed it'}; {stage} refuses it")


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_a_flipped_byte_of_an_npz_is_an_error_or_changes_nothing(
    tmp_path: Path,
    writer: Callable[..., None],
    trials: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    """What every stage reads; zip keeps a CRC-32 of each array."""
    rng, path = np.random.default_rng(0), tmp_path / "a.npz"
    arrays = {"means": rng.normal(size=(20, 8)), "names": np.array([f"c{i}" for i in range(20)])}
    writer(path, **arrays)
    content, refused, count = path.read_bytes(), 0, trials(300, 5000)
    for _ in range(count):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            found = storage.read_arrays(path)
        except UserError:
            refused += 1
            continue
        for name in found.keys() & arrays.keys():
            assert np.array_equal(found[name], arrays[name])
    assert refused > 0.5 * count
    measured(f"{count} flips: {refused} refused, {count - refused} change no array")


def test_the_place_where_another_user_may_have_come_first_is_not_used(tmp_path: Path) -> None:
    """DVC's indexes are pickles, by default below /var/tmp, where anybody can make the folder."""
    pytest.importorskip("uotft.core.environment", reason="nothing sets DVC's site cache")
    code = (
        "from uotft.core import environment; environment.prepare(); "
        "import dvc.dirs; print(dvc.dirs.site_cache_dir())"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "DVC_SITE_CACHE_DIR": ""}
    env = {k: v for k, v in users_environment().items() if k not in home} | {"HOME": str(tmp_path)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    place = Path(done.stdout.strip())
    assert place.is_relative_to(tmp_path)
    own = place if place.is_dir() else place.parent
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert own.stat().st_uid == os.getuid()
