"""What lies below a folder: the images, folder by folder, and a count of every other file.

Files and folders that systems and tools leave, and all hidden ones, are left out. A link to a
folder is followed, but no folder is read twice: a link to a folder above, or to one that is in the
set already, is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from uotft.core.errors import UserError
from uotft.core.text import counted, plural, some
from uotft.data.files import is_image, shown

#: Made by macOS, Windows, Linux, Synology, QNAP and Python; in lower case. Names that start with a
#: dot (.DS_Store, .ipynb_checkpoints, .thumbnails, ._1.jpg) are hidden and left out as well.
SYSTEM = {
    "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "__macosx", "icon\r", "lost+found", "#recycle", "#snapshot", "@eadir", "@tmp", "@recycle",
    "@recently-snapshot", "__pycache__",
}  # fmt: skip
CONVERT = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}
TABLES = {".csv", ".tsv", ".parquet", ".xlsx", ".jsonl"}  # endings of what may be a list of labels


@dataclass
class Tree:
    """``folders``: {path from the top: names of its images}, in the order of their paths.

    A file stands before the folders beside it. The others are left out: ``other`` counts files by
    ending, ``lists`` names those of them that may list labels. ``hidden`` counts the files of each
    hidden or system name, ``linked`` are links to folders that are read already, ``strange`` links
    to nothing and what is no plain file.
    """

    folders: dict[bytes, list[bytes]] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    lists: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    linked: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """A line for each kind of thing that is left out."""
        lines = []
        if self.other:
            pictures = [f"{end} (convert to .jpg)" for end in self.other if end in CONVERT]
            also = f"; pictures that Pillow cannot read here: {some(pictures)}" if pictures else ""
            lines.append(f"left out {counted(self.other, 'file', ', no images')}{also}")
        if self.lists:
            lines.append(
                f"lists that are not read, since folders say the classes and parts: "
                f"{some(self.lists)}; to read one, name it as path: a CSV or Parquet file with the "
                "columns path, label and, if it says the parts, split"
            )
        if self.hidden:
            lines.append(f"left out {counted(self.hidden, 'hidden or system file')}")
        if self.linked:
            what = plural(len(self.linked), "link")
            lines.append(f"left out {what} to folders that are read already: {some(self.linked)}")
        if self.strange:
            what = plural(len(self.strange), "broken link")
            lines.append(f"left out {what} or special files: {some(self.strange)}")
        return lines


def walk(top: Path) -> Tree:
    """Read all folders below ``top``, and no file. Raises `UserError` for one that is closed."""
    tree, seen, links = Tree(), set[tuple[int, int]](), list[bytes]()
    waiting = [b""]
    # links last: the real folder of a class gives it its name, not an alias that sorts before it
    while waiting or links:
        inner = waiting.pop() if waiting else links.pop(0)
        here = os.path.join(os.fsencode(top), inner)
        try:
            facts = os.stat(here)
            if (facts.st_dev, facts.st_ino) in seen or _leads_up(here):
                tree.linked.append(shown(inner))
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{shown(here).rstrip('/')}: {error.strerror}") from error
        tree.folders[inner] = []
        folders = _sort(entries, inner, tree, links)
        waiting += [os.path.join(inner, name) for name in reversed(folders)]
    tree.folders = dict(sorted(tree.folders.items(), key=lambda item: pieces(item[0])))
    return tree


def below(top: Path) -> Iterator[bytes]:
    """The image files below ``top``, as paths from it, folder by folder in order of names."""
    for inner, names in walk(top).folders.items():
        for name in names:
            yield os.path.join(inner, name)


def pieces(inner: bytes) -> tuple[bytes, ...]:
    """The folders of a path from the top, which is the empty path."""
    return tuple(inner.split(b"/")) if inner else ()


def is_junk(name: bytes) -> bool:
    """Whether a name is hidden, or one that systems and tools give."""
    return name.startswith(b".") or shown(name).lower() in SYSTEM


def _sort(
    entries: list[os.DirEntry[bytes]], inner: bytes, tree: Tree, links: list[bytes]
) -> list[bytes]:
    """Put the entries of a folder into ``tree`` and ``links``; returns the folders to read."""
    folders = []
    for entry in entries:
        path = os.path.join(inner, entry.name)
        if is_junk(entry.name):
            key = "._*" if entry.name.startswith(b"._") else shown(entry.name)
            tree.hidden[key] += _files(entry)
        elif entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        elif os.path.isdir(entry.path):
            links.append(path)
        elif not os.path.isfile(entry.path) if entry.is_symlink() else not entry.is_file():
            tree.strange.append(shown(path))
        elif is_image(shown(entry.name)):
            tree.folders[inner].append(entry.name)
        else:
            ending = os.path.splitext(shown(entry.name))[1].lower()
            tree.other[ending or "without an ending"] += 1
            if ending in TABLES:
                tree.lists.append(shown(path))
    return folders


def _files(entry: os.DirEntry[bytes]) -> int:
    """How many files an entry is or holds; what may not be read counts as none."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))


def _leads_up(path: bytes) -> bool:
    """Whether ``path`` is a link to a folder that it lies in, at any depth."""
    if not os.path.islink(path):
        return False
    target, place = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([target, place]) == target
