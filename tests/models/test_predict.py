"""`uotft predict`'s reader: files of many kinds become the pixels that a model was trained on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from uotft.core.errors import UserError
from uotft.data.datasets import digits
from uotft.models import predict

RAMP = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)


def save(folder: Path, pixels: np.ndarray, name: str = "a.png") -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.mark.parametrize(("shape", "expected"), [([8, 9], (8, 9)), ([8, 9, 3], (8, 9, 3))])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "LA", "1"])
def test_every_mode_becomes_the_models(
    tmp_path: Path, mode: str, shape: list[int], expected: tuple[int, ...]
) -> None:
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.fromarray((RAMP // 3).astype(np.uint8)).convert(mode).save(tmp_path / name)
    pixels = predict.read(tmp_path / name, shape)
    assert pixels.shape == expected
    assert pixels.dtype == np.uint8
    assert pixels[-1].mean() > pixels[0].mean() + 50


def test_sixteen_bits_keep_their_levels(tmp_path: Path) -> None:
    path = save(tmp_path, (RAMP * 109).astype(np.uint16))
    pixels = predict.read(path, [20, 30])
    assert np.abs(pixels - RAMP * 109 / 257).max() <= 0.51


def test_the_camera_says_which_side_is_up(tmp_path: Path) -> None:
    picture = Image.fromarray((RAMP // 3).astype(np.uint8))
    turned = picture.getexif()
    turned[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=turned)
    pixels = predict.read(tmp_path / "a.png", [20, 30])
    assert np.array_equal(pixels, (RAMP // 3).astype(np.uint8)[::-1, ::-1])


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = (RAMP // 3).astype(np.uint8)
    path = save(tmp_path, pixels)
    assert np.array_equal(predict.read(path, [20, 30], lambda picture: 1 / 0), pixels)


def test_digits_are_scaled_as_the_data_set_was(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    settings = digits.Settings(val=100)
    made = digits.load(settings, lambda items, label: items, tmp_path)
    raw = (load_digits().images[7] * (255 / 16)).astype(np.uint8)
    resize = partial(digits.from_picture, settings=settings)
    pixels = predict.read(save(tmp_path, raw), [28, 28], resize)
    assert np.array_equal(pixels, made.images[7])


@pytest.mark.parametrize(
    ("section", "level"),
    [({}, 0), ({"background": "none"}, 0), ({"background": "white"}, 255),
     ({"background": "#808080"}, 128)],
)  # fmt: skip
def test_transparency_is_what_the_model_was_trained_on(
    tmp_path: Path, section: dict[str, str], level: int
) -> None:
    """A model from before there was a background saw the black below a drawing's alpha."""
    pictures.write(tmp_path, {"a.png": pictures.encoded(pictures.stencil())})
    facts = {"dataset": {"kind": "folder", "path": "x", "stored": 32, "size": 24, **section}}
    assert predict.reader(facts)(tmp_path / "a.png").max() == level


def test_sixteen_bits_have_the_white_that_the_model_was_trained_with(tmp_path: Path) -> None:
    path = save(tmp_path, np.full((20, 20), 4095, np.uint16))
    facts = {"dataset": {"kind": "folder", "path": "x", "stored": 32, "size": 24, "white": 4095}}
    assert (predict.reader(facts)(path) == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image that Pillow can read"),
        (b"<html>404</html>", "not an image that Pillow can read"),
        (None, "No such file"),
        ("cut", "truncated"),
        ("float", "no known white"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "bad.tif"
    if content == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif content == "cut":
        path = save(tmp_path, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
        path.write_bytes(path.read_bytes()[:900])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: .*{message}"):
        predict.read(path, [8, 8])
