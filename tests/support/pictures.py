"""Pictures that tests draw, and data sets of files made of them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from uotft.core.records import ImageSet
from uotft.data import files, pixel_cache


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A colour picture of soft blobs; every seed another one."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(image: Image.Image, orientation: int, form: str = "PNG", **options: object) -> bytes:
    """What a camera held otherwise would write: the file's EXIF says how to see ``image``."""
    back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
            6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    method = back.get(orientation)
    held = image.transpose(Image.Transpose[method]) if method else image
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(held, form, exif=exif, **options)


def png(size: tuple[int, int], bits: int, kind: int, rows: bytes, key: bytes = b"") -> bytes:
    """A PNG from its parts: ``kind`` as in its head, packed rows, and a transparent value."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + (chunk(b"tRNS", key) if key else b"")
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 30,000 x 30,000."""
    return png((30_000, 30_000), 8, 2, b"")


def stencil(seed: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A drawing that is in the alpha channel alone: all of its colours are black."""
    image = Image.new("RGBA", size)
    image.putalpha(scene(seed, size).convert("L").point(lambda level: 255 * (level > 127)))
    return image


def bad_files() -> dict[str, bytes]:
    """Files that are no pictures, though their names say so."""
    return {
        "empty.jpg": b"",
        "cut.jpg": encoded(scene(1), "JPEG")[:700],
        "page.jpg": b"<html><body>404 Not Found</body></html>",
        "bomb.png": bomb(),
    }


def odd_files() -> dict[str, bytes]:
    """Files that are pictures, of unusual kinds, all of the same scene but for the last."""
    image = scene(2)
    grey16 = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    return {
        "plain.png": encoded(image),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "grey16.png": encoded(grey16),
        "animated.gif": encoded(image, "GIF", save_all=True, append_images=[scene(3), scene(4)]),
        "palette.png": encoded(image.quantize(256), transparency=bytes([255] * 256)),
        "turned.png": turned(image, 6),
        "one.png": encoded(Image.new("RGB", (1, 1), (10, 200, 30))),
    }


def write(root: Path, contents: dict[str, bytes]) -> Path:
    """Files below ``root``."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def image_set(root: Path, contents: dict[str, bytes], **view: object) -> ImageSet:
    """A data set of these files, not decoded yet: one class, all of them for training."""
    write(root, contents)
    n = len(contents)
    names = [name.encode() for name in contents]
    labels, splits, settings = np.zeros(n, np.int64), np.full(n, "train"), files.View(**view)
    quiet = lambda items, label: items  # noqa: E731
    return files.image_set(root, names, labels, splits, ("all",), settings, quiet)


def kept(images: ImageSet, folder: Path) -> ImageSet:
    """The same with its pixels kept in ``folder``."""
    return replace(images, images=pixel_cache.Store(images.files, folder))


def scenes(root: Path, n: int, shape: tuple[int, int] = (96, 72), **view: object) -> ImageSet:
    """A data set of ``n`` scenes, kept in ROOT/store."""
    contents = {f"{i:03}.png": encoded(scene(i, shape)) for i in range(n)}
    return kept(image_set(root / "pictures", contents, **view), root / "store")
