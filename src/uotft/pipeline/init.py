"""The command init: a preset and two sets of images -> a project with a DVC pipeline, anywhere.

Such a project has no src/ to depend on. So its dvc.yaml is that of the clone, but its stages depend
on folders, archives or lists of images in place of the code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml
from PIL import Image

from uotft.core import config, dvc, environment, storage
from uotft.core.errors import UserError
from uotft.core.records import Progress, silently
from uotft.data import archives
from uotft.data.datasets import folder as folder_kind
from uotft.data.lists import LISTS

PRESETS = resources.files("uotft") / "presets"
ENDINGS = (*archives.SUFFIXES, *LISTS)
PAPERS_K = 100  # the paper keeps 100 of 1,000 source classes
SHARED = ".."  # the tracking store of the projects that `uotft train --source` makes side by side
SEEN = 20  # about so many pictures of a set are opened for their size and colours
DETAIL = 64  # pixels a side below which photographs are hard to recognise
GREY = {"1", "L", "LA", "I", "I;16", "F"}  # Pillow's modes without colour

logger = logging.getLogger(__name__)


def init(
    folder: Path,
    preset: str,
    source: str,
    target: str,
    progress: Progress = silently,
    tracking: str = ".",
) -> str:
    """Write params.yaml, dvc.yaml and .gitignore into ``folder``; returns the target's name.

    Checks the images first, as `uotft prepare` will. Raises `UserError` for those it would refuse.
    """
    existing = [name for name in ("params.yaml", "dvc.yaml") if (folder / name).exists()]
    if existing:
        raise UserError(f"{folder / existing[0]} is there already: init needs a folder without it")
    paths = _images(source), _images(target)
    params = render(preset, folder, *paths, tracking)
    looks = [_look_at(path, progress) for path in paths]
    _note(looks, names(folder, *paths), yaml.safe_load(params))
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # DVC's own message does not say why
        raise UserError(f"{folder}: Permission denied: init needs a folder that it may write to")
    is_new = not (folder / ".dvc").is_dir()
    _init_dvc(folder)
    if is_new:
        _unstage(folder)
    ignored = folder / ".gitignore"
    before = ignored.read_text(encoding="utf-8") if ignored.is_file() else ""
    storage.write_bytes(ignored, (before + _ignore()).encode())
    pipeline = (
        PRESETS / "project" / "pipeline.yaml"
    )  # not named dvc.yaml in presets/, or DVC would run it
    storage.write_bytes(folder / "dvc.yaml", pipeline.read_bytes())
    storage.write_bytes(folder / "params.yaml", params.encode())
    return names(folder, *paths)[1]


def project(
    here: Path, source: str, target: str, preset: str = "", progress: Progress = silently
) -> tuple[Path, str]:
    """The project on two sets of images, below ``here``; the first call makes it.

    A ``preset``, by default the paper's, replaces another one unless somebody has edited it.
    Returns the project's folder and the target's name.
    """
    paths = _images(source), _images(target)
    folder = here / f"uotft-{_name(here / 'nowhere', paths[1])}"
    if not (folder / "params.yaml").exists():
        return folder, init(folder, preset or "paper", source, target, progress, SHARED)
    params, called = config.load(folder), names(folder, *paths)
    for name, path in zip(called, paths, strict=True):
        if params.datasets.get(name, {}).get("path") != _path(folder, path):
            raise UserError(
                f"{folder / 'params.yaml'} is the project of other images: {path} is not the path "
                f"of a data set {name!r} there; remove it, or work inside {folder}"
            )
    if preset:
        _choose(preset, folder, *paths)
    return folder, called[1]


def _choose(preset: str, folder: Path, source: Path, target: Path) -> None:
    """Give a project the settings of a preset, unless somebody has edited its params.yaml."""
    tracking = config.load(folder).tracking
    file, text = folder / "params.yaml", render(preset, folder, source, target, tracking)
    now = file.read_text(encoding="utf-8")
    if now == text:
        return
    if now in (render(other, folder, source, target, tracking) for other in presets()):
        storage.write_bytes(file, text.encode())
        logger.info("%s now has the settings of --preset %s", file, preset)
    elif yaml.safe_load(text)["backbone"]["name"] != config.load(folder).backbone["name"]:
        raise UserError(
            f"{file} has been edited and differs from --preset {preset}: leave out --preset to use "
            f"the edited settings, or remove {file} to start from the preset's"
        )


def presets() -> list[str]:
    """The names that --preset takes."""
    return sorted(p.name[:-5] for p in PRESETS.iterdir() if p.name.endswith(".yaml"))


def render(preset: str, folder: Path, source: Path, target: Path, tracking: str = ".") -> str:
    """The text of a preset's params.yaml for two sets of images; paths start at ``folder``."""
    if preset not in presets():
        raise UserError(f"--preset: got {preset!r}; known are {', '.join(presets())}")
    name_of_source, name_of_target = names(folder, source, target)
    values = {
        "source": name_of_source,
        "target": name_of_target,
        "source_path": _path(folder, source),
        "target_path": _path(folder, target),
        "tracking": tracking,
        "top_k": PAPERS_K if _classes(source) > PAPERS_K else "auto",
    }
    text = (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")
    return Template(text).substitute({k: json.dumps(v) for k, v in values.items()})


def names(folder: Path, source: Path, target: Path) -> tuple[str, str]:
    """Names of the two data sets: those of their folders, in characters that DVC allows.

    They differ from all folders of the project, since `uotft data overlap` accepts the name of a
    data set and that of a folder.
    """
    first, second = (_name(folder, path) for path in (source, target))
    return (first, second) if first != second else (f"{first}-source", second)


def _images(path: str) -> Path:
    """The path of a set of images, if ``kind: folder`` can read it."""
    found = Path(path).expanduser()
    if not found.is_dir() and not (found.is_file() and found.name.lower().endswith(ENDINGS)):
        known = ", ".join(ENDINGS)
        raise UserError(f"{path}: no such folder of images, nor a file that ends in {known}")
    return found


@dataclass(frozen=True)
class _Look:
    """A set of images at a glance; sides and colours are those of a sample."""

    classes: int
    images: int
    sides: list[int]
    grey: bool

    def __str__(self) -> str:
        kind = "grey" if self.grey else "in colour"
        sides = " to ".join(str(side) for side in sorted({min(self.sides), max(self.sides)}))
        return f"{self.classes} classes, {self.images} images {kind}, {sides} pixels a side"


def _look_at(path: Path, progress: Progress) -> _Look | None:
    """Refuse images that make no data set of ``kind: folder``.

    An archive is not unpacked for that (None): the first stage, prepare, says what is wrong there.
    """
    if path.is_file() and not path.name.lower().endswith(LISTS):
        return None
    settings = folder_kind.Settings(path=str(path.resolve()))
    listed = folder_kind.found(settings, progress, Path())
    listed.must_be_there()
    for note in listed.notes:
        logger.warning("%s: %s", path, note)
    folder, rows = listed.folder, listed.rows
    classes = {name for _, name, part in rows if part == "train"}
    if len(classes) == 1:
        raise UserError(
            f"{path}: all training images are of one class, {min(classes)!r}; at least two "
            "classes are needed, each in a folder of its own"
        )
    sides, modes = [], set()
    for image, _, _ in rows[:: max(1, len(rows) // SEEN)]:
        with suppress(Exception), Image.open(os.fsencode(folder) + b"/" + image) as picture:
            sides.append(min(picture.size))  # from the file's header; prepare reads the rest
            modes.add(picture.mode)
    return _Look(len(classes), len(rows), sides, bool(modes) and modes <= GREY)


def _note(looks: list[_Look | None], called: tuple[str, str], params: dict[str, Any]) -> None:
    """Log what the two sets are, how the network will see them, and what does not match."""
    for name, look in zip(called, looks, strict=True):
        if look and look.sides:
            logger.info("%s: %s", name, look)
    sizes = {name: params["datasets"][name]["size"] for name in called}
    logger.info("the network sees each picture at %s pixels a side (datasets.NAME.size), in colour",
                " and ".join(str(size) for size in dict.fromkeys(sizes.values())))  # fmt: skip
    source, target = looks
    if source and target and source.grey != target.grey:
        grey, colour = called if source.grey else called[::-1]
        logger.warning("%s is grey and %s in colour: what is learned on one may be of little use "
                       "for the other", grey, colour)  # fmt: skip
    for name, look in zip(called, looks, strict=True):
        if look and look.sides and (line := _scale(look.sides, sizes[name])):
            logger.warning("%s: %s", name, line)


def _scale(sides: list[int], size: int) -> str:
    """A note if pictures of these ``sides`` are much smaller or larger than ``size``."""
    change = "size and stored in params.yaml, the same in both sets"
    if 2 * max(sides) < size:
        return (
            f"pictures of {max(sides)} pixels a side are enlarged to {size}; use --preset small, "
            f"or lower {change}"
        )
    if size < DETAIL and min(sides) >= 3 * size:
        return (
            f"pictures of {min(sides)} pixels a side are shrunk to {size}, which is fast but loses "
            f"detail; to keep more, raise {change}"
        )
    return ""


def _stem(path: Path) -> str:
    """The name of a folder, or of an archive or list without its ending."""
    name = path.resolve().name
    known = ENDINGS if path.is_file() else ()
    return next((name[: -len(end)] for end in known if name.lower().endswith(end)), name)


def _name(folder: Path, path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", _stem(path)).strip("-") or "images"
    taken = f"/{name}/\n" in _ignore() or (folder / name).exists()
    return f"{name}-images" if taken else name


def _path(folder: Path, path: Path) -> str:
    """A path relative to ``folder`` if it is below, so that the project can move; else absolute."""
    here, there = folder.resolve(), path.resolve()
    return str(there.relative_to(here) if there.is_relative_to(here) else there)


def _classes(path: Path) -> int:
    """How many classes a folder of images seems to have; 0 for an archive or a list."""
    train = path / "train"
    inside = train if train.is_dir() else path
    return sum(inner.is_dir() for inner in inside.iterdir()) if path.is_dir() else 0


def _ignore() -> str:
    """The content of .gitignore: all that the pipeline makes."""
    return (PRESETS / "project" / "gitignore").read_text(encoding="utf-8")


def _unstage(folder: Path) -> None:
    """Unstage what `dvc init` added to git's index: what to commit is up to the user."""
    command = ["git", "reset", "--quiet", "--", ".dvc", ".dvcignore"]
    subprocess.run(
        command, cwd=folder, capture_output=True, check=False
    )  # may fail: there may be no git


def _init_dvc(folder: Path) -> None:
    """Make ``folder`` a DVC repository, inside the git repository around it or without git."""
    if (folder / ".dvc").is_dir():
        return
    git = ["git", "rev-parse", "--show-prefix"]
    found = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=False)
    mode = ["--no-scm"] if found.returncode else ["--subdir"] if found.stdout.strip() else []
    # also for `dvc` typed by hand: no telemetry, and indexes where other users cannot write
    settings = [
        ["core.analytics", "false"],
        ["core.check_update", "false"],
        ["--local", "core.site_cache_dir", str(dvc.index_place(folder))],
    ]
    for command in (["init", "--quiet", *mode], *(["config", *each] for each in settings)):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=folder,
            env=environment.child({"DVC_NO_ANALYTICS": "1"}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"{folder}: dvc {' '.join(command)} failed: {done.stderr.strip()}")
    dvc.keep_indexes_apart(folder)
