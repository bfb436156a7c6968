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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import yaml
from PIL import Image

from uotft.core import config, dvc, environment, registry, storage, user_settings
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Progress, silently
from uotft.data.archives import card_of
from uotft.data.datasets import folder as folder_kind
from uotft.data.files import is_image
from uotft.data.lists import LISTS
from uotft.pipeline import given
from uotft.pipeline.compatible import brings_weights
from uotft.pipeline.given import Given
from uotft.selection.classifier import COST_SCALE

PRESETS = given.PRESETS
PAPERS_K = 100  # the paper keeps 100 of 1,000 source classes
SHARED = ".."  # the tracking store of the projects that `uotft train` makes side by side
PER_CLUSTER = 10  # images on average, of few images without labels
SEEN = 20  # about so many pictures of a set are opened for their size and colours
DETAIL = 64  # pixels a side below which photographs are hard to recognise
GREY = {"1", "L", "LA", "I", "I;16", "F"}  # Pillow's modes without colour

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a project is to be: a ``preset``, two sets of images, and what replaces the preset's.

    Without ``source`` it is ImageNet by class; ``alone`` then compares no strategy but none, for
    which no image of ImageNet is needed. ``home`` holds the downloads, and runs of its projects
    go to ``tracking``, as a project's params.yaml names it.
    """

    preset: str
    source: str
    target: str
    home: Path
    backbone: str = ""
    alone: bool = False
    tracking: str = "."


def init(folder: Path, wanted: Wanted, progress: Progress = silently) -> str:
    """Write params.yaml, dvc.yaml and .gitignore into ``folder``; returns the target's name.

    Checks the images first, as `uotft prepare` will. Raises `UserError` for those it would refuse.
    """
    existing = [name for name in ("params.yaml", "dvc.yaml") if (folder / name).exists()]
    if existing:
        raise UserError(f"{folder / existing[0]} is there already: init needs a folder without it")
    check_weights(wanted)
    sets = sets_of(wanted, folder)
    params = render(wanted, folder)
    if not (sets[0].labelled or brings_weights(yaml.safe_load(params)["backbone"])):
        raise UserError(
            f"{wanted.source}: its pictures lie in no folder of a class, and the network of "
            f"--preset {wanted.preset} learns classes first: put them into a folder for each "
            "class, or take --preset few or paper, whose network brings weights"
        )
    looks = [_look_at(each, progress) for each in sets]
    small = wanted.alone or (sets[0].labelled and not sets[0].by_class)
    _note(looks, tuple(each.name for each in sets), yaml.safe_load(params), small=small)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # DVC's own message does not say why
        raise UserError(f"{folder}: Permission denied: init needs a folder that it may write to")
    is_new = not (folder / ".dvc").is_dir()
    _init_dvc(folder)
    if is_new:
        _unstage(folder)
    ignored = folder / ".gitignore"
    before = ignored.read_text(encoding="utf-8") if ignored.is_file() else ""
    before += "\n" if before and not before.endswith("\n") else ""  # else its last rule is lost
    storage.write_bytes(ignored, (before + given.ignored()).encode())
    storage.write_bytes(folder / "dvc.yaml", pipeline(by_class=sets[0].by_class).encode())
    storage.write_bytes(folder / "params.yaml", params.encode())
    return sets[1].name


def check_weights(wanted: Wanted) -> None:
    """Refuse a network without weights where the source is ImageNet, here only class by class.

    Raises `UserError` unless the project is for the target alone.
    """
    option = f"--backbone {wanted.backbone}" if wanted.backbone else f"--preset {wanted.preset}"
    if wanted.alone or wanted.source != given.IMAGENET:
        return
    if wanted.backbone:
        refused = not brings_weights(config.backbone_section(wanted.backbone))
    else:
        refused = wanted.preset == "small"
    if refused:
        raise UserError(
            f"{option} trains its network on the source from nothing, for which ImageNet would "
            "have to be fetched whole: name a smaller source, --source FOLDER or a public set; or "
            "train on the target alone: `uotft train` with --strategy none or a control, `uotft "
            "init` without --source"
        )


def pipeline(*, by_class: bool) -> str:
    """The text of dvc.yaml; the source's images come after the selection if ``by_class``."""
    # not named dvc.yaml in presets/, or DVC would run it
    text = (PRESETS / "project" / "pipeline.yaml").read_text(encoding="utf-8")
    if not by_class:
        return text
    changes = yaml.safe_load((PRESETS / "project" / "by-class.yaml").read_text(encoding="utf-8"))
    whole = yaml.safe_load(text)
    whole["stages"] |= changes["stages"]
    made: str = yaml.safe_dump(whole, sort_keys=False)
    return "# Select from the weights alone, fetch the kept classes, then train.\n\n" + made


