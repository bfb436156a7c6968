"""Image files become squares of uint8, each decoded once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import pictures
from support.child_processes import fork
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.data import pixel_cache

SIDE = {"stored": 32, "size": 24}
ALL = np.arange(8)


def child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own; returns how it ended."""

    def fresh() -> None:
        pixel_cache.pool.cache_clear()  # threads stay behind in a fork
        work()

    return os.waitpid(fork(fresh), 0)[1]


def whole(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.int64)


def test_each_file_is_decoded_once(tmp_path: Path) -> None:
    images = pictures.scenes(tmp_path, 8, **SIDE)
    first = images.images[ALL]
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    again = pixel_cache.Store(images.files, tmp_path / "store")
    assert first.shape == (8, 32, 32, 3)
    assert np.array_equal(again[ALL], first)
    assert np.array_equal(again[::-1][0], first[7])
    assert all(np.array_equal(a, b) for a, b in zip(again.read(ALL), first, strict=True))
    assert all(np.abs(a - whole(pictures.scene(i))).max() <= 1 for i, a in enumerate(first))


def test_a_picture_that_has_its_size_is_not_scaled() -> None:
    """Scaling would give the same pixels, and import torch."""
    content = pictures.encoded(pictures.scene(0).resize((40, 40)))
    kept = pixel_cache.square(content, 40, Path("a.png"))
    assert np.array_equal(kept, pixel_cache.scaled(kept, 40))
    code = (
        "import sys; from pathlib import Path; from uotft.data import pixel_cache; "
        "pixel_cache.square(sys.stdin.buffer.read(), 40, Path()); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=content, capture_output=True, check=True
    )
    assert done.stdout == b"False\n"


def test_only_the_rows_asked_for_are_decoded(tmp_path: Path) -> None:
    images = pictures.scenes(tmp_path, 8, stored=256)
    assert images.images[[3]].shape == (1, 256, 256, 3)
    assert images.images.there.tolist() == [row == 3 for row in range(8)]
    assert (tmp_path / "store/pixels.npy").stat().st_blocks * 512 < 2.2 * 256 * 256 * 3


def test_a_large_data_set_keeps_only_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pictures.scenes(tmp_path, 8, **SIDE).images
    monkeypatch.setattr(pixel_cache, "WHOLE", 0)
    seen = store.read(ALL)
    assert not store.there.any()
    store.hold(ALL[:2])
    assert store.there.tolist() == [True] * 2 + [False] * 6
    assert np.array_equal(store[ALL], seen)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_says_which_side_is_up(orientation: int) -> None:
    content = pictures.turned(pictures.scene(0), orientation)
    found = pixel_cache.square(content, 32, Path("a.png"))
    assert np.abs(found - whole(pictures.scene(0))).max() <= 1, "as Pillow would, but for rounding"
    assert pixel_cache.upright_size(content) == (72, 96)


# ---- transparency, and 16 bits of grey

GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#10c040": (16, 192, 64)}


