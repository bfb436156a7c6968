"""Where the image files of a prepared data set lie on this machine.

DVC versions data/NAME.npz, but another machine may keep the images elsewhere. So the file stores a
path relative to something that each machine knows: ``path``, the place that the data set's section
in params.yaml names (as ``images``, where ``path`` is a list of classes), or ``project``, whose
cache/ holds unpacked archives. The SHA-256 of each
file, checked when it is read, shows that the images are the same.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from uotft.core import config, locks, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Files, ImageSet, silently
from uotft.data import archives
from uotft.data.archives import card_of
from uotft.data.lists import LISTS
from uotft.pipeline.workspace import Workspace

PATH, PROJECT = "path", "project"
UNPACKED = "cache/unpacked"
PATIENCE_S = 24 * 3600  # how long to wait for another process that unpacks the same archive


def write(ws: Workspace, dataset: str, images: ImageSet) -> None:
    """Write data/DATASET.npz: the same bytes for the same images on every machine."""
    if images.files is not None:
        root = _kept(ws, dataset, Path(images.files.root))
        images = replace(images, files=replace(images.files, root=root))
    storage.write_images(ws.data(dataset), images)


def read(ws: Workspace, dataset: str) -> ImageSet:
    """The set in data/DATASET.npz, with its files' place on this machine, even if absent."""
    images = storage.read_images(ws.data(dataset))
    if images.files is None:
        return images
    root = str(_found(ws, dataset, images.files.root))
    return replace(images, files=replace(images.files, root=root))


def are_absent(files: Files) -> bool:
    """Whether the images are absent, judging by the first, the middle and the last file.

    A set without any image lacks none.
    """
    names = files.archives if len(files.archives) else files.paths
    some = {0, len(names) // 2, len(names) - 1} if len(names) else set()
    return bool(some) and not any(
        os.path.exists(os.path.join(os.fsencode(files.root), names[i])) for i in some
    )


def bring(ws: Workspace, dataset: str) -> None:
    """Unpack a set's archive, as another machine did. Raises `UserError` if it is missing."""
    must_be_there(ws, dataset)
    module, settings = config.known_dataset(ws.params, dataset)
    lock = ws.root / "cache" / f".{dataset}.prepare.lock"
    with locks.waiting(lock, PATIENCE_S):
        if card := card_of(module):
            archives.unpacked(card, settings.path, ws.root, silently)
        else:
            module.found(settings, silently, ws.root)
        if hasattr(settings, "images"):
            raise UserError(
                f"{ws.data(dataset)} was made where the images lie in another form (folders, or "
                f"tars) than in {settings.images}: `uotft prepare --dataset {dataset}` makes it of "
                "what is here"
            )


def must_be_there(ws: Workspace, dataset: str) -> None:
    """Raise `UserError` if a set's ``path`` does not exist here; it says how to get the images."""
    module, settings = config.known_dataset(ws.params, dataset)
    key = "images" if hasattr(settings, "images") else "path"
    path = located(ws.root, getattr(settings, key))
    if path.exists():
        return
    tracked = path.with_name(f"{path.name}.dvc")
    if tracked.is_file():
        way = f"`dvc pull {tracked}` fetches it"
    elif key == "images" or card_of(module) or getattr(settings, "urls", None):
        way = f"`uotft data prepare {dataset}` fetches it"
    else:
        way = "put it there"
    raise UserError(
        f"{dataset}: its images are not on this machine: {path} is missing; {way}, or set {key} in "
        f"datasets.{dataset} of params.yaml to where they are"
    )


def _start(ws: Workspace, dataset: str) -> Path:
    """The folder that a section's ``path`` means: itself, a list's folder, or the unpacked set.

    For some of ImageNet's classes, the folder that ``images`` means.
    """
    module, settings = config.known_dataset(ws.params, dataset)
    if hasattr(settings, "images"):
        images = located(ws.root, settings.images).absolute()
        return images.parent if images.name.endswith(".tar") else images
    path = located(ws.root, settings.path).absolute()
    if card := card_of(module):
        return (archives.ready(card, path, ws.root) or path).absolute()
    return path.parent if path.name.lower().endswith(LISTS) and not path.is_dir() else path


def _kept(ws: Workspace, dataset: str, root: Path) -> str:
    """``root`` relative to the section's path, or to the project."""
    start = _start(ws, dataset)
    if not root.is_relative_to(start) and root.is_relative_to(ws.root.absolute()):
        return Path(PROJECT, root.relative_to(ws.root.absolute())).as_posix()
    return Path(PATH, os.path.relpath(root, start)).as_posix()


def _found(ws: Workspace, dataset: str, kept: str) -> Path:
    """The folder that ``_kept`` describes; also the absolute path of an earlier version."""
    start, (first, *inner) = _start(ws, dataset), Path(kept).parts
    if first == PROJECT:
        return ws.root.joinpath(*inner)
    if first == PATH:
        return start.joinpath(*inner)
    if Path(kept).is_dir():
        return Path(kept)
    _, unpacked, below = kept.partition(f"/{UNPACKED}/")
    if unpacked and (place := ws.root / UNPACKED / below).is_dir():
        return place
    ends = (start.joinpath(*inner[i:]) for i in range(len(inner)))
    return next((place for place in ends if place.is_dir()), start)