def target_of(wanted: Wanted) -> tuple[Path, str]:
    """The folder of the project below ``wanted.home``, and its name for the target."""
    name = given.images(wanted.target, wanted.home, wanted.home / "nowhere").name
    return wanted.home / f"uotft-{name}", name


def settings(wanted: Wanted) -> tuple[dict[str, Any], str]:
    """The settings that `project` would leave below ``wanted.home``, and their file."""
    folder, _ = target_of(wanted)
    file = folder / "params.yaml"
    text = _settled(wanted, folder) if file.exists() else render(_first(wanted), folder)
    return storage.from_yaml(text), str(file)


def project(wanted: Wanted, progress: Progress = silently) -> tuple[Path, str]:
    """The project on two sets of images, below ``wanted.home``; the first call makes it.

    A preset, by default the paper's, and a backbone replace others unless somebody has edited the
    file. Returns the project's folder and the target's name.
    """
    folder, name = target_of(wanted)
    file = folder / "params.yaml"
    if not file.exists():
        return folder, init(folder, _first(wanted), progress)
    text = _settled(wanted, folder)
    name_imagenet(folder)
    if file.read_text(encoding="utf-8") != text:
        storage.write_bytes(file, text.encode())
        logger.info("%s now has the settings of --preset %s", file, _first(wanted).preset)
    return folder, name


def _settled(wanted: Wanted, folder: Path) -> str:
    """The text that `project` leaves in a params.yaml; raises `UserError` for other images."""
    params = config.load(folder)
    first = replace(_first(wanted), tracking=params.tracking)
    for each in sets_of(first, folder):
        there = params.datasets.get(each.name, {})
        if any(there.get(key) != value for key, value in each.section.items() if key != "images"):
            raise UserError(
                f"{folder / 'params.yaml'} is the project of other images: {_where(each)} is not "
                f"the path of a data set {each.name!r} there; remove it, or work inside {folder}"
            )
    now = _with_imagenet(folder)
    return _chosen(first, folder, now) if wanted.preset or wanted.backbone else now


def _first(wanted: Wanted) -> Wanted:
    """What a project begins with where nothing else is said."""
    return replace(wanted, preset=wanted.preset or "paper", tracking=SHARED)


def name_imagenet(folder: Path) -> None:
    """Write into params.yaml where ImageNet lies, if the user has named another place since.

    Raises `UserError` if the file has the old place in a form that is not found.
    """
    if moved := _imagenet_moved(folder):
        file, (then, now) = folder / "params.yaml", moved
        storage.write_bytes(file, _with_imagenet(folder).encode())
        logger.info("%s: the place of ImageNet's images is %s now; it was %s", file, now, then)


def _with_imagenet(folder: Path) -> str:
    """The text that `name_imagenet` leaves in params.yaml."""
    file = folder / "params.yaml"
    text = file.read_text(encoding="utf-8")
    if not (moved := _imagenet_moved(folder)):
        return text
    then, now = moved
    written = "|".join(re.escape(form) for form in (json.dumps(then), f"'{then}'", then))
    line = re.compile(rf"(\bimages: *)(?:{written})(?=[,}}\s]|$)")
    text = line.sub(partial(_renamed, json.dumps(now)), text)
    raw = yaml.safe_load(text)
    if raw["datasets"][raw["source"]]["images"] != now:
        raise UserError(
            f"{file}: write {json.dumps(now)} as images in datasets.{raw['source']}, where "
            f"ImageNet is now; it has {then}"
        )
    return text


def _renamed(now: str, found: re.Match[str]) -> str:
    return f"{found[1]}{now}"


def _imagenet_moved(folder: Path) -> tuple[str, str] | None:
    """Where a project has ImageNet, and where the user has it now, if that is another place."""
    params, known = config.load(folder), user_settings.load().imagenet
    then = params.datasets[params.source].get("images")
    if not (known and then) or located(folder, then) == Path(known):
        return None
    now = given.shown(folder, Path(known))
    return (then, now) if then != now else None


def _where(each: Given) -> str:
    return str(each.path or each.section["path"])


