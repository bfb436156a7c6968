"""Fault 9: image files that are empty, cut, HTML or 30,000 x 30,000 pixels large, or odd: CMYK, 16
bits, GIF, palette, one pixel, wrong EXIF; files that turn bad later.

Expected: odd ones are read right; bad ones are listed with path and reason; they stop a command or,
with ``unreadable: skip``, are left out, counted in the run, and refused above 1 %; every other
image keeps its label.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from support.commands import call
from support.folder_datasets import SMALL, load, many, tree
from support.image_folders import pictures as draw
from support.projects import runs, tiny_params, workspace, write_params
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.data import files, pixel_cache
from uotft.pipeline import prepare, pretrain, readers, workspace as workspace_stage
from uotft.runs import job
from uotft.training import runtime

SIDE = {"stored": 32, "size": 24}
QUIET = {"progress": lambda items, label: items}
#: Every kind of unreadable file, and a part of the reason that is given.
BAD = {
    **pictures.bad_files(),
    "half.png": pictures.encoded(pictures.scene(1))[:3000],
    "text.gif": b"GIF89a",
}
REASONS = {
    "empty.jpg": "not an image", "cut.jpg": "truncated", "page.jpg": "not an image",
    "bomb.png": "900000000 pixels", "half.png": "", "text.gif": "",
}  # fmt: skip


def with_exif(content: bytes) -> bytes:
    """A JPEG that begins with this EXIF block."""
    body = pictures.encoded(pictures.scene(2), "JPEG", quality=95)
    block = b"Exif\0\0" + content
    return body[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + body[2:]


def orientation(value: int) -> bytes:
    """The EXIF block of one tag."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")


ODD = {
    **pictures.odd_files(),
    "exif-noise.jpg": with_exif(bytes(range(256))),
    "exif-cut.jpg": with_exif(orientation(6)[:9]),
    "exif-nine.jpg": with_exif(orientation(9)),
    "exif-zero.jpg": with_exif(orientation(0)),
}


def whole(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.int64)


def project(
    root: Path, *, classes: int = 3, each: int = 200, **view: object
) -> workspace_stage.Workspace:
    """A data set of files as source and target, each class a colour of its own; nothing made."""
    draw(root / "photos", classes, each)
    found = tiny_params()
    section = {"kind": "folder", "path": str(root / "photos"), **SMALL, **view}
    found |= {"source": "photos", "targets": ["photos"], "datasets": {"photos": section}}
    found["backbone"] |= {"channels": 3}
    found["pretrain"]["batch_size"] = 16
    write_params(root, found)
    return workspace(root)


def spoil(ws: workspace_stage.Workspace, rng: np.random.Generator, count: int) -> dict[str, str]:
    """Make ``count`` drawn files bad, of all kinds in turn; {path: kind}."""
    every = sorted((ws.root / "photos").rglob("*.png"))
    kinds = [*BAD]
    bad = {}
    for number, index in enumerate(rng.choice(len(every), count, replace=False).tolist()):
        bad[str(every[index])] = kinds[number % len(kinds)]
        every[index].write_bytes(BAD[kinds[number % len(kinds)]])
    return bad


# ---- kinds of files


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # said once, and no reason to leave one out
@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_pictures_all_the_same(name: str, measured: Callable[[str], None]) -> None:
    found = pixel_cache.square(ODD[name], 32, Path(name)).astype(int)
    if name == "one.png":
        assert (found == (10, 200, 30)).all()
        return
    expected = whole(pictures.scene(2))
    if name == "grey16.png":
        expected = whole(pictures.scene(2).convert("L"))[..., None]
    mean = np.abs(found - expected).mean()
    assert mean < 8, "colours of a palette are coarse"
    measured(f"read, {mean:.2f} of 255 levels from the picture in the mean")


