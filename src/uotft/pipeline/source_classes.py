"""The stage fetch: selections -> the images of the classes that they keep, of a source by class.

selected/SOURCE.json lists these classes; `prepare` of the source reads it. A class that is listed
stays, since a selection that was made by hand may need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Cell, Progress
from uotft.data import class_images, wordnet
from uotft.pipeline.fetch import bring_classes
from uotft.pipeline.workspace import Workspace


def fetch(ws: Workspace, progress: Progress, cells: Iterable[Cell] | None = None) -> Iterator[str]:
    """Bring the images of all classes that ``cells`` keep, by default all selections that exist.

    Yields lines for the user. Raises `UserError` if the source does not come by class, if
    ImageNet's terms have not been accepted, if a class cannot be had, or if the disk is too small.
    """
    if not ws.by_class:
        raise UserError(
            f"the source {ws.params.source} does not come by class, so selections bring no images "
            f"of it: `uotft data prepare {ws.params.source}` brings its images"
        )
    listed = listed_classes(ws)
    wanted = sorted({*listed, *_kept(ws, cells)})
    settings = config.dataset_settings(ws.params, ws.params.source)
    folder = Path(os.path.normpath(located(ws.root, settings.images)))  # without ..
    yield from bring_classes(ws.params.source, wanted, folder, progress)
    if wanted != listed or not _list(ws).is_file():
        storage.write_json(_list(ws), {"classes": wanted})
    yield f"{ws.params.source}: images of {len(wanted)} classes, in {folder}"


def listed_classes(ws: Workspace) -> list[str]:
    """The WordNet ids of the classes that the source has images of; none before any selection."""
    path = _list(ws)
    return class_images.listed(path) if path.is_file() else []


def _list(ws: Workspace) -> Path:
    settings = config.dataset_settings(ws.params, ws.params.source)
    return located(ws.root, settings.path)


def _kept(ws: Workspace, cells: Iterable[Cell] | None) -> set[str]:
    """The WordNet ids of the classes that selections keep."""
    if cells is None:
        files = sorted((ws.root / ws.variant / "selections").glob("*/*/*/selection.json"))
    else:
        files = [ws.cell("selections", cell) / "selection.json" for cell in cells]
    return {wnid for path in files for wnid in ids(storage.read_json(path))}


def ids(chosen: dict[str, Any]) -> set[str]:
    """The WordNet ids of the classes that a selection.json keeps."""
    return {wordnet.id_of(str(kept["name"])) for kept in chosen["classes"]}
