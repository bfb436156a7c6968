"""The content of a folder: its images, folder by folder, and a count of every other file.

Hidden files and folders are left out, and so are those that systems and tools leave behind. Links
to folders are followed, but no folder is read twice: a link to a folder above it, or to one that
was read already, is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from uotft.core.errors import UserError
from uotft.core.text import counted, plural, some
from uotft.data.files import is_image, printable

#: Made by macOS, Windows, Linux, Synology, QNAP and Python; in lower case. Names that start with a
#: dot (.DS_Store, .ipynb_checkpoints, .thumbnails, ._1.jpg) are hidden and left out as well.
SYSTEM = {
    "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "__macosx", "icon\r", "lost+found", "#recycle", "#snapshot", "@eadir", "@tmp", "@recycle",
    "@recently-snapshot", "__pycache__",
}  # fmt: skip
#: Pictures that Pillow does not read; a note advises to convert them.
CONVERT = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}
TABLES = {".csv", ".tsv", ".parquet", ".xlsx", ".jsonl"}  # endings of what may be a list of labels


@dataclass
class Tree:
    """What `walk` found: ``folders`` is {path from the top: names of its images}, by path.

    A folder's own images come before those of its subfolders. The other fields hold what is left
    out. ``other`` counts files by ending; ``lists`` names those of them that may list labels.
    ``hidden`` counts the files below each hidden or system name. ``linked`` are links to folders
    that were read already, ``strange`` are broken links and special files.
    """

    folders: dict[bytes, list[bytes]] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    lists: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    linked: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def images(self) -> Iterator[bytes]:
        """The image files as paths from the top, folder by folder, by name."""
        for inner, names in self.folders.items():
            for name in names:
                yield os.path.join(inner, name)

    def notes(self) -> list[str]:
        """A line for each kind of file or folder that is left out."""
        lines = []
        if self.other:
            pictures = [f"{end} (convert to .jpg)" for end in self.other if end in CONVERT]
            also = f"; pictures that Pillow cannot read: {some(pictures)}" if pictures else ""
            lines.append(f"left out {counted(self.other, 'non-image file')}{also}")
        if self.lists:
            lines.append(
                f"lists that are not read, because the folders give classes and parts: "
                f"{some(self.lists)}; to read one, set path to it: a CSV or Parquet file with the "
                "columns path, label and, optionally, split"
            )
        if self.hidden:
            lines.append(f"left out {counted(self.hidden, 'hidden or system file')}")
        if self.linked:
            what = plural(len(self.linked), "link")
            lines.append(f"left out {what} to folders that were read already: {some(self.linked)}")
        if self.strange:
            what = plural(len(self.strange), "broken link")
            lines.append(f"left out {what} or special files: {some(self.strange)}")
        return lines


def walk(top: Path) -> Tree:
    """Read all folders below ``top``, but no file. Raises `UserError` for an unreadable folder."""
    tree, seen, links = Tree(), set[tuple[int, int]](), list[bytes]()
    waiting = [b""]
    # links come last: a class is named after its real folder, not an alias that sorts before it
    while waiting or links:
        inner = waiting.pop() if waiting else links.pop(0)
        here = os.path.join(os.fsencode(top), inner)
        try:
            facts = os.stat(here)
            if (facts.st_dev, facts.st_ino) in seen or _leads_up(here):
                tree.linked.append(printable(inner))
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{printable(here).rstrip('/')}: {error.strerror}") from error
        tree.folders[inner] = []
        folders = _sort(entries, inner, tree, links)
        waiting += [os.path.join(inner, name) for name in reversed(folders)]
    tree.folders = dict(sorted(tree.folders.items(), key=lambda item: pieces(item[0])))
    return tree


def below(top: Path) -> Iterator[bytes]:
    """The image files below ``top``, as paths relative to it, folder by folder, by name."""
    return walk(top).images()


def pieces(inner: bytes) -> tuple[bytes, ...]:
    """The names of the folders along a path from the top; () for the top itself."""
    return tuple(inner.split(b"/")) if inner else ()


def is_junk(name: bytes) -> bool:
    """Whether a name is hidden, or one that systems and tools leave behind."""
    return name.startswith(b".") or printable(name).lower() in SYSTEM


def _sort(
    entries: list[os.DirEntry[bytes]], inner: bytes, tree: Tree, links: list[bytes]
) -> list[bytes]:
    """Put the entries of a folder into ``tree`` and ``links``; returns the folders to read."""
    folders = []
    for entry in entries:
        path = os.path.join(inner, entry.name)
        if is_junk(entry.name):
            key = "._*" if entry.name.startswith(b"._") else printable(entry.name)
            tree.hidden[key] += _files(entry)
        elif entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        elif os.path.isdir(entry.path):
            links.append(path)
        elif not os.path.isfile(entry.path) if entry.is_symlink() else not entry.is_file():
            tree.strange.append(printable(path))
        elif is_image(printable(entry.name)):
            tree.folders[inner].append(entry.name)
        else:
            ending = os.path.splitext(printable(entry.name))[1].lower()
            tree.other[ending or "without an ending"] += 1
            if ending in TABLES:
                tree.lists.append(printable(path))
    return folders


def _files(entry: os.DirEntry[bytes]) -> int:
    """The number of files below an entry, 1 for a file; an unreadable folder counts as empty."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))


def _leads_up(path: bytes) -> bool:
    """Whether ``path`` is a link to a folder that it lies in, at any depth."""
    if not os.path.islink(path):
        return False
    target, place = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([target, place]) == target
