"""`uotft data list, prepare, verify, show` as a user calls them, on files that go wrong."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from support import dataset_archives as official
from support.commands import answer, call
from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.data import archives
from uotft.pipeline import datasets, fetch, prepare, readers


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def encoded(picture: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def huge() -> bytes:
    """A PNG of 30,000 x 30,000 pixels by its head, and a few bytes of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


GREY, RED = Image.new("L", (9, 7), 128), Image.new("RGB", (9, 7), (200, 0, 0))
TURNED = Image.Exif()
TURNED[0x0112] = 6
GOOD = {
    "cmyk.jpg": encoded(RED.convert("CMYK"), "JPEG"),
    "sixteen.png": encoded(Image.new("I;16", (9, 7), 30_000), "PNG"),
    "moving.gif": encoded(GREY, "GIF", save_all=True, append_images=[RED.convert("L")]),
    "palette.png": encoded(RED.convert("P"), "PNG", transparency=0),
    "pixel.png": encoded(RED.resize((1, 1)), "PNG"),
    "turned.jpg": encoded(RED, "JPEG", exif=TURNED),
    "named.png": encoded(RED, "JPEG"),
}
BAD = {
    "empty.jpg": (b"", "not an image"),
    "page.jpg": (b"<html>404</html>", "not an image"),
    "half.jpg": (encoded(RED.resize((300, 300)), "JPEG")[:1500], "truncated"),
    "huge.png": (huge(), "900000000 pixels"),
}


def write(root: Path, members: dict[str, bytes], **settings: object) -> None:
    """The data set birds: 40 good files in two classes, and ``members`` in the class lark."""
    params = tiny_params()
    params["datasets"]["birds"] = {
        "kind": "folder", "path": "photos", "stored": 16, "size": 16, **settings
    }  # fmt: skip
    write_params(root, params)
    for i in range(40):
        path = root / "photos" / ("lark", "wren")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (9, 7), (i, 6 * i, 9)), "JPEG", quality=100))
    for name, content in members.items():
        (root / "photos" / "lark" / name).write_bytes(content)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """A prepared set of good files, some of them unusual."""
    write(tmp_path, GOOD)
    prepare.prepare(workspace(tmp_path), "birds", progress=quiet)
    return tmp_path


def verify(root: Path) -> dict[str, str]:
    """{file: what is wrong with it}."""
    _, bad = datasets.verify(workspace(root), "birds", quiet)
    states = (line.removeprefix(f"{root}/photos/").partition(": ") for line in bad)
    return {name: why for name, _, why in states}


def test_unusual_files_are_good_files(birds: Path) -> None:
    assert verify(birds) == {}
    images = readers.images(workspace(birds), "birds")
    assert images.files is not None
    row = images.files.paths.tolist().index(b"lark/turned.jpg")
    assert images.files.sizes[row].tolist() == [9, 7], "its EXIF mark says that it lies on a side"


