"""A folder of images -> its rows: path, class and part; and notes on what is left out.

    PART/CLASS/…/image    CLASS/…/image    CLASS/PART/image

Parts are train, val and test in any case and their common spellings: Training, train_set, valid,
dev, Testing; also birds_train beside birds_test. Outer folders, such as an archive's own, are
skipped. A layout that can be read in two ways, such as ``train`` beside other folders of images, is
refused: the wrong reading would silently train on official test images.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from uotft.core.errors import UserError
from uotft.core.text import counted, some
from uotft.data.files import printable
from uotft.data.lists import PARTS, UNLABELLED, Rows, class_name, differ_in_case
from uotft.data.walk import pieces, walk

Names = tuple[str, ...]  # of folders, from the top

FILLERS = {"set", "data", "dataset", "split", "part", "images", "image", "imgs", "img", "folder"}
#: Names that tools give to folders; seldom classes.
SELDOM = {
    "images", "image", "imgs", "img", "masks", "mask", "labels", "label", "annotations",
    "segmentations", "trimaps", "thumbnails", "unlabeled", "unlabelled",
}  # fmt: skip
AS_CLASSES = "put the folders of the classes into a folder named train"


@dataclass(frozen=True)
class Scan:
    """The images of a folder, in the order of their paths, and lines about what is left out."""

    rows: Rows
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """A folder: its path from the top, the names along that path, and its number of images.

    ``names`` are stripped and in Unicode's form NFC, so names that look the same are equal.
    """

    inner: bytes
    names: Names
    images: int


@dataclass(frozen=True)
class Layout:
    """How folders are read.

    ``top`` are the folders around parts or classes, ``parts`` {folder: its part}, ``inside``
    {folder of a part: the folders around its classes}. With ``turned``, each class holds its own
    parts, CLASS/PART/image.
    """

    top: Names = ()
    parts: Mapping[str, str] | None = None
    inside: Mapping[str, Names] | None = None
    turned: bool = False

    def class_at(self, names: Names) -> int | None:
        """The index in ``names`` of a folder's class; None if the folder is in no class."""
        at = len(self.top)
        if names[:at] != self.top or len(names) == at:
            return None
        if self.parts and not self.turned:
            around = (self.inside or {}).get(names[at], ())
            if names[at] not in self.parts or names[at + 1 : at + 1 + len(around)] != around:
                return None
            at += 1 + len(around)
        return at if len(names) > at else None

    def part(self, names: Names) -> str:
        """The part of a folder that has a class."""
        at = len(self.top) + self.turned
        return self.parts[names[at]] if self.parts else "train"


def scan(folder: Path) -> Scan:
    """Find the images below ``folder``, their classes and parts; reads no file.

    Raises `UserError` if there are fewer than two classes, if a class has no training image, or if
    the layout can be read in two ways.
    """
    tree = walk(folder)
    every = [Place(i, tuple(map(_name, pieces(i))), len(n)) for i, n in tree.folders.items()]
    layout, notes = _layout(folder, [place for place in every if place.images])
    rows: Rows = []
    for place in every:
        at = layout.class_at(place.names)
        if at is not None and place.images:
            # intern: a million rows share the names of their classes in memory
            name, part = sys.intern(place.names[at]), layout.part(place.names)
            rows += [(os.path.join(place.inner, n), name, part) for n in tree.folders[place.inner]]
    notes += [*_left_out(every, layout), *_empty(every, layout), *_alike(every, layout)]
    notes += tree.notes()
    _must_train(folder, rows, notes)
    return Scan(rows, tuple(notes))


def unlabelled(folder: Path) -> Scan:
    """All images below ``folder`` as one class, whatever folders they lie in; reads no file."""
    tree = walk(folder)
    rows = [(path, UNLABELLED, "train") for path in tree.images()]
    if not rows:
        raise UserError("\n  ".join([f"{folder}: no image in it", *tree.notes()]))
    return Scan(rows, tuple(tree.notes()))


def part_of(name: str) -> str | None:
    """train, val or test if a folder's whole name is a spelling of it, such as ``Testing_set``."""
    part, rest = _part_and_rest(name)
    return part if part and not rest else None


