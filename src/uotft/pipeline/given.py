"""What a user names as a source or a target: a public set, ImageNet by class, or images of his own.

uotft train --dataset dogs
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from uotft.core import registry, user_settings
from uotft.core.errors import UserError
from uotft.data import archives
from uotft.data.archives import card_of
from uotft.data.files import is_image
from uotft.data.lists import LISTS
from uotft.data.walk import TABLES, is_junk

PRESETS = resources.files("uotft") / "presets"
ENDINGS = (*archives.SUFFIXES, *LISTS)
IMAGENET = "imagenet"
DOWNLOADS = "downloads"  # beside the projects, which share what is in it
LISTED = f"selected/{IMAGENET}.json"  # in a project: the classes of ImageNet that it needs


@dataclass(frozen=True)
class Given:
    """A set of images: its ``name``, its ``section`` of params.yaml without how it is seen.

    ``path`` is the user's own folder, archive or list; None for a public set.
    """

    name: str
    section: dict[str, Any]
    path: Path | None = None

    @property
    def by_class(self) -> bool:
        """Whether its images are fetched once classes have been selected."""
        module = registry.load("datasets", self.section["kind"], "data set")
        return getattr(module, "BY_CLASS", False)

    @property
    def labelled(self) -> bool:
        """Whether its images have labels."""
        return bool(self.section.get("labels", True))


def public() -> list[str]:
    """The public sets that can be a target, by name."""
    found = (name for name in registry.names("datasets") if name != IMAGENET)
    return [n for n in found if card_of(registry.load("datasets", n, "data set"))]


def images(text: str, home: Path, folder: Path) -> Given:
    """What ``text`` names; raises `UserError` if it is nothing, or two things.

    Public sets lie in ``home``/downloads, and ``folder`` is the project that uses them.
    """
    path = Path(text).expanduser()
    if text in (*public(), IMAGENET):
        if path.exists():
            raise UserError(
                f"{text}: this is a public set and also {path.absolute()}: write ./{text} for your "
                f"own images, or give the command in a folder without a {text}"
            )
        return _imagenet(home, folder) if text == IMAGENET else _public(text, home, folder)
    if not path.is_dir() and not (path.is_file() and path.name.lower().endswith(ENDINGS)):
        raise UserError(
            f"{text}: no such folder of images, nor a file that ends in {', '.join(ENDINGS)}, nor "
            f"a public set ({', '.join(public())})"
        )
    return Given(name_of(folder, path), {"kind": "folder", "path": shown(folder, path)}, path)


def unlabelled(source: Given) -> Given:
    """The same, as a set without labels if its pictures lie directly in one folder."""
    if source.path is None or not source.path.is_dir():
        return source
    with os.scandir(source.path) as found:
        entries = [entry for entry in found if not is_junk(os.fsencode(entry.name))]
    flat = any(is_image(entry.name) for entry in entries)
    others = (e for e in entries if e.is_dir() or Path(e.name).suffix.lower() in TABLES)
    if not flat or any(others):  # a table may hold the labels
        return source
    return replace(source, section={**source.section, "labels": False})


def _public(name: str, home: Path, folder: Path) -> Given:
    return Given(name, {"kind": name, "path": shown(folder, home / DOWNLOADS / name)})


def _imagenet(home: Path, folder: Path) -> Given:
    """ImageNet by class, in the copy that the user has named once, or where its classes go."""
    known = user_settings.load().imagenet
    place = Path(known) if known else home / DOWNLOADS / IMAGENET
    section = {"kind": "imagenet_classes", "path": LISTED, "images": shown(folder, place)}
    return Given(IMAGENET, section)


def shown(folder: Path, path: Path) -> str:
    """A path for params.yaml: relative to ``folder`` if it is below or beside it, else absolute."""
    here, there = folder.resolve(), path.resolve()
    if there.is_relative_to(here):
        return str(there.relative_to(here))
    if there.is_relative_to(here.parent / DOWNLOADS):  # all of it can move together
        return os.path.relpath(there, here)
    return str(there)


def name_of(folder: Path, path: Path) -> str:
    """The name of a folder, or of an archive or list without its ending, as DVC allows it.

    It differs from all folders of the project, since `uotft data overlap` accepts the name of a
    data set and that of a folder.
    """
    name = path.resolve().name
    known = ENDINGS if path.is_file() else ()
    stem = next((name[: -len(end)] for end in known if name.lower().endswith(end)), name)
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "images"
    taken = f"/{made}/\n" in ignored() or (folder / made).exists()
    return f"{made}-images" if taken else made


def ignored() -> str:
    """The content of .gitignore: all that the pipeline makes."""
    return (PRESETS / "project" / "gitignore").read_text(encoding="utf-8")
