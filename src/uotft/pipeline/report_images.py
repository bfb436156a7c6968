"""The images of a workspace, for the page of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uotft.analysis.gallery import Absent, Shown
from uotft.analysis.trials import Line
from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet
from uotft.pipeline import readers
from uotft.pipeline.readers import source_bank, source_images
from uotft.pipeline.workspace import Workspace
from uotft.selection.parts import members


@dataclass(frozen=True)
class WorkspaceImages:
    """`gallery.Images` from the files of ``ws``; without ``ws`` all images are absent."""

    ws: Workspace | None

    def examples(self, target: str, rows: list[Line], most: int) -> dict[str, list[Shown]] | Absent:
        """{label: its first ``most`` classes or kept units, in order}; ``target`` comes first.

        The labels are ``target`` and those of ``rows``. Each class or unit comes with its first
        training image. If a file is missing or made of other inputs, the result is `Absent`.
        """
        if self.ws is None:
            return Absent("there is no params.yaml here, so there are no images")
        try:
            return _examples(self.ws, target, rows, most)
        except UserError as error:
            return Absent(str(error))

    def tested(self, target: str, data: str, rows: NDArray[np.int64]) -> NDArray[np.uint8] | Absent:
        """The images (n, H, W) or (n, H, W, 3) in ``rows`` (n,) of data/TARGET.npz.

        They are absent unless the file has the SHA-256 ``data``, that of the file tested.
        """
        from uotft.models.inputs import Views

        if self.ws is None or not (path := self.ws.data(target)).is_file():
            return Absent(f"the images of {target} are not here")
        if storage.fingerprint(path) != data:
            return Absent(f"{path} is not the one that was tested")
        return Views(readers.images(self.ws, target), rows)[:]


def _examples(ws: Workspace, target: str, rows: list[Line], most: int) -> dict[str, list[Shown]]:
    made = storage.fingerprint(ws.embedding(ws.params.source))
    for row in rows:
        if row.first.selection["fingerprints"]["source"] != made:
            raise UserError(f"{row.label} selected from another source than the one here")
    images, bank = readers.images(ws, target), source_bank(ws)
    source = source_images(ws, bank)
    names = bank.labels if bank.unit == "image" else bank.names
    labels = images.labels[images.rows("train")]
    classes = np.unique(labels)[:most].tolist()
    found = {target: _first(images, labels, classes, images.names)}
    for row in rows:
        kept = [unit["row"] for unit in row.first.kept[:most]]
        found[row.label] = _first(source, members(bank, source), kept, names)
    return found


def _first(
    images: ImageSet, members: NDArray[np.int64], units: list[int], names: tuple[str, ...]
) -> list[Shown]:
    """The first training image of each of ``units``.

    ``members`` (n,) is the unit of each training image.
    """
    from uotft.models.inputs import Views

    found, first = np.unique(members, return_index=True)
    rows = images.rows("train")[first[np.searchsorted(found, units)]]
    views = Views(images, rows)[:]
    return [Shown(names[unit], image) for unit, image in zip(units, views, strict=True)]