def _chosen(wanted: Wanted, folder: Path, now: str) -> str:
    """The text of other settings for a project, or ``now`` if somebody has edited that."""
    file, source = folder / "params.yaml", sets_of(wanted, folder)[0].name
    cut_test = config.load(folder).datasets.get(source, {}).get("test") != 0
    text = render(wanted, folder, cut_test=cut_test)
    backbones = {"", wanted.backbone, _line(now, "backbone")}
    others = [
        replace(wanted, preset=preset, backbone=backbone, alone=alone)
        for preset in presets()
        for backbone in backbones
        for alone in (True, False)
    ]
    if now in (render(other, folder, cut_test=cut_test) for other in others):
        return text
    if storage.from_yaml(text)["backbone"] != config.load(folder).backbone:
        raise UserError(
            f"{file} has been edited and differs from --preset {wanted.preset}"
            f"{f' --backbone {wanted.backbone}' if wanted.backbone else ''}: leave these out to "
            f"use the edited settings, or remove {file} to start from the preset's"
        )
    return now


def presets() -> list[str]:
    """The names that --preset takes."""
    return sorted(p.name[:-5] for p in PRESETS.iterdir() if p.name.endswith(".yaml"))


def sets_of(wanted: Wanted, folder: Path) -> tuple[Given, Given]:
    """Source and target; two folders of the same name are told apart."""
    source = given.unlabelled(given.images(wanted.source or given.IMAGENET, wanted.home, folder))
    target = given.images(wanted.target, wanted.home, folder)
    if target.by_class:
        raise UserError(f"{wanted.target}: ImageNet by class can only be a source")
    if source.name == target.name:
        if source.path is None or source.path.resolve() == (target.path or Path()).resolve():
            raise UserError(f"{wanted.source}: the source is the target itself: name another one")
        source = replace(source, name=f"{source.name}-source")
    return source, target


