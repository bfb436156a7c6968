"""The same image under another name, encoding or size; and what must not be taken for the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import call
from support.pictures import encoded, scene, stencil
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.data import overlap
from uotft.pipeline import overlap as overlap_stage


def save(path: Path, image: Image.Image, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def compare(root: Path, output: Path | None = None) -> dict:
    """The command's work on root/source and root/target, outside any project."""
    return overlap_stage.overlap(
        str(root / "source"),
        str(root / "target"),
        output,
        progress=lambda items, label: items,
    )


def one(root: Path) -> tuple[str, str, str]:
    """The only match: reason, target, source."""
    [match] = compare(root)["matches"]
    return match["reason"], match["target"], match["source"]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Five scenes in source/ and four others in target/: nothing in common."""
    for seed in range(5):
        save(tmp_path / f"source/class/{seed:04}.jpg", scene(seed), quality=90)
        save(tmp_path / f"target/bird/{seed:04}.jpg", scene(100 + seed), quality=90)
    return tmp_path


def test_nothing_found_though_names_are_equal(pair: Path) -> None:
    result = compare(pair)
    assert result["matches"] == []
    counts = {"bytes": 0, "stem": 0, "picture": 0, "target_images": 0, "source_images": 0}
    assert result["counts"] == counts
    assert [result[side]["images"] for side in ("source", "target")] == [5, 5]


def test_the_same_bytes_under_another_name(pair: Path) -> None:
    content = (pair / "source/class/0003.jpg").read_bytes()
    (pair / "target/bird/robin.jpg").write_bytes(content)
    assert one(pair) == ("bytes", "bird/robin.jpg", "class/0003.jpg")


@pytest.mark.parametrize("stem", ["n02085620_7", "ILSVRC2012_val_00000007"])
def test_an_imagenet_id_counts_alone(pair: Path, stem: str) -> None:
    save(pair / f"source/{stem}.JPEG", scene(50))
    save(pair / f"target/{stem}.jpg", scene(51))
    assert one(pair) == ("stem", f"{stem}.jpg", f"{stem}.JPEG")


def test_any_other_equal_stem_needs_an_agreeing_picture(pair: Path) -> None:
    """A crop that the hash misses: found under the same name, and under no other."""
    whole = scene(50, (200, 200))
    save(pair / "source/DSC_0417.png", whole)
    save(pair / "target/other.png", whole.crop((14, 12, 192, 190)))
    assert compare(pair)["matches"] == []
    (pair / "target/other.png").rename(pair / "target/DSC_0417.png")
    assert one(pair)[0] == "stem"


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encoded(image, "JPEG", quality=30),
        lambda image: encoded(image, "WEBP", quality=60),
        lambda image: encoded(image.resize((48, 36))),
        lambda image: encoded(image.resize((192, 144)), "JPEG", quality=80),
        lambda image: encoded(image.resize((700, 500)), "JPEG", quality=80),
        lambda image: encoded(image.convert("L")),
        lambda image: encoded(image.convert("RGBA")),
        lambda image: encoded(image.convert("CMYK"), "TIFF"),
        lambda image: encoded(image.quantize(64), transparency=bytes(range(192, 256))),
        lambda image: encoded(
            Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 200 + 900)
        ),
    ],
    ids="jpeg webp half twice large grey rgba cmyk palette 16-bit".split(),  # noqa: SIM905
)
def test_the_same_picture_in_another_file(
    pair: Path, change: Callable[[Image.Image], bytes]
) -> None:
    (pair / "target/bird/copy.png").write_bytes(change(scene(2)))
    assert one(pair) == ("picture", "bird/copy.png", "class/0002.jpg")


def test_a_drawing_in_the_alpha_channel_is_compared_as_it_looks(pair: Path) -> None:
    """Without a background all such drawings are black, and flat pictures match nothing."""
    logo = stencil(7)
    (pair / "target/bird/logo.png").write_bytes(encoded(logo))
    on_white = Image.alpha_composite(Image.new("RGBA", logo.size, "white"), logo)
    (pair / "source/class/drawing.jpg").write_bytes(encoded(on_white.convert("RGB"), "JPEG"))
    assert one(pair) == ("picture", "bird/logo.png", "class/drawing.jpg")


def test_flat_pictures_match_nothing(pair: Path) -> None:
    for side in ("source", "target"):
        for grey in (0, 128, 255):
            save(pair / side / f"{side}-{grey}.png", Image.new("RGB", (64, 64), (grey,) * 3))
            save(pair / side / f"blank-{grey}.tif", Image.new("I;16", (64, 64), grey * 100))
    assert compare(pair)["matches"] == []


def test_blocks_are_counted_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pictures than one block on both sides: rows and keys stay together."""
    pictures = [overlap.picture(scene(seed), seed, str(seed)) for seed in range(12)]
    twins = [overlap.picture(scene(seed), seed, f"other {seed}") for seed in range(12)]
    monkeypatch.setattr(overlap, "BLOCK", 5)
    matches = list(overlap.find(pictures, iter(twins)))
    assert [(m.target, m.source) for m in matches] == [(i, i) for i in range(12)]
    assert {(m.reason, m.distance, m.correlation) for m in matches} == {("picture", 0, 1.0)}


def test_only_train_and_test_are_read_where_there_are_any(pair: Path) -> None:
    for side, part in (("source", "train"), ("target", "test")):
        save(pair / side / part / "seen.png", scene(7))
        save(pair / side / "val" / "unseen.png", scene(8))
    assert one(pair) == ("bytes", "test/seen.png", "train/seen.png")
    assert compare(pair)["target"]["images"] == 1