def _part_and_rest(name: str) -> tuple[str, str]:
    """(part, rest of the name): ("train", "birds") for ``birds_Training``.

    The part is "" unless exactly one word of the name means a part.
    """
    tokens = [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+|\d+", name)]
    while tokens and tokens[0].isdecimal():  # 1_train, 2_test
        del tokens[0]
    found = [token for token in tokens if token in PARTS]
    rest = [token for token in tokens if token not in PARTS and token not in FILLERS]
    return (PARTS[found[0]] if len(found) == 1 else "", " ".join(rest))


def _name(piece: bytes) -> str:
    """The name of a folder as users see it: Unicode has two forms of ä, and copying adds spaces."""
    text = piece.decode(errors="backslashreplace")
    return class_name(text) or text


def _children(places: Iterable[Place], at: Names) -> dict[str, Counter[Names]]:
    """{folder directly in ``at``: {path below it: number of images}}; () is the folder itself."""
    found: dict[str, Counter[Names]] = defaultdict(Counter)
    for place in places:
        if place.names[: len(at)] == at and len(place.names) > len(at):
            found[place.names[len(at)]][place.names[len(at) + 1 :]] += place.images
    return found


def _layout(folder: Path, places: list[Place]) -> tuple[Layout, list[str]]:
    """How folders of images are read, and lines about what is unusual."""
    top: Names = ()
    # skip the folders around the set, but stop at one that is itself a part
    while name := _wrapper(_children(places, top)):
        if part_of(name) and not _complete(_groups(_children(places, (*top, name)))):
            break
        top += (name,)
    notes = [_passed(top)] if top else []
    children = _children(places, top)
    parts = _parts(folder, children, notes)
    if parts:
        inside = {name: _around(folder, places, (*top, name), parts) for name in parts}
        passed = [_passed((*top, name, *names)) for name, names in inside.items() if names]
        layout = Layout(top, parts, inside)
        for name, names in inside.items():
            passed += _nested(folder, _children(places, (*top, name, *names)), is_part=True)
        return layout, notes + passed
    if turned := _turned(folder, children):
        return Layout(top, turned, turned=True), [*notes, "each class holds its own parts"]
    return Layout(top), notes + _nested(folder, children, is_part=False)


def _passed(names: Names) -> str:
    return f"reading {'/'.join(names)}/, the only folder there that has images"


def _wrapper(children: dict[str, Counter[Names]]) -> str:
    """The name of the only folder, if its images lie in its subfolders; else ""."""
    only = next(iter(children), "")
    return only if len(children) == 1 and () not in children[only] else ""


def _groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """{rest of the name: {folder: part}} for the folders that are named like parts."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        part, rest = _part_and_rest(name)
        if part:
            found[rest][name] = part
    return found


def _complete(groups: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The groups with train and another part: only parts are named like that."""
    return {rest: g for rest, g in groups.items() if {"train"} < set(g.values())}


def _parts(
    folder: Path, children: dict[str, Counter[Names]], notes: list[str]
) -> dict[str, str] | None:
    """{folder: part}; None where folders are classes. Adds a line if that is not sure."""
    groups = _groups(children)
    complete = _complete(groups)
    if len(complete) > 1 and "" not in complete:
        names = some(name for group in complete.values() for name in group)
        raise UserError(
            f"{folder}: it holds parts of {len(complete)} data sets ({names}); keep one"
        )
    found = groups.get("", {})
    if not complete and "train" in found.values():  # test1 beside train, as Kaggle names it
        named = {name: part for group in groups.values() for name, part in group.items()}
        found |= {name: part for name, part in named.items() if part != "train"}
    if complete and "" not in complete:
        found = next(iter(complete.values()))
    if not found:
        return None
    for part, count in Counter(found.values()).items():
        if count > 1:
            names = ", ".join(name for name in found if found[name] == part)
            raise UserError(
                f"{folder}: {count} folders are named like the part {part} ({names}); merge them "
                "into one, or move the others elsewhere"
            )
    others = {name: below.total() for name, below in children.items() if name not in found}
    known, rest = ", ".join(found), counted(Counter(others), "image")
    if "train" in found.values() and (len(found) > 1 or not others):
        return found
    if not others:
        raise UserError(
            f"{folder}: it holds {known} and no folder of training images; name the folder that "
            f"holds all parts, or {folder / known.split(', ')[0]} to cut parts from it"
        )
    if any(names for name in found for names in children[name]):
        raise UserError(
            f"{folder}: {known} holds folders, like a part, beside other folders ({rest}). If it "
            f"is a part, move the others elsewhere; if it is a class, {AS_CLASSES}"
        )
    notes.append(f"{known} is read as a class, like the folders beside it, not as a part")
    return None


def _around(folder: Path, places: list[Place], at: Names, parts: dict[str, str]) -> Names:
    """The folders around the classes of the part ``at``, such as train/images/CLASS.

    A folder that is one of several in another part is a class there, so it is one here too.
    """
    top, start = at[:-1], len(at)
    there = (_children(places, (*top, name)) for name in parts if name != at[-1])
    classes = {name for children in there if len(children) > 1 for name in children}
    while (name := _wrapper(_children(places, at))) and name not in classes:
        at += (name,)
    inner = _complete(_groups(_children(places, at)))
    if inner:
        raise UserError(
            f"{folder}: {'/'.join(at)} is a part, but holds parts itself "
            f"({some(n for group in inner.values() for n in group)}); keep one kind of them"
        )
    return at[start:]


def _turned(folder: Path, children: dict[str, Counter[Names]]) -> dict[str, str] | None:
    """{folder: part} where each class holds a folder for each part; None where they do not."""
    inner = {names[0] for below in children.values() for names in below if names}
    complete = _complete(_groups(inner))
    if not complete:
        return None
    found = {name: part for group in complete.values() for name, part in group.items()}
    below = [names for each in children.values() for names in each]
    if len(complete) == 1 and all(len(names) == 1 and names[0] in found for names in below):
        return found
    holders = [name for name, each in children.items() if any(n and n[0] in found for n in each)]
    raise UserError(
        f"{folder}: {some(holders)} {'hold' if len(holders) > 1 else 'holds'} parts "
        f"({some(sorted(found))}), as if each were a data set of its own: name one of them, or "
        f"{AS_CLASSES}"
    )


def _nested(folder: Path, children: dict[str, Counter[Names]], *, is_part: bool) -> list[str]:
    """A note if no class holds images itself; refuses what looks like several sets."""
    for name, below in children.items():
        again = {names[0] for names in below if names} & (children.keys() - {name})
        if len(again) > 1:
            raise UserError(
                f"{folder}: {name} holds folders named like those beside it "
                f"({some(sorted(again))}), as if it were a second copy of the set; move it "
                "elsewhere, or set path to it"
            )
    if len(children) < 2 or any(() in below for below in children.values()):
        return []
    inner = [{names[0] for names in below} for below in children.values()]
    common, every = set.intersection(*inner), set.union(*inner)
    names = some(sorted(common or every))
    if len(common) > 1 and 2 * len(common) >= len(every) and not is_part:
        raise UserError(
            f"{folder}: the folders {some(children)} all hold folders of the same names ({names}). "
            f"If those are the classes, name one of the folders around them; if not, {AS_CLASSES}"
        )
    return [
        f"the classes {some(children)} hold images in folders only ({names}); all of a class's "
        "folders count as that class"
    ]


def _left_out(every: list[Place], layout: Layout) -> list[str]:
    """Notes on the images outside all classes."""
    loose, beside = Counter[str](), Counter[str]()
    for place in every:
        if place.images and layout.class_at(place.names) is None:
            at = place.names[len(layout.top) :]
            is_beside = bool(layout.parts) and bool(at) and at[0] not in (layout.parts or {})
            known = beside if is_beside else loose
            known[f"in {'/'.join(place.names[: len(layout.top) + 1] or ['.'])}/"] += place.images
    lines = []
    if loose:
        lines.append(f"left out {counted(loose, 'image', ' outside all class folders')}")
    if beside:
        where = f" beside the parts {', '.join(layout.parts or ())}"
        lines.append(f"left out {counted(beside, 'image', where)}")
    return lines


def _empty(every: list[Place], layout: Layout) -> list[str]:
    """A note that names the folders of classes and parts without an image."""
    filled, found = set[Names](), dict[Names, None]()
    for place in every:
        at, after = layout.class_at(place.names), len(layout.top)
        if place.images:
            filled |= {place.names[:n] for n in range(len(place.names) + 1)}
        if at is not None:
            found[place.names[: at + 1 + layout.turned]] = None
        elif len(place.names) > after and part_of(place.names[after]):
            found[place.names[: after + 1]] = None
    names = ["/".join(names) for names in found if names not in filled]
    return [f"no image in the folder{'s' * (len(names) > 1)} {some(names)}"] if names else []


def _alike(every: list[Place], layout: Layout) -> list[str]:
    """Notes on folders that are one class, and on classes that may be meant as one."""
    spelled: dict[str, set[bytes]] = defaultdict(set)
    for place in every:
        at = layout.class_at(place.names)
        if at is not None and place.images:
            spelled[place.names[at]].add(pieces(place.inner)[at])
    same = [repr(name) for name, forms in spelled.items() if len(forms) > 1]
    lines = []
    if same:
        lines.append(
            "folders whose names differ only in spaces around them or in the Unicode form of a "
            f"letter are one class: {some(same)}"
        )
    if seldom := [name for name in spelled if name.casefold() in SELDOM]:
        lines.append(
            f"folders read as classes, though such names seldom mean one: {some(seldom)}; move "
            "away what is no class, such as masks, or list the images in manifest.csv"
        )
    return [*lines, *differ_in_case(spelled)]


def _must_train(folder: Path, rows: Rows, notes: list[str]) -> None:
    """Refuse a set that cannot be trained on; the error also lists the ``notes``."""
    seen = "".join(f"\n  {note}" for note in notes)
    names = dict.fromkeys(name for _, name, _ in rows)
    trained = {name for _, name, part in rows if part == "train"}
    if not rows:
        raise UserError(
            f"{folder}: no image in a folder named after its class; looked for CLASS/image and "
            "train/CLASS/image. Make a folder for each class, or list the images in manifest.csv, "
            "with the columns path and label. For a source without labels set labels: false in its "
            f"section of params.yaml{seen}"
        )
    if len(names) == 1:
        raise UserError(
            f"{folder}: all images ({len(rows):,}) are of one class, {next(iter(names))!r}; at "
            "least two classes are needed: name the folder that holds the folders of the "
            f"classes{seen}"
        )
    if untrained := [name for name in names if name not in trained]:
        first = next(path for path, name, _ in rows if name == untrained[0])
        raise UserError(
            f"{folder}: class {untrained[0]!r} has no training image ({printable(first)}); such "
            f"classes: {len(untrained)} of {len(names)}; classes with training images: "
            f"{some(sorted(trained))}{seen}"
        )