def render(wanted: Wanted, folder: Path, *, cut_test: bool = False) -> str:
    """The text of params.yaml for a project in ``folder``; paths start there.

    No test image of a source is read, so none is cut from its training images, but with
    ``cut_test``, as in projects of earlier versions.
    """
    if wanted.preset not in presets():
        raise UserError(f"--preset: got {wanted.preset!r}; known are {', '.join(presets())}")
    source, target = sets_of(wanted, folder)
    values = {
        "source": json.dumps(source.name),
        "target": json.dumps(target.name),
        "source_images": _inside(source.section) + ("" if cut_test else _uncut(source)),
        "target_images": _inside(target.section),
        "top_k": json.dumps(PAPERS_K if _classes(source) >= 2 * PAPERS_K else "auto"),
        "tracking": wanted.tracking,
    }
    text = (PRESETS / f"{wanted.preset}.yaml").read_text(encoding="utf-8")
    made = Template(text).substitute(values)
    changes = {}
    if wanted.backbone:
        section = wanted.backbone
        changes["backbone"] = (
            section if section.startswith("{") else _flow(config.backbone_section(section))
        )
    if source.by_class:
        # rows of a classifier have no lengths that compare with those of features
        changes |= {"source_means": "classifier", "  greedy_ot": "{metric: cosine}"}
        changes["  uot"] = _flow(yaml.safe_load(_line(made, "  uot")) | {"cost_scale": COST_SCALE})
    if not source.labelled:
        clusters = yaml.safe_load(_line(made, "cluster"))
        clusters["clusters"] = min(clusters["clusters"], max(2, _count(source) // PER_CLUSTER))
        changes |= {"  unit": "cluster", "  objective": "pseudo_label", "cluster": _flow(clusters)}
    if wanted.alone:
        changes["strategies"] = "[none]"
    for key, value in changes.items():
        made = re.sub(rf"^{key}: (\{{.*?\}}|\[.*?\]|\S+)", partial(_replaced, f"{key}: {value}"),
                      made, flags=re.MULTILINE)  # fmt: skip
    return made


def _uncut(source: Given) -> str:
    """What keeps all images of a user's own source that has no test part; one is not touched."""
    return ", test: 0" if source.section["kind"] == "folder" else ""


def _replaced(line: str, _: re.Match[str]) -> str:
    return line


def _inside(section: dict[str, str]) -> str:
    """A section as the inner part of a YAML mapping on one line."""
    return ", ".join(
        f"{key}: {value if key == 'kind' else json.dumps(value)}" for key, value in section.items()
    )


def _flow(section: dict[str, Any]) -> str:
    """A section as YAML on one line."""
    made: str = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=10**9)
    return made.strip()


def _line(text: str, key: str) -> str:
    """The value of a ``key`` of a params.yaml, with its indent, if it is a mapping on one line."""
    found = re.search(rf"^{key}: (\{{.*?\}})", text, re.MULTILINE)
    return found[1] if found else ""


@dataclass(frozen=True)
class _Look:
    """A set of images at a glance, 0 ``classes`` without labels; sides are those of a sample."""

    classes: int
    images: int
    sides: list[int]
    grey: bool

    def __str__(self) -> str:
        kind = "grey" if self.grey else "in colour"
        sides = " to ".join(str(side) for side in sorted({min(self.sides), max(self.sides)}))
        classes = f"{self.classes} classes" if self.classes else "no labels"
        return f"{classes}, {self.images} images {kind}, {sides} pixels a side"


def _look_at(images: Given, progress: Progress) -> _Look | None:
    """Refuse images that make no data set of ``kind: folder``.

    An archive is not unpacked for that (None): the first stage, prepare, says what is wrong there.
    Nor is a public set looked at, which may still have to be fetched.
    """
    path = images.path
    if path is None or path.is_file() and not path.name.lower().endswith(LISTS):
        return None
    settings = folder_kind.Settings(path=str(path.resolve()), labels=images.labelled)
    listed = folder_kind.found(settings, progress, Path())
    listed.must_be_there()
    for note in listed.notes:
        logger.warning("%s: %s", path, note)
    folder, rows = listed.folder, listed.rows
    classes = {name for _, name, part in rows if part == "train"}
    if len(classes) == 1 and images.labelled:
        raise UserError(
            f"{path}: all training images are of one class, {min(classes)!r}; at least two "
            "classes are needed, each in a folder of its own (a source without labels: all "
            "pictures directly in the folder)"
        )
    sides, modes = [], set()
    for image, _, _ in rows[:: max(1, len(rows) // SEEN)]:
        with suppress(Exception), Image.open(os.path.join(os.fsencode(folder), image)) as picture:
            sides.append(min(picture.size))  # from the file's header; prepare reads the rest
            modes.add(picture.mode)
    return _Look(len(classes) * images.labelled, len(rows), sides, bool(modes) and modes <= GREY)


def _note(
    looks: list[_Look | None], called: tuple[str, ...], params: dict[str, Any], *, small: bool
) -> None:
    """Log what the two sets are, how the network will see them, and what does not match.

    ``small`` tells whether the source can have the preset for small pictures.
    """
    for name, look in zip(called, looks, strict=True):
        if look and look.sides:
            logger.info("%s: %s", name, look)
        if look and not look.classes:
            logger.info("%s: its pictures lie in no folder of a class, so they are a source "
                        "without labels; uotft selects clusters of them", name)  # fmt: skip
    sizes = {name: params["datasets"][name]["size"] for name in called}
    logger.info("the network sees each picture at %s pixels a side (datasets.NAME.size), in colour",
                " and ".join(str(size) for size in dict.fromkeys(sizes.values())))  # fmt: skip
    source, target = looks
    if source and target and source.grey != target.grey:
        grey, colour = called if source.grey else called[::-1]
        logger.warning("%s is grey and %s in colour: what is learned on one may be of little use "
                       "for the other", grey, colour)  # fmt: skip
    advice = "use --preset small, or " if small else ""
    for name, look in zip(called, looks, strict=True):
        if look and look.sides and (line := _scale(look.sides, sizes[name], advice)):
            logger.warning("%s: %s", name, line)


def _scale(sides: list[int], size: int, small: str) -> str:
    """A note if pictures of these ``sides`` are much smaller or larger than ``size``.

    ``small`` advises the preset for small pictures, where the source can have it.
    """
    change = "size and stored in params.yaml, the same in both sets"
    if 2 * max(sides) < size:
        return (
            f"pictures of {max(sides)} pixels a side are enlarged to {size}; {small}lower {change}"
        )
    if size < DETAIL and min(sides) >= 3 * size:
        return (
            f"pictures of {min(sides)} pixels a side are shrunk to {size}, which is fast but loses "
            f"detail; to keep more, raise {change}"
        )
    return ""


def _count(images: Given) -> int:
    """How many pictures lie directly in a folder."""
    assert images.path is not None
    return sum(is_image(name) for name in os.listdir(images.path))


def _classes(images: Given) -> int:
    """How many classes a set seems to have; 0 for an archive or a list."""
    if images.by_class:
        return 1000
    if images.path is None:
        card = card_of(registry.load("datasets", images.name, "data set"))
        return card.classes if card else 0
    train = images.path / "train"
    inside = train if train.is_dir() else images.path
    return sum(inner.is_dir() for inner in inside.iterdir()) if images.path.is_dir() else 0


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