def test_a_folder_is_read_as_prepare_reads_it(pair: Path, capfd: pytest.CaptureFixture) -> None:
    """Behind links, but without hidden and system files, which are counted."""
    save(pair / "elsewhere/copy.png", scene(3))
    (pair / "target/linked").symlink_to(pair / "elsewhere")
    for name in (".thumbnails/1.png", "__MACOSX/2.png", "bird/._3.png"):
        save(pair / "target" / name, scene(1))
    assert one(pair)[1] == "linked/copy.png"
    assert compare(pair)["target"]["images"] == 6
    said = capfd.readouterr().err
    assert f"{pair}/target: left out 3 hidden or system files" in said


@pytest.mark.parametrize(
    ("train", "test"),
    [("birds_train", "birds_test"), ("CUB/train", "CUB/Testing"), ("1_train", "2_test")],
)
def test_parts_are_those_that_prepare_reads(pair: Path, train: str, test: str) -> None:
    for label in ("owl", "wren"):
        for place, seed in ((train, 7), (test, 8)):
            save(pair / "own" / place / label / "0.png", scene(seed + len(label)))
    found = overlap_stage.within(str(pair / "own"), progress=lambda items, label: items)
    assert [found[side]["images"] for side in ("source", "target")] == [2, 2]
    for side in ("source", "target"):
        (pair / side).rename(pair / f"old {side}")
    (pair / "own").rename(pair / "target")
    (pair / "old source").rename(pair / "source")
    found = compare(pair)
    assert [found[side]["part"] for side in ("source", "target")] == ["all of the folder", "test"]
    assert found["target"]["images"] == 2


def test_a_part_may_be_a_link_to_another_place(pair: Path) -> None:
    save(pair / "elsewhere/bird/copy.png", scene(3))
    (pair / "target/test").symlink_to(pair / "elsewhere")
    assert one(pair)[1] == "test/bird/copy.png"
    assert compare(pair)["target"]["images"] == 1


def test_unreadable_files_are_listed(pair: Path) -> None:
    whole = (pair / "target/bird/0001.jpg").read_bytes()
    (pair / "target/bird/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pair / "target/bird/text.png").write_text("not a picture")
    (pair / "target/bird/notes.txt").write_text("not looked at")
    result = compare(pair)
    assert result["target"]["unreadable"] == ["bird/cut.jpg", "bird/text.png"]
    assert result["target"]["images"] == 5
    assert "2 files cannot be read: bird/cut.jpg" in "\n".join(overlap_stage.overlap_lines(result))


def test_a_folder_without_a_readable_image(pair: Path) -> None:
    for path in (pair / "target/bird").iterdir():
        path.write_text("damaged")
    with pytest.raises(UserError, match="none of its images can be read"):
        compare(pair)
    for path in (pair / "source/class").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="source: no image in this folder or below"):
        compare(pair)


def test_the_fingerprint_follows_names_and_contents(pair: Path) -> None:
    seen = {compare(pair)["source"]["sha256"] for _ in range(2)}
    (pair / "source/class/0000.jpg").rename(pair / "source/class/0000b.jpg")
    seen.add(compare(pair)["source"]["sha256"])
    save(pair / "source/class/0001.jpg", scene(60))
    seen.add(compare(pair)["source"]["sha256"])
    assert len(seen) == 3


def test_a_name_that_is_not_unicode(pair: Path) -> None:
    (pair / "target" / b"\xff.png".decode(errors="surrogateescape")).write_bytes(encoded(scene(1)))
    compare(pair, pair / "found.json")
    [match] = storage.read_json(pair / "found.json")["matches"]
    assert match["target"] == "\ufffd.png"


def test_the_command_on_two_folders(pair: Path) -> None:
    save(pair / "target/test/copy.png", scene(3))
    command = ("uotft", "data", "overlap", "--source", "source", "--target", "target")
    done = call(*command, "--output", "made/found.json", cwd=pair)
    assert done.returncode == 0, done.stderr
    assert "1 test images are in the source, 1 pairs: bytes 0, stem 0, picture 1" in done.stdout
    assert "test/copy.png  =  class/0003.jpg" in done.stdout
    written = storage.read_json(pair / "made/found.json")
    assert written["counts"]["picture"] == len(written["matches"]) == 1
    assert written["thresholds"]["distance"] == overlap.DISTANCE


def test_where_all_test_images_look_alike_only_bytes_count(tmp_path: Path) -> None:
    """Ten test images, all one drawing with a little noise, as handwritten digits are."""
    rng = np.random.default_rng(0)
    drawing = np.asarray(scene(1, (28, 28)).convert("L"), np.int64)
    for number in range(10):
        noisy = np.clip(drawing + rng.integers(-3, 4, drawing.shape), 0, 255).astype(np.uint8)
        save(tmp_path / f"target/{number}.png", Image.fromarray(noisy))
    save(tmp_path / "source/a/x.png", Image.open(tmp_path / "target/3.png"))
    save(tmp_path / "source/a/y.png", scene(1, (28, 28)))
    found = compare(tmp_path)
    assert found["alike"] == 1.0
    assert [(m["reason"], m["target"]) for m in found["matches"]] == [("bytes", "3.png")]
    assert found["counts"]["picture"] == 0
    assert len(found["doubtful"]) == 19, "x but for its own copy, and y, look like all ten"
    assert any(
        line.startswith("not counted: 19 pairs that look alike, because 100 %")
        for line in overlap_stage.overlap_lines(found)
    )
