"""Pictures that are read without an error and yet show nothing are said, with what may help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from uotft.core.records import ImageSet
from uotft.data import appearance, pixel_cache
from uotft.data.appearance import looks

SIDE = {"stored": 32, "size": 24}
SHEET = "`uotft data show mine --output mine.png`"


def quiet(items: range, label: str) -> range:
    return items


def made(root: Path, contents: list[bytes], classes: int = 1, **view: object) -> ImageSet:
    """Files in order, in ``classes`` classes of as many each; named 000.png and so on."""
    named = {f"{i:03}.png": content for i, content in enumerate(contents)}
    images = pictures.image_set(root / "files", named, **SIDE, **view)
    labels = np.arange(len(contents)) * classes // len(contents)
    images = replace(images, labels=labels, names=tuple("abcdef"[:classes]))
    return pictures.kept(images, root / f"store-{len(list(root.iterdir()))}")


def scenes(n: int) -> list[bytes]:
    return [pictures.encoded(pictures.scene(i)) for i in range(n)]


def grey16(n: int, most: int) -> list[bytes]:
    """Pictures whose values of 16 bits reach ``most``."""
    found = []
    for i in range(n):
        levels = np.asarray(pictures.scene(i).convert("L"), np.float64)
        levels = (levels - levels.min()) / np.ptp(levels) * most
        found.append(pictures.encoded(Image.fromarray(levels.round().astype(np.uint16))))
    return found


def test_pictures_that_look_well_are_passed_over_in_silence(tmp_path: Path) -> None:
    images = made(tmp_path, [*scenes(19), pictures.encoded(Image.new("RGB", (9, 9), "red"))])
    assert looks(images, "mine", quiet) == []


@pytest.mark.parametrize(
    ("most", "white"), [(1000, 1023), (4080, 4095), (4096, 8191), (16383, 16383), (255, 255)]
)
def test_few_of_sixteen_bits_are_nearly_black_and_their_white_is_named(
    tmp_path: Path, most: int, white: int
) -> None:
    [line] = looks(made(tmp_path, grey16(6, most), 2), "mine", quiet)
    assert line.startswith("6 of 6 pictures checked are nearly black")
    assert f"such as {tmp_path}/files/000.png, of 2 of 2 classes;" in line
    assert f"the brightest value of 6 of its 16-bit files is {most}: `white: {white}` in" in line
    assert SHEET in line
    assert looks(made(tmp_path, grey16(6, most), 2, white=white), "mine", quiet) == []


def test_all_of_sixteen_bits_are_well(tmp_path: Path) -> None:
    assert looks(made(tmp_path, grey16(6, 65535)), "mine", quiet) == []


def test_sixteen_bits_of_colour_are_named(tmp_path: Path) -> None:
    deep = [
        pictures.png((2, 1), 16, 2, b"\0" + np.arange(6, dtype=">u2").tobytes() * (i + 1))
        for i in range(3)
    ]
    [line] = looks(made(tmp_path, deep), "mine", quiet)
    assert "16 bits of colour, of which only the upper 8 are read: convert them" in line


@pytest.mark.parametrize("ground", ["black", "none"])
def test_drawings_in_the_alpha_channel_are_named_with_their_background(
    tmp_path: Path, ground: str
) -> None:
    contents = [pictures.encoded(pictures.stencil(i)) for i in range(6)]
    [line] = looks(made(tmp_path, contents, background=ground), "mine", quiet)
    assert "6 of 6 pictures checked are nearly black" in line
    assert f"transparent pixels, which show `background: {ground}`" in line
    assert looks(made(tmp_path, contents), "mine", quiet) == [], "on white they differ"


def test_pictures_of_one_colour(tmp_path: Path) -> None:
    white = [pictures.encoded(Image.new("RGB", (9, 9 + i), "white")) for i in range(2)]
    [line] = looks(made(tmp_path, [*scenes(18), *white]), "mine", quiet)
    assert line.startswith("2 of 20 pictures checked are of one colour, such as")


def test_equal_pixels_of_other_bytes(tmp_path: Path) -> None:
    copies = [pictures.encoded(pictures.scene(50), compress_level=n) for n in (1, 6, 9)]
    [line] = looks(made(tmp_path, [*scenes(9), *copies]), "mine", quiet)
    assert line.startswith("3 of 12 pictures checked have the same pixels as another one")
    assert f"such as {tmp_path}/files/009.png, of class 'a'" in line


def test_few_pictures_are_worth_a_line_where_they_are_a_whole_class(tmp_path: Path) -> None:
    images = made(tmp_path, [*scenes(98), *[pictures.encoded(Image.new("L", (9, 9)))] * 2])
    assert looks(images, "mine", quiet) == []
    whole = replace(images, labels=np.array([0] * 98 + [1] * 2), names=("much", "little"))
    [line] = looks(whole, "mine", quiet)
    assert "2 of 100 pictures checked are nearly black" in line
    assert "of class 'little'" in line


def test_a_large_set_is_judged_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "WHOLE", 0)
    monkeypatch.setattr(appearance, "SAMPLE", 5)
    images = made(tmp_path, grey16(20, 4000))
    [line] = looks(images, "mine", quiet)
    assert line.startswith("5 of 5 pictures checked are nearly black")
    assert not images.images.there.any(), "kept is what training asks for"


def test_unreadable_files_are_not_looked_at(tmp_path: Path) -> None:
    images = made(tmp_path, [*scenes(3), b"<html>"])
    images = replace(images, splits=np.array(["train"] * 3 + ["unreadable"]))
    assert looks(images, "mine", quiet) == []


def test_images_made_by_code_are_not_looked_at() -> None:
    black = np.zeros((4, 8, 8), np.uint8)
    images = ImageSet(black, np.zeros(4, np.int64), np.full(4, "train"), ("a",))
    assert looks(images, "mine", quiet) == []


def infrared(seed: int, form: str = "TIFF") -> bytes:
    """Red, green and blue, and a fourth channel that the file calls alpha."""
    picture = pictures.scene(seed)
    picture.putalpha(pictures.scene(seed + 100).convert("L"))
    return pictures.encoded(picture, form)


@pytest.mark.parametrize("form", ["TIFF", "PNG"])
def test_a_fourth_channel_that_is_no_transparency_is_said(tmp_path: Path, form: str) -> None:
    contents = [infrared(i, form) for i in range(6)]
    images = made(tmp_path, contents, 2)
    [line] = looks(images, "mine", quiet)
    assert line.startswith("6 of 6 pictures opened are half transparent in most of their pixels")
    assert "`background: white` shows through. If their last channel is something else" in line
    assert "`background: none` in datasets.mine leaves it out" in line
    assert SHEET in line
    opaque = made(tmp_path, contents, 2, background="none")
    assert looks(opaque, "mine", quiet) == [], "it was decided"
    plain = made(tmp_path, scenes(6), 2)
    assert (opaque.images[np.arange(6)] == plain.images[np.arange(6)]).all(), "the advice is right"
    assert np.abs(images.images[np.arange(6)] - plain.images[np.arange(6)].astype(int)).mean() > 20


def test_cut_out_things_with_soft_edges_are_transparent_and_well(tmp_path: Path) -> None:
    def cut_out(seed: int) -> bytes:
        picture, edge = pictures.scene(seed), np.linspace(-8, 8, 96)
        alpha = np.tile(255 / (1 + np.exp(-4 * edge)), (72, 1)).round().astype(np.uint8)
        picture.putalpha(Image.fromarray(alpha))
        return pictures.encoded(picture)

    assert looks(made(tmp_path, [cut_out(i) for i in range(6)], 2), "mine", quiet) == []
