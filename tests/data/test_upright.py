"""One function decides what upright is, for every format and every way to hold a camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from uotft.data import pixel_cache
from uotft.data.files import View
from uotft.models import predict
from uotft.models.inputs import Views
from uotft.pipeline.overlap import overlap

TALL = (40, 80)
#: The formats whose files may say how they were held, and how Pillow writes each without loss or
#: nearly so.
FORMATS = {
    "png": ("PNG", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg", "quality": 100}),
    "jpg": ("JPEG", {"quality": 100, "subsampling": 0}),
    "mpo": ("MPO", {"quality": 100, "subsampling": 0}),
    "webp": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
}
LOSSLESS = "png", "tif", "lzw.tif", "webp"


def scene() -> Image.Image:
    """A tall picture that looks different whichever way it is turned."""
    return pictures.scene(0, TALL)


def held(kind: str, orientation: int) -> bytes:
    form, options = FORMATS[kind]
    return pictures.turned(scene(), orientation, form, **options)


def tree(root: Path, orientation: int) -> list[str]:
    """The same picture in every format, and upright in ``0.png``."""
    contents = {"0.png": pictures.encoded(scene())}
    contents |= {f"{i}.{kind}": held(kind, orientation) for i, kind in enumerate(FORMATS, 1)}
    pictures.write(root, contents)
    return [*contents]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_and_sides_are_those_of_the_upright_picture(kind: str, orientation: int) -> None:
    content, form = held(kind, orientation), FORMATS[kind]
    plain = pictures.encoded(scene(), form[0], **form[1])
    assert pixel_cache.upright_size(content) == TALL[::-1]
    for mode in ("L", "RGB"):
        found = pixel_cache.picture_of(content, Path("a"), mode)
        expected = pixel_cache.picture_of(plain, Path("a"), mode)
        assert found.size == TALL
        # a lossy format rounds other blocks when the picture lies on its side
        gap = np.abs(np.asarray(found, np.int64) - np.asarray(expected, np.int64)).max()
        assert gap <= (0 if kind in LOSSLESS else 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_training_and_prediction_see_what_they_see_of_the_upright_picture(
    tmp_path: Path, orientation: int
) -> None:
    """The case: what tests saw of a lying TIFF was wrong by 69 of 255 levels."""
    names, view = tree(tmp_path / "pictures", orientation), View(stored=32, size=24)
    contents = {n: (tmp_path / "pictures" / n).read_bytes() for n in names}
    images = pictures.kept(
        pictures.image_set(tmp_path / "pictures", contents, stored=32, size=24), tmp_path / "store"
    )
    trained = Views(images, np.arange(len(names)))[:].astype(np.int64)
    asked = np.stack([predict.see(tmp_path / "pictures" / n, view) for n in names])
    for name, seen, predicted in zip(names, trained, asked, strict=True):
        assert np.abs(seen - trained[0]).max() <= (1 if name.split(".", 1)[1] in LOSSLESS else 4)
        assert np.array_equal(seen, predicted)


def test_a_tiff_whose_orientation_is_in_its_xmp_alone(tmp_path: Path) -> None:
    """Pillow turns its pixels when it decodes them, but not its size when it opens the file."""
    lying = scene().transpose(Image.Transpose.ROTATE_90)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    content = pictures.encoded(lying, "TIFF", tiffinfo={700: xmp})
    found = pixel_cache.picture_of(content, Path("a.tif"), "RGB")
    assert np.array_equal(np.asarray(found), np.asarray(scene()))
    assert pixel_cache.upright_size(content) == TALL[::-1]


def test_overlap_finds_the_turned_ones(tmp_path: Path) -> None:
    for side, orientation in (("source", 1), ("target", 6)):
        names = tree(tmp_path / side, orientation)
    (tmp_path / "target/0.png").unlink()
    found = overlap(str(tmp_path / "source"), str(tmp_path / "target"), progress=lambda i, _: i)
    expected = {name for name in names[1:] if name.endswith((".png", ".tif", ".jpg", ".webp"))}
    assert {match["target"] for match in found["matches"] + found["doubtful"]} >= expected