@pytest.mark.parametrize(("name", "why"), [
    ("empty.jpg", "not an image that Pillow can read"),
    ("cut.jpg", "truncated"),
    ("page.jpg", "not an image that Pillow can read"),
    ("bomb.png", "decompression bomb"),
])  # fmt: skip
def test_bad_files_are_named(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"{name}: .*{why}"):
        pixel_cache.square(pictures.bad_files()[name], 32, Path(name))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_verify_lists_path_and_reason_of_every_bad_file_and_of_no_other(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    ws = project(tmp_path, each=300, unreadable="skip")
    inside = tmp_path / "photos/class 1"
    for name, content in (*BAD.items(), *ODD.items()):
        (inside / name).write_bytes(content)
    for prepared in (False, True):
        if prepared:
            prepare.prepare(ws, "photos", **QUIET)
        done = call("uotft", "data", "verify", "photos", cwd=tmp_path)
        assert done.returncode == 1
        *lines, last = done.stdout.splitlines()
        said = dict(line.split(": ", 1) for line in lines)
        assert said.keys() == {str(inside / name) for name in BAD}
        assert all(why in said[str(inside / name)] for name, why in REASONS.items())
        assert last.endswith(f"; {len(BAD)} wrong")
    measured(f"{len(BAD)} of {len(BAD)} bad kinds listed, 0 of {len(ODD)} odd ones")


# ---- transparency, and 16 bits of grey


def test_drawings_in_the_alpha_channel_are_seen_and_the_setting_is_not_forgotten(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """By default on white; pixels prepared on another background are refused, and made anew."""
    ws = project(tmp_path, each=4)
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    for number, path in enumerate(paths):
        pictures.stencil(number).save(path)
    prepare.prepare(ws, "photos", **QUIET)
    seen = readers.images(ws, "photos").images[:]
    assert len(np.unique(seen.reshape(len(seen), -1), axis=0)) == len(paths) == 12

    changed = tiny_params() | {"source": "photos", "targets": ["photos"]}
    changed["datasets"] = {"photos": {**ws.params.datasets["photos"], "background": "black"}}
    write_params(tmp_path, changed)
    with pytest.raises(UserError, match=r"prepared with other settings .*\(background\)"):
        readers.images(workspace(tmp_path), "photos")
    prepare.prepare(workspace(tmp_path), "photos", **QUIET)
    assert not readers.images(workspace(tmp_path), "photos").images[:].any()
    measured("12 of 12 drawings differ; none is left of another background")


def test_twelve_bits_in_sixteen_are_said_before_anything_is_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ws = project(tmp_path, each=4)
    for path in sorted((tmp_path / "photos").rglob("*.png")):
        levels = np.asarray(Image.open(path).convert("L"), np.uint16) * 16
        levels[0, 0] = 4080
        Image.fromarray(levels).save(path)
    prepare.prepare(ws, "photos", **QUIET)
    [note] = storage.read_json(ws.data("photos").with_suffix(".json"))["notes"]
    assert f"photos: {note}" in caplog.messages
    assert "12 of 12 pictures" in note
    assert "16-bit files is 4080: `white: 4095` in datasets.photos" in note


# ---- the policy


def test_labels_stay_with_their_images(
    tmp_path: Path, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """A class is a colour: every image that is left looks like its label."""
    count, seen = trials(1, 10), 0
    for trial in range(count):
        ws = project(tmp_path / str(trial), unreadable="skip")
        bad = spoil(ws, np.random.default_rng(trial), 6)
        prepare.prepare(ws, "photos", **QUIET)
        images = readers.images(ws, "photos")
        rows = np.flatnonzero(images.splits != "unreadable")
        paths = [str(images.files.path(row)) for row in images.rows("unreadable")]
        assert sorted(paths) == sorted(bad)
        colours = images.images[rows].mean((1, 2))
        labels = images.labels[rows]
        means = np.array([colours[labels == c].mean(0) for c in range(3)])
        nearest = np.square(colours[:, None] - means).sum(2).argmin(1)
        assert (nearest == labels).all()
        for row in rows:
            assert images.files.path(row).parent.name == images.names[images.labels[row]]
        for part in ("train", "val", "test"):
            assert not set(images.rows(part)) & set(images.rows("unreadable"))
        summary = storage.read_json(ws.data("photos").with_suffix(".json"))
        assert summary["images"]["unreadable"] == len(summary["unreadable"]) == 6
        short = [str(Path(path).relative_to(ws.root / "photos")) for path in bad]
        assert all(any(line.startswith(f"{p}: ") for line in summary["unreadable"]) for p in short)
        assert job._left_out(ws, "photos") == {"unreadable.photos": "6"}
        seen += len(rows)
        shutil.rmtree(ws.root)
    measured(f"{seen} of {seen} images left have their own label, {6 * count} left out")


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_the_policy_and_the_one_percent(tmp_path: Path, policy: str) -> None:
    """Six of 600 are one percent: an error by default, left out on request; a seventh never is."""
    ws = project(tmp_path, unreadable=policy)
    bad = spoil(ws, np.random.default_rng(0), 6 if policy == "error" else 7)
    with pytest.raises(UserError, match=f"{len(bad)} of 600 image files cannot be read") as caught:
        prepare.prepare(ws, "photos", **QUIET)
    named = [line.strip() for line in str(caught.value).split("\n")[1:]]
    assert sum(any(line.startswith(f"{path}: ") for path in bad) for line in named) == 5
    assert named[-1] == f"and {len(bad) - 5} more"
    assert not ws.data("photos").exists()


def test_the_run_counts_them(tmp_path: Path, trials: Callable[[int, int], int]) -> None:
    """By the real command, its worker and its MLflow run; then a file turns bad."""
    if not trials(0, 1):
        pytest.skip("a whole pre-training with MLflow: with make faults")
    ws = project(tmp_path, unreadable="skip")
    spoil(ws, np.random.default_rng(0), 6)
    prepare.prepare(ws, "photos", **QUIET)
    done = call("uotft", "pretrain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [run] = runs(tmp_path, "photos")
    assert run.data.tags["unreadable.photos"] == "6"
    shutil.rmtree(tmp_path / "cache")
    path = readers.images(ws, "photos").files.path(readers.images(ws, "photos").rows("train")[0])
    path.write_bytes(BAD["cut.jpg"])
    done = call("uotft", "pretrain", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"{path}: it changed since `uotft prepare` read it" in done.stderr


@pytest.mark.parametrize("kind", [*BAD, "gone", "other"])
def test_a_file_that_turns_bad_after_prepare_is_named_by_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of a data set too large to keep whole, which training decodes."""
    monkeypatch.setattr(pixel_cache, "WHOLE", 0)
    ws = project(tmp_path, each=20)
    prepare.prepare(ws, "photos", **QUIET)
    images = readers.images(ws, "photos")
    path = images.files.path(images.rows("train")[7])
    path.write_bytes({**BAD, "other": ODD["plain.png"]}.get(kind, b""))
    why = "it changed since `uotft prepare` read it"
    if kind == "gone":
        path.unlink()
        why = "No such file or directory"
    with pytest.raises(UserError) as caught:
        pretrain.pretrain(ws, Context(runtime.start(0, 1), log=lambda *_: None, **QUIET))
    assert str(caught.value).startswith(f"{path}: {why}; put the file back, or run `uotft prepare`")
    assert not ws.pretrained().exists()


# ---- what stood in other files


def hundreds(root: Path, bad: int, **view: object) -> object:
    """200 files of one class, the first ``bad`` of them no pictures."""
    good = pictures.encoded(pictures.scene(0))
    contents = {f"{i:03}.png": b"<html>" if i < bad else good for i in range(200)}
    return pictures.image_set(root, contents, **SMALL, **view)


def test_bad_files_are_an_error_that_names_five(tmp_path: Path) -> None:
    images = hundreds(tmp_path, 7)
    with pytest.raises(UserError) as caught:
        files.without(images, {row: f"{row}.png: why" for row in range(7)})
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("7 of 200 image files cannot be read; unreadable: skip in")
    assert [line.strip() for line in lines[1:]] == [
        *(f"{row}.png: why" for row in range(5)), "and 2 more"
    ]  # fmt: skip


def test_bad_files_are_left_out_up_to_one_percent(tmp_path: Path) -> None:
    images = hundreds(tmp_path, 2, unreadable="skip")
    bad = {0: "0.png: why", 1: "1.png: why"}
    left = files.without(images, bad)
    assert left.rows("unreadable").tolist() == [0, 1]
    assert left.rows("train").tolist() == [*range(2, 200)]
    assert left.labels is images.labels
    with pytest.raises(UserError, match="3 of 200"):
        files.without(images, {**bad, 2: "2.png: why"})


def test_a_class_must_not_lose_its_last_training_image(tmp_path: Path) -> None:
    tree(tmp_path, *many("", "a", 150), *many("", "b", 1))
    images = load(tmp_path, unreadable="skip")
    row = int(np.flatnonzero(images.labels == 1)[0])
    with pytest.raises(UserError, match="class 'b' has no training image"):
        files.without(images, {row: "why"})


def test_filling_says_which_rows_are_bad_and_keeps_the_others(tmp_path: Path) -> None:
    contents = {**pictures.bad_files(), **pictures.odd_files()}
    store = pictures.kept(pictures.image_set(tmp_path, contents, **SIDE), tmp_path / "s").images
    bad = store.fill(np.arange(len(contents)))
    assert [Path(why.split(": ")[0]).name for why in bad.values()] == [*pictures.bad_files()]
    assert store.there.tolist() == [row not in bad for row in range(len(contents))]
    good = pixel_cache.square(contents["plain.png"], 32, Path("a"))
    assert np.array_equal(store[[4]][0], good), "rows keep their places"


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_file_that_changed_since_it_was_prepared_is_named(tmp_path: Path, change: str) -> None:
    store = pictures.scenes(tmp_path, 3, **SIDE).images
    path = tmp_path / "pictures/001.png"
    path.write_bytes(pictures.encoded(pictures.scene(9))) if change == "other" else path.unlink()
    assert store[[0, 2]].any()
    with pytest.raises(UserError, match=r"001\.png: .*(changed|No such file).*prepare"):
        store[[0, 1]]
