"""A folder of files becomes the columns of a data set; bad files are an error or counted."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from support import pictures
from support.folder_datasets import load, many, tree
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.data import files, walk

# ---- which files


def test_images_are_found_in_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    names = "b/2.JPG", "b/10.png", "a/x.jpeg", "b/c/1.webp", ".git/1.png", "b/.1.png", "b/1.txt"
    tree(tmp_path, *names)
    (tmp_path / "b" / "folder.png").mkdir()
    assert [*walk.below(tmp_path)] == [b"a/x.jpeg", b"b/10.png", b"b/2.JPG", b"b/c/1.webp"]


def test_columns_say_what_the_files_are(tmp_path: Path) -> None:
    contents = {"a.png": pictures.encoded(pictures.scene(0)), **pictures.bad_files()}
    contents["b.png"] = pictures.turned(pictures.scene(1), 6)
    found = pictures.image_set(tmp_path, contents).files
    for row, content in enumerate(contents.values()):
        assert found.bytes[row] == len(content)
        assert found.sha256[row].tobytes() == hashlib.sha256(content).digest()
    sizes = dict(zip(contents, found.sizes.tolist(), strict=True))
    assert sizes["a.png"] == sizes["b.png"] == [72, 96], "upright"
    assert sizes["empty.jpg"] == sizes["page.jpg"] == [1, 1]


def test_the_manifest_comes_back_from_disk(tmp_path: Path) -> None:
    images = pictures.image_set(tmp_path, pictures.odd_files(), unreadable="skip", share=0.5)
    storage.write_images(tmp_path / "a.npz", images)
    again = storage.read_images(tmp_path / "a.npz")
    assert vars(again.files).keys() == vars(images.files).keys()
    for name, value in vars(images.files).items():
        assert np.array_equal(getattr(again.files, name), value), name
    assert again.files.path(1) == images.files.path(1) == tmp_path.resolve() / "cmyk.jpg"


# ---- parts


def test_a_hold_out_is_stratified_and_follows_its_seed() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 10, 2, 1])
    kept, held = files.hold_out(labels, 0.2, 0)
    assert np.bincount(labels[held], minlength=4).tolist() == [8, 2, 1, 0]
    assert sorted([*kept, *held]) == [*range(53)]
    assert np.array_equal(held, files.hold_out(labels, 0.2, 0)[1])
    assert not np.array_equal(held, files.hold_out(labels, 0.2, 1)[1])


def test_a_folder_with_parts_of_its_own_keeps_them(tmp_path: Path) -> None:
    tree(tmp_path, *many("train/", "ab", 5), *many("valid/", "ab", 2), *many("test/", "b", 3))
    images = load(tmp_path)
    assert images.names == ("a", "b")
    assert [len(images.rows(part)) for part in ("train", "val", "test")] == [10, 4, 3]
    assert set(images.labels[images.rows("test")]) == {1}
    assert images.files.path(images.rows("val")[0]).parent == tmp_path / "valid/a"


@pytest.mark.parametrize("part", ["train/", ""])
def test_a_folder_without_parts_is_cut(tmp_path: Path, part: str) -> None:
    tree(tmp_path, *many(part, "ab", 10))
    images = load(tmp_path, test=0.2, val=0.25)
    counts = [np.bincount(images.labels[images.rows(p)]).tolist() for p in ("train", "val", "test")]
    assert counts == [[6, 6], [2, 2], [2, 2]]


def test_class_names_need_not_be_text(tmp_path: Path) -> None:
    for i, name in enumerate((b"bl\xe9", b"bl\xe8")):
        (tmp_path / os.fsdecode(name)).mkdir()
        path = os.path.join(os.fsencode(tmp_path), name, b"1.png")
        Path(os.fsdecode(path)).write_bytes(pictures.encoded(pictures.scene(i)))
    images = load(tmp_path)
    assert images.names == ("bl\\xe8", "bl\\xe9")
    storage.write_json(
        tmp_path / "a.json", {"names": images.names, "why": str(images.files.path(0))}
    )
    assert json.loads((tmp_path / "a.json").read_text())["why"] == str(images.files.path(0))


@pytest.mark.parametrize(("names", "message"), [
    ([], "no image in a folder named after its class"),
    (["1.png", "2.png"], "no image in a folder named after its class"),
    (["train/a/1.png", "test/b/1.png"], "class 'b' has no training image"),
])  # fmt: skip
def test_folders_that_are_no_data_set_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    tree(tmp_path, *names)
    with pytest.raises(UserError, match=f"{tmp_path}: {message}"):
        load(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder or file \(path in"):
        load(tmp_path / "nowhere")


# ---- sizes of upright pictures

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def picture(form: str, place: str) -> bytes:
    """6 rows of 8 pixels that are to be turned by a quarter, if anything says so."""
    image, content = Image.new("RGB", (8, 6)), io.BytesIO()
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_itxt("XML:com.adobe.xmp", XMP, zip=True)
    options = {"exif": {"exif": exif}, "xmp": {"pnginfo": text}, "": {}}[place]
    image.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("form", "place", "size"),
    [
        ("JPEG", "", [6, 8]),
        ("JPEG", "exif", [8, 6]),
        ("PNG", "", [6, 8]),
        ("PNG", "exif", [8, 6]),
        ("PNG", "xmp", [8, 6]),
    ],
)
def test_sizes_are_those_of_the_upright_picture(
    tmp_path: Path, form: str, place: str, size: list[int]
) -> None:
    name = b"a." + form.lower().encode()
    (tmp_path / name.decode()).write_bytes(picture(form, place))
    one = np.zeros(1, np.int64), np.array(["train"]), ("a",)
    found = files.image_set(tmp_path, [name], *one, files.View(), lambda items, label: items)
    assert found.files is not None
    assert found.files.sizes.tolist() == [size]


def several() -> dict[str, bytes]:
    """Three pictures in one file, in every form that may hold them."""
    first, more = pictures.scene(1), [pictures.scene(2), pictures.scene(3)]
    forms = {"gif": "GIF", "tif": "TIFF", "webp": "WEBP", "png": "PNG"}
    return {
        f"several.{end}": pictures.encoded(first, form, save_all=True, append_images=more)
        for end, form in forms.items()
    }


def test_files_that_hold_several_pictures_are_counted(tmp_path: Path) -> None:
    """Of a stack of pages or a film only the first is seen."""
    one = {f"one.{end}": pictures.encoded(pictures.scene(4), form) for end, form in (
        ("gif", "GIF"), ("tif", "TIFF"), ("webp", "WEBP"), ("png", "PNG"), ("jpg", "JPEG"),
    )}  # fmt: skip
    images = pictures.image_set(tmp_path, one | several())
    assert images.notes == (
        "files that hold several pictures, such as frames or pages: 4 of 9 (such as several.gif); "
        "only the first of each is read",
    )


def test_the_second_picture_of_a_camera_is_no_picture_of_its_own(tmp_path: Path) -> None:
    """Phones put a depth map or a small view behind the picture, and name the file .jpg."""
    more = [pictures.scene(2)]
    camera = pictures.encoded(pictures.scene(1), "MPO", save_all=True, append_images=more)
    assert pictures.image_set(tmp_path, {"phone.jpg": camera}).notes == ()