def see_through() -> dict[str, bytes]:
    """Two pixels in every kind of file that may be transparent: the left one is, of colour 5."""
    pair = Image.new("RGBA", (2, 1), (5, 5, 5, 0))
    pair.putpixel((1, 0), (150, 150, 150, 255))
    palette = Image.new("P", (2, 1), 7)
    palette.putpalette([5, 5, 5] * 8 + [150, 150, 150] * 8)
    palette.putpixel((1, 0), 9)
    row = lambda form, *values: b"\0" + struct.pack(form, *values)  # noqa: E731
    return {
        "RGBA": pictures.encoded(pair),
        "LA": pictures.encoded(pair.convert("LA")),
        "P, one entry": pictures.encoded(palette, transparency=7),
        "P, alpha of entries": pictures.encoded(palette, transparency=bytes([9] * 7 + [0])),
        "GIF": pictures.encoded(palette, "GIF", transparency=7),
        "TIFF": pictures.encoded(pair, "TIFF"),
        "TIFF, LA": pictures.encoded(pair.convert("LA"), "TIFF"),
        "WebP": pictures.encoded(pair, "WEBP", lossless=True, exact=True),
        "L, key": pictures.png((2, 1), 8, 0, row("2B", 5, 150), row(">H", 5)[1:]),
        "L, 4 bits, key": pictures.png((2, 1), 4, 0, row("B", 0x09), row(">H", 0)[1:]),
        "L, 2 bits, key": pictures.png((2, 1), 2, 0, row("B", 0x60), row(">H", 1)[1:]),
        "L, 16 bits, key": pictures.png((2, 1), 16, 0, row(">2H", 9, 38550), row(">H", 9)[1:]),
        "LA, 16 bits": pictures.png((2, 1), 16, 4, row(">4H", 9, 0, 38550, 65535)),
        "RGB, key": pictures.png(
            (2, 1), 8, 2, row("6B", *[5] * 3, *[150] * 3), row(">3H", *[5] * 3)[1:]
        ),
        "RGB, 16 bits, key": pictures.png(
            (2, 1), 16, 2, row(">6H", *[1285] * 3, *[38550] * 3), row(">3H", *[1285] * 3)[1:]
        ),
    }  # fmt: skip


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("kind", see_through())
def test_what_is_transparent_shows_the_background(kind: str, ground: str) -> None:
    content = see_through()[kind]
    found = pixel_cache.picture_of(content, Path("a"), "RGB", background=ground)
    assert found.getpixel((0, 0)) == GROUNDS[ground]
    assert abs(found.getpixel((1, 0))[0] - 150) < 30, "few bits of grey are coarse"
    grey = pixel_cache.picture_of(content, Path("a"), "L", background=ground)
    assert grey.getpixel((0, 0)) == Image.new("RGB", (1, 1), ground).convert("L").getpixel((0, 0))


@pytest.mark.parametrize("kind", see_through())
def test_without_a_background_a_file_shows_the_colours_it_has(kind: str) -> None:
    """As all files did before there was a background."""
    found = pixel_cache.picture_of(see_through()[kind], Path("a"), "RGB", background="none")
    assert max(found.getpixel((0, 0))) <= 85


def test_half_transparent_pixels_are_mixed() -> None:
    content = pictures.encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51)))
    found = pixel_cache.picture_of(content, Path("a.png"), "RGB", background="#0000ff")
    assert np.abs(np.subtract(found.getpixel((0, 0)), (51, 0, 204))).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_without_a_transparent_pixel_stays_as_it_is(mode: str) -> None:
    image = pictures.scene(0).convert(mode)
    more = {"transparency": bytes([255] * 256)} if mode == "P" else {}
    content = pictures.encoded(image, **more)
    for shape in ("L", "RGB"):
        on = pixel_cache.picture_of(content, Path("a"), shape)
        assert np.array_equal(on, pixel_cache.picture_of(content, Path("a"), shape, 0, "none"))


def test_a_store_and_its_npz_know_the_background(tmp_path: Path) -> None:
    contents = {f"{i}.png": pictures.encoded(pictures.stencil(i)) for i in range(3)}
    seen = {}
    for ground in ("white", "black", "none"):
        made = pictures.image_set(tmp_path / "drawn", contents, **SIDE, background=ground)
        storage.write_images(tmp_path / "a.npz", made)
        images = pictures.kept(storage.read_images(tmp_path / "a.npz"), tmp_path / ground)
        assert images.files.background == ground
        seen[ground] = images.images[np.arange(3)]
    assert len(np.unique(seen["white"].reshape(3, -1), axis=0)) == 3
    assert seen["white"].max() == 255
    assert not seen["black"].any(), "black drawings, as the case has them"
    assert not seen["none"].any()


def test_an_npz_from_before_there_was_a_background_is_read_as_it_was(tmp_path: Path) -> None:
    made = pictures.image_set(tmp_path / "drawn", {"a.png": pictures.encoded(pictures.stencil())})
    storage.write_images(tmp_path / "a.npz", made)
    columns = storage.read_arrays(tmp_path / "a.npz")
    storage.write_arrays(
        tmp_path / "a.npz", **{k: v for k, v in columns.items() if k not in ("background", "white")}
    )
    files = storage.read_images(tmp_path / "a.npz").files
    assert (files.background, files.white) == ("none", 0)
    assert not pixel_cache.Store(files, tmp_path / "store")[np.arange(1)].any()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_white_of_sixteen_bits_is_a_setting(form: str) -> None:
    levels = np.arange(96, dtype=np.uint16).reshape(8, 12) * 43  # 0 to 4085
    content = pictures.encoded(Image.fromarray(levels), form)
    for white, brightest in ((0, 16), (4095, 254), (1023, 255)):
        found = np.asarray(pixel_cache.picture_of(content, Path("a"), "L", white=white))
        expected = (levels / (white or 65535) * 255).clip(0, 255)
        assert np.abs(found - expected).max() <= 0.51
        assert found.max() == brightest
    plain = pictures.encoded(pictures.scene(0), form)
    kept = pixel_cache.picture_of(plain, Path("a"), "RGB", white=4095)
    assert np.array_equal(kept, pictures.scene(0)), "8 bits are what they are"


