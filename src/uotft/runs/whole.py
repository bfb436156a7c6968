"""From a name to a project whose training can begin: the plan, what is fetched, what is made.

uotft train --dataset dogs
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from uotft.core import config, user_settings
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.progress import track
from uotft.core.records import Cell
from uotft.core.settings import CONTROLS
from uotft.data import class_images
from uotft.pipeline import fetch, given, init
from uotft.pipeline.init import Wanted
from uotft.pipeline.workspace import Workspace
from uotft.runs import cells, plan
from uotft.runs.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """A training that a user asks for by names, in a project that need not be there.

    ``changes`` are settings in place of params.yaml's, SETTING=VALUE each.
    """

    dataset: str
    source: str
    preset: str
    backbone: str
    strategy: str
    seed: int
    changes: Sequence[str] = ()

    @cached_property
    def wanted(self) -> Wanted:
        """The project, below the folder that its neighbours share."""
        alone = self.preset == "small" and self.source == given.IMAGENET
        alone &= self.strategy in (config.NOTHING, *CONTROLS)
        here = (self.preset, self.source, self.dataset, home())
        wanted = Wanted(*here, self.backbone, alone=alone)
        init.check_weights(wanted)
        return wanted

    @cached_property
    def place(self) -> tuple[Path, str]:
        """The project's folder, and its name for the target."""
        return init.target_of(self.wanted)

    @property
    def cell(self) -> Cell:
        """The training, with the name of its target in the project."""
        return Cell(self.place[1], self.strategy, self.seed)

    def preview(self) -> Workspace:
        """The project as it will be; nothing is written."""
        return Workspace(self.place[0], config.checked(*init.settings(self.wanted)))


def order(
    cell: Cell, source: str, preset: str, backbone: str, changes: Sequence[str]
) -> Order | None:
    """What a user's names mean; None if the target has a section in the params.yaml around here.

    ``cell`` has what `section` found, if it found one. Raises `UserError` for what contradicts.
    """
    if source or not section(cell.target):
        whole = (source or given.IMAGENET, preset, backbone, cell.strategy, cell.seed)
        return Order(cell.target, *whole, tuple(changes))
    if preset or backbone:
        raise UserError(
            f"--preset, --backbone: {cell.target} has a section in params.yaml, where these are set"
        )
    return None


def section(dataset: str) -> str:
    """The data set of the params.yaml around the current folder that a user means, or "".

    It goes by its name, or by the path of its images. Raises `UserError` if the text means nothing
    else either.
    """
    file = Workspace.nearest() / "params.yaml"
    if not file.is_file():
        return ""
    params, path = config.load(file.parent), Path(dataset).expanduser()
    if dataset in params.datasets:
        return dataset
    for name in params.targets if path.exists() else ():
        images = params.datasets[name].get("path")
        if images and located(file.parent, images).resolve() == path.resolve():
            return name
    if not (dataset in given.public() or path.exists()):
        raise UserError(
            f"data set {dataset!r} has no section under datasets: in {file} (known are "
            f"{', '.join(sorted(params.datasets))}), is no public set ({', '.join(given.public())})"
            ", and no folder, archive or list of images is there"
        )
    return ""


def home() -> Path:
    """Where projects lie side by side: the current folder, or that of the project around it."""
    root = Workspace.nearest()
    if not (root / "params.yaml").is_file():
        return Path.cwd()
    return Workspace.find().tracking


def note_imagenet(path: Path, order: Order | None, *, remember: bool) -> None:
    """Check where ImageNet's images are, or are to be; ``remember`` it for this user.

    Without an ``order``, whose project `ready` brings up to date, the project around here gets it.
    Raises `UserError` for what is no place of them.
    """
    place = class_images.place(path.expanduser())
    if not remember:
        return
    user_settings.remember(imagenet=str(path.expanduser().absolute()))
    logger.info("--imagenet %s is remembered: %s of 1,000 classes are there", path,
                len(place.classes()))  # fmt: skip
    if not order:
        init.name_imagenet(Workspace.nearest())


def at(ws: Workspace, imagenet: Path | None) -> Workspace:
    """The workspace with ``imagenet`` as the user's copy, if its source comes by class."""
    source, sets = ws.params.source, ws.params.datasets
    if not imagenet or "images" not in sets[source]:
        return ws
    own = sets | {source: sets[source] | {"images": str(imagenet.expanduser().absolute())}}
    return replace(ws, params=ws.params.model_copy(update={"datasets": own}))


def ready(order: Order, show: Callable[[Plan], object], *, every: bool = False) -> Path:
    """Show the plan, check it, make the project, fetch what is published; the project's folder.

    The plan is of the training, or of ``every`` one of its target, that has no model yet. Raises
    `UserError` before anything is made if something that the plan needs cannot be had.
    """
    folder, cell = order.place[0], order.cell
    ws = order.preview().with_changes(order.changes)
    config.selector(ws.params, order.strategy)
    asked = cells.asked(ws, cell, every=every)
    if todo := [each for each in asked if not (ws.cell("models", each) / "model.json").is_file()]:
        found = plan.plan(ws, todo)
        show(found)
        plan.check(found, ws, todo)
    init.project(order.wanted, track)
    logger.info("in %s, with the settings of its params.yaml", folder)
    for dataset in (cell.target, *([] if ws.by_class else [ws.params.source])):
        for line in fetch.fetch(ws, dataset, None, track):
            logger.info(line)
    return folder