def test_everything_that_happens_to_files_is_found(birds: Path) -> None:
    photos = birds / "photos"
    content = bytearray((photos / "wren/01.jpg").read_bytes())
    content[len(content) // 2] ^= 1
    (photos / "wren/01.jpg").write_bytes(content)
    (photos / "wren/03.jpg").unlink()
    (photos / "wren/05.jpg").unlink()
    (photos / "wren/05.jpg").mkdir()
    (photos / "lark/new.jpg").write_bytes(encoded(GREY, "JPEG"))
    assert verify(birds) == {
        "wren/01.jpg": "changed",
        "wren/03.jpg": "missing",
        "wren/05.jpg": "unreadable (Is a directory)",
        "lark/new.jpg": "added",
    }


def test_a_folder_that_would_be_refused_now_is_one_of_the_things(birds: Path) -> None:
    (birds / "photos/lark").rename(birds / "photos/test")
    (birds / "photos/train").mkdir()
    (birds / "photos/wren").rename(birds / "photos/train/wren")
    summary, bad = datasets.verify(workspace(birds), "birds", quiet)
    assert summary == "birds: 47 files hashed"
    assert sum(line.endswith(": missing") for line in bad) == 47
    assert "all images (20) are of one class, 'wren'" in bad[-1]


def test_the_command_says_it_with_its_exit_code(birds: Path) -> None:
    done = call("uotft", "data", "verify", "birds", cwd=birds)
    assert (done.returncode, done.stdout) == (
        0,
        "birds: 47 files hashed; 0 wrong\n",
    )
    (birds / "photos/wren/01.jpg").unlink()
    done = call("uotft", "data", "verify", "birds", cwd=birds)
    assert done.returncode == 1
    assert done.stdout.split("\n")[:2] == [
        f"{birds}/photos/wren/01.jpg: missing",
        "birds: 47 files hashed; 1 wrong",
    ]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_before_and_after_preparing(tmp_path: Path, name: str) -> None:
    content, why = BAD[name]
    write(tmp_path, {name: content})
    with pytest.raises(UserError, match=f"(?s)1 of 41 image files cannot be read.*lark/{name}"):
        prepare.prepare(workspace(tmp_path), "birds", progress=quiet)
    assert list(verify(tmp_path)) == [f"lark/{name}"]
    assert why in verify(tmp_path)[f"lark/{name}"]
    more = {f"{i:03d}.png": encoded(Image.new("L", (9, 7), i), "PNG") for i in range(60)}
    write(tmp_path, more, unreadable="skip")
    prepare.prepare(workspace(tmp_path), "birds", progress=quiet)
    assert list(verify(tmp_path)) == [f"lark/{name}"], "left out, and still not as it should be"


def test_a_set_that_moved(birds: Path) -> None:
    (birds / "photos").rename(birds / "pictures")
    params = yaml.safe_load((birds / "params.yaml").read_text())
    params["datasets"]["birds"]["path"] = "pictures"
    write_params(birds, params)
    assert verify(birds) == {}, "its section says where it is now"
    (birds / "pictures/lark/cmyk.jpg").unlink()
    assert verify(birds) == {f"{birds}/pictures/lark/cmyk.jpg": "missing"}


def test_what_dvc_keeps_is_compared_with_its_lock(birds: Path) -> None:
    md5 = archives.digest(birds / "data/birds.npz", "md5")
    kept = birds / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    lock = {"stages": {"prepare@birds": {"outs": [{"path": "data/birds.npz", "md5": md5}]}}}
    (birds / "dvc.lock").write_text(yaml.safe_dump(lock))
    kept.parent.mkdir(parents=True)
    kept.write_bytes((birds / "data/birds.npz").read_bytes())
    assert verify(birds) == {}
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    copy = "DVC's copy of data/birds.npz; "
    assert verify(birds)[str(kept)] == f"changed, {copy}delete it, then dvc commit"
    kept.unlink()
    assert verify(birds)[str(kept)] == f"missing, {copy}dvc commit makes it"
    lock["stages"]["prepare@birds"]["outs"][0]["md5"] = "0" * 32
    (birds / "dvc.lock").write_text(yaml.safe_dump(lock))
    found = verify(birds)
    assert found[str(birds / "data/birds.npz")] == "not the version in dvc.lock"
    # dvc commit would write the wrong file into dvc.lock
    then = f"missing, {copy}delete both, then dvc pull, or dvc repro -f -s prepare@birds"
    assert found[str(birds / ".dvc/cache/files/md5/00" / ("0" * 30))] == then


def test_an_archive_that_rots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = official.dtd()
    monkeypatch.setattr(
        registry.load("datasets", "dtd", ""), "CARD", official.card("dtd", contents)
    )
    path = tmp_path / "downloads/dtd/dtd-r1.0.1.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(contents[path.name])
    write_params(tmp_path, tiny_params())
    ws = workspace(tmp_path)
    prepare.prepare(ws, "dtd", progress=quiet)
    summary, bad = datasets.verify(ws, "dtd", quiet)
    assert (summary, bad) == ("dtd: 27 files hashed, dtd-r1.0.1.tar.gz", [])
    path.write_bytes(bytes(len(contents[path.name])))
    assert "its checksum is" in datasets.verify(ws, "dtd", quiet)[1][0]


def test_list(birds: Path) -> None:
    rows = {row[0]: dict(zip(datasets.listing(workspace(birds))[0], row, strict=True))
            for row in datasets.listing(workspace(birds))[1:]}  # fmt: skip
    assert set(rows) == {*official.NAMES, "glyphs", "digits", "birds"}
    assert rows["pets"]["metric"] == "mean per class"
    assert rows["sun"]["archives"] == "36.4 GiB"
    assert rows["cars"]["state"] == "to be fetched by hand"
    assert rows["dogs"]["state"] == "to be downloaded"
    assert rows["glyphs"]["state"] == "made here"
    assert rows["birds"]["state"] == "prepared"
    assert rows["birds"]["classes"] == "2"


def test_show(birds: Path) -> None:
    output = birds / "sheet.png"
    done = call("uotft", "data", "show", "birds", "--output", str(output), cwd=birds)
    assert done.returncode == 0, done.stderr
    with Image.open(output) as sheet:
        seen = {colour for _, colour in sheet.convert("RGB").getcolors(2**20)}
    assert any(r < 40 and g > 40 and b < 25 for r, g, b in seen), "the green of a lark"


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet.pdf"])
def test_a_sheet_is_a_png(birds: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: the sheet is a PNG: .* that ends in .png"):
        datasets.show(workspace(birds), "birds", birds / name, 3)
    assert not (birds / name).exists()


def test_show_before_prepare(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    with pytest.raises(UserError, match=r"digits\.npz is missing"):
        datasets.show(workspace(tmp_path), "digits", tmp_path / "sheet.png", 3)


def test_two_processes_do_not_fetch_one_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    contents = official.dtd()
    write_params(tmp_path, tiny_params())
    monkeypatch.setattr(
        registry.load("datasets", "dtd", ""), "CARD", official.card("dtd", contents, "http://x")
    )
    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / ".dtd.lock"), pytest.raises(UserError, match="another proc"):
        [*fetch.fetch(workspace(tmp_path), "dtd", None, quiet)]


def test_prepare_takes_a_set_without_a_section(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    done = answer("uotft", "data", "prepare", "imagenet", "--from", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "ILSVRC2012_img_train.tar, 147,897,477,120 bytes, MD5 1d675b47" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_dvc_sees_a_changed_image_and_nothing_else(tmp_path: Path) -> None:
    """The stage prepare of a project outside a clone, with the real DVC."""
    committed = yaml.safe_load((REPOSITORY / "src/uotft/presets/project/pipeline.yaml").read_text())
    write(tmp_path, {})
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["datasets"] = {
        "birds": params["datasets"]["birds"],
        "other": {**params["datasets"]["birds"], "path": "other.zip"},
    }
    params |= {"source": "other", "targets": ["birds"]}
    write_params(tmp_path, params)
    members = {
        f"{n}/{i}.jpg": official.picture(c, "train", i)
        for c, n in enumerate("ab")
        for i in range(4)
    }
    (tmp_path / "other.zip").write_bytes(official.zipped(members))
    stage = {"stages": {"prepare": committed["stages"]["prepare"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stage))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)

    def ran() -> set[str]:
        done = call("dvc", "repro", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return {line.split("'")[1] for line in done.stdout.split("\n") if "Running stage" in line}

    assert ran() == {"prepare@birds", "prepare@other"}
    assert ran() == set()
    (tmp_path / "photos/wren/01.jpg").write_bytes(GOOD["cmyk.jpg"])
    assert ran() == {"prepare@birds"}
    digest = storage.fingerprint(tmp_path / "photos/wren/01.jpg")
    files = readers.images(workspace(tmp_path), "birds").files
    assert files is not None
    assert digest in {row.tobytes().hex() for row in files.sha256}
    (tmp_path / "other.zip").write_bytes(official.zipped({**members, "a/5.jpg": GOOD["cmyk.jpg"]}))
    done = call("dvc", "status", "--json", cwd=tmp_path)
    assert set(json.loads(done.stdout)) == {"prepare@other"}