def test_white_of_sixteen_bits_of_colour_is_refused() -> None:
    """Pillow decodes their upper 8 bits alone."""
    content = pictures.png((1, 1), 16, 2, b"\0" + struct.pack(">3H", 1000, 2000, 3000))
    with pytest.raises(UserError, match="a.png: Pillow keeps 8 of its 16 bits, so `white`"):
        pixel_cache.picture_of(content, Path("a.png"), "RGB", white=4095)
    assert pixel_cache.picture_of(content, Path("a.png"), "RGB").getpixel((0, 0)) == (3, 7, 11)


# ---- stores that are filled by many, or killed


def test_processes_may_fill_one_store_at_once(tmp_path: Path) -> None:
    images = pictures.image_set(
        tmp_path, {f"{i:03}.png": pictures.encoded(pictures.scene(i)) for i in range(40)}, **SIDE
    )

    def work() -> None:
        pixel_cache.pool.cache_clear()
        pixel_cache.CHUNK = 4 * 3 * images.files.stored**2
        pixel_cache.Store(images.files, tmp_path / "cache" / "one").fill(np.arange(40))

    workers = [fork(work) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 4
    left = pixel_cache.Store(images.files, tmp_path / "cache" / "one")
    assert left.there.all()
    assert np.array_equal(
        left.kept, pixel_cache.Store(images.files, tmp_path / "alone")[np.arange(40)]
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["one"]


@pytest.mark.parametrize("moment", ["between chunks", "before the flush", "after the flush"])
def test_a_kill_while_a_store_is_filled_loses_no_more_than_a_chunk(
    tmp_path: Path, moment: str
) -> None:
    images = pictures.scenes(tmp_path, 8, **SIDE)
    folder = tmp_path / "store"

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        pixel_cache.CHUNK = 4 * 3 * images.files.stored**2
        calls = []

        def flush(number: int) -> None:
            calls.append(number)
            if len(calls) == 2:
                if moment == "after the flush":
                    flushed(number)
                die()
            flushed(number)

        def bar(starts: range, label: str) -> object:
            for start in starts:
                if start and moment == "between chunks":
                    die()
                yield start

        flushed, pixel_cache.os.fsync = os.fsync, flush
        pixel_cache.Store(images.files, folder).fill(ALL, bar)

    assert os.WTERMSIG(child(work)) == signal.SIGKILL
    left = pixel_cache.Store(images.files, folder)
    assert left.there.tolist() == [True] * 4 + [False] * 4
    assert np.array_equal(left[ALL], pixel_cache.Store(images.files, tmp_path / "other")[ALL])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>404</html>", "it is a web page"),
        (b"<HTML><body>moved</body></HTML>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull` fetches"),
        (b"/annex/objects/SHA256E-s9--0.jpg\n", "`git annex get` fetches"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC, whatever its name says: convert it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing"),
        (b"%PDF-1.7\n", "it is a PDF"),
    ],
)
def test_what_a_file_is_instead_of_a_picture(content: bytes, what: str) -> None:
    with pytest.raises(UserError) as error:
        pixel_cache.square(content, 8, Path("a/photo.jpg"))
    assert str(error.value).startswith("a/photo.jpg: not an image that Pillow can read; ")
    assert what in str(error.value)


def test_of_other_bytes_nothing_is_guessed() -> None:
    with pytest.raises(UserError, match=r"photo.jpg: not an image that Pillow can read$"):
        pixel_cache.square(b"\x93NUMPY", 8, Path("photo.jpg"))
