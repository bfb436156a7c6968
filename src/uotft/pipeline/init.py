"""The command init: a preset and two sets of images -> a project with a DVC pipeline, anywhere.

Such a project has no src/ to depend on. So its dvc.yaml is the clone's with the folders, archives
or lists of images as dependencies in place of the code.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from string import Template

from uotft.core import config, dvc, environment, storage
from uotft.core.errors import UserError
from uotft.data import archives
from uotft.data.lists import LISTS

PRESETS = resources.files("uotft") / "presets"
ENDINGS = (*archives.SUFFIXES, *LISTS)
PAPERS_K = 100  # the paper keeps 100 of 1,000 source classes


def init(folder: Path, preset: str, source: str, target: str) -> str:
    """Write params.yaml, dvc.yaml and .gitignore into ``folder``; returns the target's name."""
    existing = [name for name in ("params.yaml", "dvc.yaml") if (folder / name).exists()]
    if existing:
        raise UserError(f"{folder / existing[0]} is there already: init wants a folder without it")
    paths = _images(source), _images(target)
    params = render(preset, folder, *paths)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # DVC's own message does not say why
        raise UserError(f"{folder}: Permission denied: init wants a folder that may be written")
    _init_dvc(folder)
    ignored = folder / ".gitignore"
    before = ignored.read_text(encoding="utf-8") if ignored.is_file() else ""
    storage.write_bytes(ignored, (before + _ignore()).encode())
    pipeline = PRESETS / "project" / "pipeline.yaml"  # not named dvc.yaml there: DVC would run it
    storage.write_bytes(folder / "dvc.yaml", pipeline.read_bytes())
    storage.write_bytes(folder / "params.yaml", params.encode())
    return names(folder, *paths)[1]


def project(here: Path, source: str, target: str) -> tuple[Path, str]:
    """The project on two sets of images below ``here``; made on the first call.

    Returns its folder and the target's name.
    """
    paths = _images(source), _images(target)
    folder = here / f"uotft-{_name(here / 'nowhere', paths[1])}"
    if not (folder / "params.yaml").exists():
        return folder, init(folder, "paper", source, target)
    params, wanted = config.load(folder), names(folder, *paths)
    for name, path in zip(wanted, paths, strict=True):
        if params.datasets.get(name, {}).get("path") != _path(folder, path):
            raise UserError(
                f"{folder / 'params.yaml'} is the project of other images: {path} is not the path "
                f"of a data set {name!r} there; remove it, or work inside {folder}"
            )
    return folder, wanted[1]


def render(preset: str, folder: Path, source: Path, target: Path) -> str:
    """The params.yaml of a preset, for two sets of images; paths are from ``folder``."""
    known = sorted(p.name[:-5] for p in PRESETS.iterdir() if p.name.endswith(".yaml"))
    if preset not in known:
        raise UserError(f"--preset: got {preset!r}; known are {', '.join(known)}")
    name_of_source, name_of_target = names(folder, source, target)
    values = {
        "source": name_of_source,
        "target": name_of_target,
        "source_path": _path(folder, source),
        "target_path": _path(folder, target),
        "top_k": PAPERS_K if _classes(source) > PAPERS_K else "auto",
    }
    text = (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")
    return Template(text).substitute({k: json.dumps(v) for k, v in values.items()})


def names(folder: Path, source: Path, target: Path) -> tuple[str, str]:
    """Names of the two data sets: those of their folders, in letters that DVC allows for stages.

    They differ from all folders of the project, since `uotft data overlap` takes both kinds of
    name.
    """
    first, second = (_name(folder, path) for path in (source, target))
    return (first, second) if first != second else (f"{first}-source", second)


def _images(path: str) -> Path:
    """Where images are, as ``kind: folder`` reads them."""
    found = Path(path).expanduser()
    if not found.is_dir() and not (found.is_file() and found.name.lower().endswith(ENDINGS)):
        known = ", ".join(ENDINGS)
        raise UserError(f"{path}: no such folder of images, nor a file that ends in {known}")
    return found


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
    """A path relative to ``folder`` if it is below, so that the project may move; else absolute."""
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


def _init_dvc(folder: Path) -> None:
    """Make ``folder`` a DVC repository, inside the git repository around it or without git."""
    if (folder / ".dvc").is_dir():
        return
    git = ["git", "rev-parse", "--show-prefix"]
    found = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=False)
    mode = ["--no-scm"] if found.returncode else ["--subdir"] if found.stdout.strip() else []
    # also for `dvc` typed by hand: no calls home, and indexes where strangers cannot write
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
