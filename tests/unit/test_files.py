"""Image files: what is known of each without decoding it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from uotft import files

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def picture(form: str, said_in: str) -> bytes:
    """6 rows of 8 pixels that are to be turned by a quarter, if anything says so."""
    image, content = Image.new("RGB", (8, 6)), io.BytesIO()
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_itxt("XML:com.adobe.xmp", XMP, zip=True)
    words = {"exif": {"exif": exif}, "xmp": {"pnginfo": text}, "": {}}[said_in]
    image.save(content, form, **words)
    return content.getvalue()


@pytest.mark.parametrize(
    ("form", "said_in", "size"),
    [
        ("JPEG", "", [6, 8]),
        ("JPEG", "exif", [8, 6]),
        ("PNG", "", [6, 8]),
        ("PNG", "exif", [8, 6]),
        ("PNG", "xmp", [8, 6]),
    ],
)
def test_sizes_are_those_of_the_upright_picture(
    tmp_path: Path, form: str, said_in: str, size: list[int]
) -> None:
    name = b"a." + form.lower().encode()
    (tmp_path / name.decode()).write_bytes(picture(form, said_in))
    one = np.zeros(1, np.int64), np.array(["train"]), ("a",)
    found = files.image_set(tmp_path, [name], *one, files.View(), lambda items, label: items)
    assert found.files is not None
    assert found.files.sizes.tolist() == [size]
