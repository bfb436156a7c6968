"""Tiny archives in the layout of the public data sets: their file names, lists and formats.

Every picture tells where it belongs: its red is 20 + 40 * class, its blue is PARTS[part].
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image
from scipy.io import savemat

from uotft.core import registry
from uotft.data import wordnet
from uotft.data.archives import Card

PARTS = {"train": 0, "val": 100, "test": 200}
CLUTTER = (255, 255, 255)  # images that are in an archive and in no list
EACH = {"train": 4, "val": 2, "test": 3}  # pictures of a class


def picture(label: int, part: str, number: int = 0) -> bytes:
    """A small JPEG of one colour; another ``number``, other bytes."""
    return coloured((20 + 40 * label, 128, PARTS[part]), number)


def coloured(colour: tuple[int, int, int], number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 18), colour).save(file, "JPEG", comment=b"%d" % number)
    return file.getvalue()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def tgz(members: dict[str, bytes]) -> bytes:
    return tar(members, "w:gz")


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def matlab(**variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


def cells(values: list[str]) -> np.ndarray:
    """A column of cells with texts."""
    return np.array([[value] for value in values], dtype=object)


def structs(rows: list[dict[str, object]]) -> np.ndarray:
    """A MATLAB array of structs."""
    made = np.empty((1, len(rows)), [(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        made[0, i] = tuple(row.values())
    return made


def text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def spread(*parts: str) -> list[tuple[int, str, int]]:
    """(class, part, number) of every picture of three classes."""
    return [(c, part, i) for part in parts for c in range(3) for i in range(EACH[part])]


def dogs() -> dict[str, bytes]:
    breeds = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog"]
    images, lists = {"Images/n02085620-Chihuahua/n02085620_9999.jpg": coloured(CLUTTER)}, {}
    for part in ("train", "test"):
        rows = [(f"{breeds[c]}/{breeds[c][:9]}_{i}{part}.jpg", c) for c, _, i in spread(part)]
        images |= {f"Images/{name}": picture(c, part) for name, c in rows}
        labels = np.array([[c + 1] for _, c in rows], np.uint8)
        lists[f"{part}_list.mat"] = matlab(file_list=cells([n for n, _ in rows]), labels=labels)
    return {"images.tar": tar(images), "lists.tar": tar(lists)}


def cars() -> dict[str, bytes]:
    names = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012"]
    made = {}
    for part in ("train", "test"):
        rows = [(c, f"{i:05d}.jpg") for i, (c, _, _) in enumerate(spread(part), start=1)]
        box = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 9, "bbox_y2": 9}
        made[part] = matlab(
            annotations=structs([box | {"class": c + 1, "fname": f} for c, f in rows])
        )
        images = {f"cars_{part}/{file}": picture(c, part) for c, file in rows}
        made[f"cars_{part}.tgz"] = tgz(images)
    kit = {
        "devkit/cars_meta.mat": matlab(class_names=cells(names).T),
        "devkit/cars_train_annos.mat": made.pop("train"),
    }
    return {
        **{name: made[name] for name in ("cars_train.tgz", "cars_test.tgz")},
        "car_devkit.tgz": tgz(kit),
        "cars_test_annos_withlabels.mat": made["test"],
    }


def cub() -> dict[str, bytes]:
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    rows = [
        (f"{names[c]}/{names[c][4:]}_{i}_{part}.jpg", c, part)
        for c, part, i in spread("train", "test")
    ]
    rows.sort()
    lists = {
        "classes": [f"{c + 1} {name}" for c, name in enumerate(names)],
        "images": [f"{n} {path}" for n, (path, _, _) in enumerate(rows, 1)],
        "image_class_labels": [f"{n} {c + 1}" for n, (_, c, _) in enumerate(rows, 1)],
        "train_test_split": [f"{n} {int(p == 'train')}" for n, (_, _, p) in enumerate(rows, 1)],
    }
    members = {f"CUB_200_2011/{name}.txt": text(lines) for name, lines in lists.items()}
    members |= {f"CUB_200_2011/images/{path}": picture(c, part) for path, c, part in rows}
    return {"CUB_200_2011.tgz": tgz({"attributes.txt": b"1 bill\n", **members})}


def pets() -> dict[str, bytes]:
    breeds = ["Abyssinian", "american_bulldog", "american_pit_bull_terrier"]
    images = {"images/Abyssinian_999.jpg": coloured(CLUTTER), "images/._Abyssinian_1.jpg": b"mac"}
    lists = {"annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n"}
    for part, name in (("train", "trainval"), ("test", "test")):
        rows = [(f"{breeds[c]}_{i}{PARTS[part]}", c) for c, _, i in spread(part)]
        images |= {f"images/{stem}.jpg": picture(c, part) for stem, c in rows}
        lists[f"annotations/{name}.txt"] = text([f"{stem} {c + 1} 1 1" for stem, c in rows])
    return {"images.tar.gz": tgz(images), "annotations.tar.gz": tgz(lists)}


def sun() -> dict[str, bytes]:
    scenes = ["/a/abbey", "/a/apartment_building/outdoor", "/b/badminton_court/indoor"]
    images = {"SUN397/a/abbey/sun_unlisted.jpg": coloured(CLUTTER)}
    lists = {"ClassName.txt": text(scenes)}
    for part, name in (("train", "Training"), ("test", "Testing")):
        rows = [(f"{scenes[c]}/sun_{part}{i}.jpg", c) for c, _, i in spread(part)]
        images |= {f"SUN397{path}": picture(c, part) for path, c in rows}
        lists[f"{name}_01.txt"] = text([path for path, _ in rows])
        lists[f"{name}_02.txt"] = text(["/a/abbey/sun_unlisted.jpg"])
    return {"SUN397.tar.gz": tgz(images), "Partitions.zip": zipped(lists)}


def aircraft() -> dict[str, bytes]:
    variants = ["707-320", "727-200", "A300B4 F/A"]
    members = {"variants.txt": text(variants), "images/0000001.jpg": coloured(CLUTTER)}
    for n, part in enumerate(("train", "val", "test"), start=1):
        rows = [(f"{n}{i:06d}", c) for i, (c, _, _) in enumerate(spread(part))]
        members |= {f"images/{image}.jpg": picture(c, part) for image, c in rows}
        lines = text([f"{image} {variants[c]}" for image, c in rows])
        members[f"images_variant_{part}.txt"] = lines
    folder = "fgvc-aircraft-2013b/data/"
    return {"fgvc-aircraft-2013b.tar.gz": tgz({folder + n: c for n, c in members.items()})}


def dtd() -> dict[str, bytes]:
    words, members = ["banded", "blotchy", "zigzagged"], {}
    for part in ("train", "val", "test"):
        rows = [(f"{words[c]}/{words[c]}_{part}{i:04d}.jpg", c) for c, _, i in spread(part)]
        members |= {f"dtd/images/{path}": picture(c, part) for path, c in rows}
        members[f"dtd/labels/{part}1.txt"] = text([path for path, _ in rows])
    return {"dtd-r1.0.1.tar.gz": tgz(members)}


def caltech() -> dict[str, bytes]:
    """34 of each class; which are for training is drawn, so all have the blue of train."""
    classes, top = ["Faces", "accordion", "water_lilly"], "101_ObjectCategories"
    images = {f"{top}/BACKGROUND_Google/image_0001.jpg": coloured(CLUTTER)}
    images |= {f"{top}/BACKGROUND_Google/tmp": b"no image"}
    for c, name in enumerate(classes):
        images |= {f"{top}/{name}/image_{i:04d}.jpg": picture(c, "train") for i in range(1, 35)}
    members = {
        f"caltech-101/{top}.tar.gz": tgz(images),
        "caltech-101/Annotations.tar": tar({"Annotations/Faces_2/annotation_0001.mat": b"box"}),
        f"__MACOSX/caltech-101/._{top}.tar.gz": b"what a Mac leaves",
    }
    return {"caltech-101.zip": zipped(members)}


def imagenet() -> dict[str, bytes]:
    """The kit numbers classes in another order than that of their WordNet ids, as it does."""
    wnids = ["n01440764", "n01443537", "n02012849"]
    words = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"]
    trained = {
        f"{wnid}.tar": tar({f"{wnid}_{i}.JPEG": picture(c, "train") for i in range(EACH["train"])})
        for c, wnid in enumerate(wnids)
    }
    validated = spread("val")[::-1]
    val = {
        f"ILSVRC2012_val_{n:08d}.JPEG": picture(c, "val")
        for n, (c, _, _) in enumerate(validated, start=1)
    }
    synsets = [
        {"ILSVRC2012_ID": 3 - c, "WNID": wnids[c], "words": words[c], "gloss": "a thing"}
        for c in (2, 0, 1)
    ] + [{"ILSVRC2012_ID": 1001, "WNID": "n00001740", "words": "entity", "gloss": "that which is"}]
    kit = {
        "data/meta.mat": matlab(synsets=structs(synsets).T),
        "data/ILSVRC2012_validation_ground_truth.txt": text([str(3 - c) for c, _, _ in validated]),
    }
    return {
        "ILSVRC2012_img_train.tar": tar(trained),
        "ILSVRC2012_img_val.tar": tar(val),
        "ILSVRC2012_devkit_t12.tar.gz": tgz(
            {f"ILSVRC2012_devkit_t12/{n}": c for n, c in kit.items()}
        ),
    }


@cache
def imagenet_tar(images: int = 2) -> bytes:
    """ILSVRC2012_img_train.tar: 1,000 class tars in a row, each with so many tiny pictures."""
    return tar({f"{wnid}.tar": class_tar(wnid, images) for wnid in wordnet.imagenet()})


def class_tar(wnid: str, images: int = 2) -> bytes:
    """The tar of a class; each class has a colour of its own."""
    row = [*wordnet.imagenet()].index(wnid)
    colour = (row % 10 * 25, row // 10 % 10 * 25, row // 100 * 25)
    return tar({f"{wnid}_{i}.JPEG": coloured(colour, i) for i in range(images)})


NAMES = {
    "dogs": ("Chihuahua", "Japanese spaniel", "Maltese dog"),
    "cars": ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012"),
    "cub": ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross"),
    "pets": ("Abyssinian", "american bulldog", "american pit bull terrier"),
    "sun": ("abbey", "apartment building outdoor", "badminton court indoor"),
    "aircraft": ("707-320", "727-200", "A300B4 F/A"),
    "dtd": ("banded", "blotchy", "zigzagged"),
    "caltech": ("Faces", "accordion", "water lilly"),
    "imagenet": ("n01440764 tench", "n01443537 goldfish", "n02012849 crane"),
}


def card(name: str, contents: dict[str, bytes], address: str = "") -> Card:
    """The data set's own card, with the sizes, checksums, addresses and images of other bytes."""
    real: Card = registry.load("datasets", name, "test").CARD
    made = tuple(
        replace(
            a,
            bytes=len(contents[a.name]),
            sha256=hashlib.sha256(contents[a.name]).hexdigest() if a.sha256 else "",
            md5=hashlib.md5(contents[a.name]).hexdigest() if a.md5 else "",
            urls=(f"{address}/{a.name}",) if a.urls and address else (),
        )
        for a in real.archives
    )
    images = {part: 3 * EACH[part] for part in real.images}
    return replace(real, archives=made, images=images)
