"""WebDataset shards: found, indexed, read in place, refused, and written."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap, up_to_units
from uotft.core import config, storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell, ImageSet
from uotft.data import shards
from uotft.pipeline import data_export, embed, overlap, prepare, readers, select, train, units
from uotft.training import runtime

CLASSES = ("cat", "dog", "owl")
VIEW = {"stored": 16, "size": 16, "share": 1.0}


def quiet(items, label="", **_):  # noqa: ANN001, ANN201
    return items


def pictures(per_class: int = 10, side: int = 20) -> list[tuple[str, str, bytes]]:
    """(class, name, PNG) of random pictures, class by class."""
    rng, made = np.random.default_rng(0), []
    for name in CLASSES:
        for i in range(per_class):
            content = io.BytesIO()
            pixels = rng.integers(0, 255, (side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(content, "PNG")
            made.append((name, f"{i:03d}", content.getvalue()))
    return made


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar as other tools make it: with folders, times and owners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        folder = tarfile.TarInfo("data.d")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size, about.mtime, about.uname = len(content), 1_700_000_000, "me"
            file.addfile(about, io.BytesIO(content))
    return path


def shard_set(folder: Path, samples: list[tuple[str, str, bytes]] | None = None) -> None:
    """Two shards, the numbers of the classes beside each picture, before or after it."""
    samples = samples or pictures()
    members = []
    for i, (name, stem, content) in enumerate(samples):
        two = [(f"{name}/{stem}.PNG", content), (f"{name}/{stem}.cls", b"%d" % CLASSES.index(name))]
        members.append(two[:: -1 if i % 2 else 1])
    half = len(members) // 2
    for i, part in enumerate((members[:half], members[half:])):
        tar(folder / f"part-{i:03d}.tar", [member for sample in part for member in sample])


def loaded(**settings: object) -> ImageSet:
    module, checked = config.dataset_section({"kind": "shards", **VIEW, **settings}, "test")
    return module.load(checked, quiet)


def test_braces() -> None:
    assert shards.expand("a.tar") == ["a.tar"]
    assert shards.expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert shards.expand("{0..1}/{1..2}") == ["0/1", "0/2", "1/1", "1/2"]


@pytest.mark.parametrize("tars", ["*.tar", "part-{000..001}.tar"])
def test_every_picture_is_found_at_its_place(tmp_path: Path, tars: str) -> None:
    shard_set(tmp_path)
    images, expected = loaded(path=str(tmp_path), train_tars=tars), pictures()
    assert images.files is not None
    assert [images.files.content(row) for row in range(30)] == [p[2] for p in expected]
    assert images.labels.tolist() == [CLASSES.index(p[0]) for p in expected]
    assert images.names == ("0", "1", "2")
    assert images.files.path(0) == tmp_path / "part-000.tar/cat/000.PNG"
    assert images.files.sizes.tolist() == [[20, 24]] * 30
    counts = [len(images.rows(part)) for part in ("train", "val", "test")]
    assert counts == [18, 6, 6]


def test_shards_are_the_same_data_set_as_a_folder(tmp_path: Path) -> None:
    """Columns, parts, views and so everything that is made of them."""
    folder = tmp_path / "folder"
    for name, stem, content in pictures():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{stem}.png").write_bytes(content)
    shard_set(tmp_path / "shards")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    params = tiny_params()
    params["datasets"] |= {
        "plain": {"kind": "folder", "path": str(folder), **VIEW},
        "web": {"kind": "shards", "path": str(tmp_path / "shards"),
                "names": str(tmp_path / "names.txt"), **VIEW},
    }  # fmt: skip
    write_params(tmp_path, params)
    ws = workspace(tmp_path)
    made = []
    for name in ("plain", "web"):
        assert "3 classes" in prepare.prepare(ws, name, progress=quiet)
        made.append(readers.images(ws, name))
    for column in ("labels", "splits", "names"):
        assert np.array_equal(getattr(made[0], column), getattr(made[1], column)), column
    for column in ("bytes", "sha256", "sizes"):
        assert np.array_equal(*(getattr(images.files, column) for images in made)), column
    assert np.array_equal(made[0].images[:], made[1].images[:])


def test_labels_are_read_as_the_section_says(tmp_path: Path) -> None:
    members = []
    for i, (_, _, content) in enumerate(pictures(4)):
        name = CLASSES[i % 3]
        about = json.dumps({"class": {"cat": 10, "dog": 9, "owl": 100}[name]}).encode()
        members += [(f"{i}.png", content), (f"{i}.txt", f"{name}\n".encode()), (f"{i}.json", about)]
    path = str(tar(tmp_path / "a.tar", members).parent)
    by_name = loaded(path=path, label="txt")
    assert by_name.names == CLASSES
    by_number = loaded(path=path, label="json.class", test=0.0)
    assert by_number.names == ("9", "10", "100"), "in the order of numbers"
    assert by_number.labels.tolist() == [1, 0, 2] * 4
    assert not len(by_number.rows("test"))


def test_parts_of_their_own(tmp_path: Path) -> None:
    samples = pictures()
    samples = samples[::2] + samples[1::2]
    shard_set(tmp_path, samples)
    images = loaded(path=str(tmp_path), val_tars="part-001.tar", test=0.0)
    assert [len(images.rows(s)) for s in ("train", "val", "test")] == [15, 15, 0]
    assert images.files is not None
    contents = [images.files.content(row) for row in images.rows("val").tolist()]
    assert contents == [content for _, _, content in samples[15:]]


def no_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 512 * 512])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def damaged(path: Path) -> None:
    """A header in the middle, of which another byte no longer fits its checksum."""
    with tarfile.open(path) as file:
        offset = file.getmembers()[5].offset
    content = bytearray(path.read_bytes())
    content[offset + 2] ^= 255
    path.write_bytes(content)


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def not_a_tar(path: Path) -> None:
    path.write_bytes(b"<html>no such file</html>" * 100)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_end, r"part-001\.tar: .*damaged or cut off"),
        (cut, r"part-001\.tar: .*damaged or cut off"),
        (damaged, r"part-001\.tar: damaged or cut off at byte \d+: fetch it again"),
        (packed, r"part-001\.tar: compressed \(gzip\).*remove the compression first"),
        (not_a_tar, r"part-001\.tar: not a tar file, or damaged"),
        (Path.unlink, r"no such file: part-001\.tar, of 2 named"),
    ],
)
def test_harmed_shards_are_refused(tmp_path: Path, harm, message: str) -> None:  # noqa: ANN001
    shard_set(tmp_path)
    harm(tmp_path / "part-001.tar")
    with pytest.raises(UserError, match=message):
        loaded(path=str(tmp_path), train_tars="part-{000..001}.tar")


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        ([("a.png", b""), ("b.cls", b"0")], {}, r"a member a\.cls, but has png"),
        ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"0")], {}, "one picture and a member a"),
        ([("a.cls", b"0")], {}, r"no picture, such as KEY\.jpg"),
        ([("a.png", b""), ("a.cls", b" ")], {}, r"label of a\.png is ''; it must be a number"),
        ([("a.png", b""), ("a.json", b"[]")], {"label": "json.c"}, r"a\.png has no c \(TypeError"),
        ([("a.png", b""), ("a.cls", b"7")], {"names": "no.txt"}, r"no\.txt: it lacks a line"),
        (
            [("a.png", b""), ("a.cls", b"7")],
            {"names": __file__, "val_tars": "a.tar"},
            "class '7' has no training image",
        ),
    ],
)
def test_samples_that_do_not_fit(
    tmp_path: Path, members: list, settings: dict, message: str
) -> None:
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        loaded(path=str(path.parent), **settings)


def dotted(*names: str) -> list[tuple[str, bytes]]:
    """Members; each picture another one, each label 0 or 1 in turn."""
    made = iter(pictures(len(names))[: len(names)])
    label, members = 0, []
    for name in names:
        is_picture = name.lower().endswith(("jpg", "png"))
        members.append((name, next(made)[2] if is_picture else b"%d" % (label := 1 - label)))
    return members


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["v_1.5s.jpg", "v_1.5s.cls", "v_2.jpg", "v_2.cls"], ["v_1.5s.jpg", "v_2.jpg"]),
        (["v.1.jpg", "v.1.cls", "v.2.jpg", "v.2.cls"], ["v.1.jpg", "v.2.jpg"]),  # one KEY for all
        (["a.left.jpg", "a.cls", "b.jpg", "b.cls"], ["a.left.jpg", "b.jpg"]),
        (["a.jpg", "a.mask.png", "a.cls", "b.jpg", "b.cls"], ["a.jpg", "b.jpg"]),
        (["d.d/a.x.y.PNG", "d.d/a.x.y.CLS", "b.jpg", "b.cls"], ["d.d/a.x.y.PNG", "b.jpg"]),
    ],
)
def test_keys_with_dots_are_samples(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    tar(tmp_path / "a.tar", dotted(*names))
    images = loaded(path=str(tmp_path), test=0.0, val=0.0)
    assert images.files is not None
    assert [os.fsdecode(path) for path in images.files.paths] == expected
    assert images.labels.tolist() == [1, 0]
    mask = (
        "further pictures of a sample, without a label of their own in the tar files: 1, left out"
    )
    assert images.notes == ((mask,) if "a.mask.png" in names else ())


@pytest.mark.parametrize(
    "names",
    [
        ["a.left.jpg", "a.right.jpg", "a.cls"],
        ["a.1.jpg", "a.1.cls", "a.2.jpg"],
        ["a.1.jpg", "a.1.png", "a.1.cls"],
        ["a.5s.jpg", "a.5s.txt"],
    ],
)
def test_pictures_without_a_certain_label_are_refused(tmp_path: Path, names: list[str]) -> None:
    tar(tmp_path / "a.tar", dotted(*names))
    with pytest.raises(UserError, match=r"needs one picture and a member a\.cls, but"):
        loaded(path=str(tmp_path), test=0.0)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    """Mac files between the members of a sample part nothing."""
    names = ["._a.jpg", "a.jpg", "._a.cls", "a.cls", "b.cls", "c.txt", "LICENCE"]
    tar(tmp_path / "a.tar", dotted(*names))
    images = loaded(path=str(tmp_path), test=0.0, val=0.0)
    assert len(images.labels) == 1
    assert images.notes == (
        "hidden files and files without an ending in the tar files: 3, left out",
        "samples without a picture in the tar files: 2, left out",
    )


def test_a_sample_twice_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", dotted("a.jpg", "a.cls", "a.jpg", "a.cls"))
    with pytest.raises(UserError, match="members of the sample a have the same name"):
        loaded(path=str(tmp_path), test=0.0)


def test_tars_that_are_named_after_tests_are_not_trained_on(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", dotted("a.jpg", "a.cls"))
    tar(tmp_path / "Test_0.tar", [("b.png", pictures(2)[1][2]), ("b.cls", b"1")])
    with pytest.raises(UserError, match=r"Test_0\.tar would be trained on, .* set test_tars"):
        loaded(path=str(tmp_path), val=0.0)
    images = loaded(path=str(tmp_path), val=0.0, test_tars="Test*.tar")
    assert [len(images.rows(part)) for part in ("train", "test")] == [1, 1]


@pytest.mark.parametrize("name", ["web-validation-000.tar", "web1k_val2017.tar"])
def test_a_part_may_stand_anywhere_in_the_name(tmp_path: Path, name: str) -> None:
    tar(tmp_path / "web-train-000.tar", dotted("a.jpg", "a.cls"))
    tar(tmp_path / name, [("b.png", pictures(2)[1][2]), ("b.cls", b"1")])
    with pytest.raises(UserError, match=r"would be trained on, and its name says val: set val_"):
        loaded(path=str(tmp_path), val=0.0)


def test_lines_of_class_names(tmp_path: Path) -> None:
    """With a mark at the start, line ends of Windows, and characters that other readers cut at."""
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufefftench\r\na\x0bb\x85c\u2028d\r\nshark\r\n".encode())
    assert shards.named(["2", "0", "1"], path) == ("shark", "tench", "a\x0bb\x85c\u2028d")
    for label in ("-1", "3", "shark"):
        with pytest.raises(UserError, match=f"lacks a line for a label .'{label}': .* 0 to 2"):
            shards.named(["0", label], path)


def test_one_picture_in_two_shards_is_one_row(tmp_path: Path) -> None:
    members = dotted("a.jpg", "a.cls", "b.jpg", "b.cls")
    tar(tmp_path / "0.tar", members)
    tar(tmp_path / "1.tar", members)
    images = loaded(path=str(tmp_path), val=0.0, test=0.0)
    assert len(images.labels) == 2
    assert "byte for byte, of others there: 2 (1.tar/a.jpg = 0.tar/a.jpg)" in images.notes[0]


def test_addresses_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"https://x\.org/a: path must be a folder"):
        loaded(path="https://x.org/a")
    with pytest.raises(UserError, match="none: no such folder"):
        loaded(path=str(tmp_path / "none"))


def test_the_same_members_give_the_same_bytes() -> None:
    made = []
    for _ in range(2):
        file = io.BytesIO()
        shards.write(file, [("0.cls", b"1"), ("0.png", b"x" * 700)])
        made.append(file.getvalue())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as file:
        assert [(m.name, m.mtime, m.uid, m.size) for m in file] == [
            ("0.cls", 0, 0, 1), ("0.png", 0, 0, 700)]  # fmt: skip


def exported(root: Path, output: Path, per_shard: int = 7) -> str:
    """Select with uot, seed 0, and export."""
    ws = workspace(root)
    select.select(ws, Cell("digits", "uot", 0))
    return data_export.export_source(ws, "digits", "uot", 0, output, per_shard, progress=quiet)


def test_an_export_holds_what_training_reuses(fresh: Path, tmp_path: Path) -> None:
    """Pixels, classes and order; a test image that is in the source is left out."""
    output, ws = tmp_path / "out", workspace(fresh)
    source, target = readers.images(ws, "glyphs"), readers.images(ws, "digits")
    planted = int(source.rows("train")[3])
    source.images[planted] = target.images[target.rows("test")[0]]
    storage.write_images(ws.data("glyphs"), source)
    embed.embed(ws, "glyphs", Context(runtime.start(0, 1), progress=quiet))
    units.units(ws)
    find_overlap(fresh)
    line = exported(fresh, output)
    chosen = readers.read_selection(ws, Cell("digits", "uot", 0))
    part = readers.source_part(ws, np.array([c["row"] for c in chosen["classes"]]))
    rows = np.sort(part.rows[part.rows != planted])
    assert f"{len(rows)} images of 5 classes in {-(-len(rows) // 7)} tar files" in line
    assert (output / "classes.txt").read_text().split("\n")[:-1] == list(part.names)
    back = loaded(path=str(output), names=str(output / "classes.txt"), val=0.0, test=0.0)
    assert back.files is not None
    names = [back.names[label] for label in back.labels]
    assert names == [source.names[label] for label in source.labels[rows]]
    for row, i in zip(rows.tolist(), range(len(rows)), strict=True):
        with Image.open(io.BytesIO(back.files.content(i))) as picture:
            assert np.array_equal(np.asarray(picture), source.images[row])
    again = tmp_path / "again"
    exported(fresh, again)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }
    with pytest.raises(UserError, match="already there, and not empty; name a new one"):
        exported(fresh, output)


def test_nothing_kept_is_nothing_to_export(fresh: Path, tmp_path: Path) -> None:
    ws = workspace(fresh)
    select.select(ws, Cell("digits", "none", 0))
    with pytest.raises(UserError, match="'none' keeps no class, so there is nothing to export"):
        data_export.export_source(ws, "digits", "none", 0, tmp_path / "x", 10, progress=quiet)
    assert not (tmp_path / "x").exists()


def test_shards_as_source_from_pretraining_to_an_export(tmp_path: Path) -> None:
    """The bytes of the files go out as they came; test images of the target are found in them."""
    samples = pictures()
    shard_set(tmp_path / "web", samples)
    folder = tmp_path / "birds"
    for name, stem, content in pictures(8)[::-1]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{stem}.png").write_bytes(content)
    params = tiny_params() | {"source": "web", "targets": ["birds"], "subset": {}, "seeds": [0]}
    params["datasets"] = {
        "web": {"kind": "shards", "path": str(tmp_path / "web"), "test": 0.0, **VIEW},
        "birds": {"kind": "folder", "path": str(folder), **VIEW},
    }
    params["select"]["top_k"] = 2
    write_params(tmp_path, params)
    ws, main = workspace(tmp_path), {"log": lambda *_: None, "progress": quiet}
    up_to_units(tmp_path)
    for strategy in ("uot", "all"):
        select.select(ws, Cell("birds", strategy, 0))
    found = overlap.overlap(
        "web", "birds", ws.overlap("birds"), progress=quiet, workspace=lambda: ws
    )
    assert found["counts"]["bytes"] > 0
    train.train(ws, Cell("birds", "uot", 0), Context(runtime.start(0, 1), **main))
    facts = storage.read_json(ws.cell("models", Cell("birds", "uot", 0)) / "model.json")
    assert facts["overlap"]["excluded"] > 0
    data_export.export_source(ws, "birds", "uot", 0, tmp_path / "out", 100, progress=quiet)
    back = loaded(path=str(tmp_path / "out"), val=0.0, test=0.0)
    assert back.files is not None
    contents = {back.files.content(row) for row in range(len(back.labels))}
    assert contents < {content for _, _, content in samples}
    source = readers.images(ws, "web")
    tested = readers.images(ws, "birds")
    assert source.files is not None
    assert tested.files is not None
    secret = {tested.files.content(row) for row in tested.rows("test").tolist()}
    assert not contents & secret

    row = int(readers.source_part(ws, np.arange(3)).rows[-1])
    with source.files.path(row).parents[1].open("r+b") as file:
        file.seek(int(source.files.offsets[row]) + 50)
        file.write(b"x")
    with pytest.raises(UserError, match=r"\.PNG: it changed since `uotft prepare` read it"):
        data_export.export_source(ws, "birds", "all", 0, tmp_path / "all", 4, progress=quiet)
    assert not [path for path in tmp_path.iterdir() if "all" in path.name], "nothing is left"
