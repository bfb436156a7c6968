"""The stage select: source units and target class means -> the units kept, with their scores.

`select` works on a workspace, `select_banks` on any two files of means, `select_means` on means
that are in memory; all choose alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, storage
from uotft.core.records import Cell, ClassBank, Selection
from uotft.selection import banks, choosing, ranking
from uotft.selection.choosing import Request

if TYPE_CHECKING:
    from uotft.pipeline.workspace import Workspace

IMAGENET = "imagenet:"  # before a backbone: the rows of its classifier, in place of a file


def select(ws: Workspace, cell: Cell) -> Selection:
    """Score the source units against one seed's target images, and keep the best K.

    Writes selection.json, and for a strategy with a transport plan also the plan and pictures.
    """
    from uotft.pipeline.readers import source_bank, target_bank  # banks from files do not need it

    request = Request(
        config.selector(ws.params, cell.strategy),
        config.selector_settings(ws.params, cell.strategy),
        ws.params.select,
        config.selector_settings(ws.params, "uot"),
        cell.seed,
        ws.root,
    )
    chosen = choosing.choose(source_bank(ws), target_bank(ws, cell.target, cell.seed), request)
    settings = {**chosen.settings, "subset": ws.params.subset.given}
    chosen = replace(chosen, strategy=cell.strategy, settings=settings)
    folder = ws.cell("selections", cell)
    if ws.overrides:
        ws.note_overrides()
    if chosen.scores.log_plan is not None:
        plan_KT = np.exp(chosen.scores.log_plan(chosen.kept)).astype(np.float32)
        storage.write_arrays(folder / "plan.npz", plan=plan_KT, kept=chosen.kept)
        write_pictures(folder, chosen)
    storage.write_json(folder / "selection.json", ranking.to_json(chosen))
    return chosen


@dataclass(frozen=True)
class BankFiles:
    """The paths of two files of class means, and of the selection.json to write."""

    source: str
    target: str
    output: str


@dataclass(frozen=True)
class Extras:
    """What to report beside a selection.

    ``explain`` adds to each class the target classes that it serves. ``expect`` holds patterns of
    names that should be kept, for the recall; they match as in the strategy `label`, with its
    ``table``. ``pictures`` is a folder for pictures; "" draws none.
    """

    explain: bool = False
    expect: tuple[str, ...] = ()
    table: str = ""
    pictures: str = ""


def bank_request(
    strategy: str, own: dict[str, Any], wanted: dict[str, Any], seed: int = 0
) -> Request:
    """A request from a user's settings.

    ``own`` are settings of the strategy, and ``wanted`` those of the section `select`, such as
    top_k. Raises `UserError` for a setting that does not exist or has a wrong value.
    """
    settings = config.strategy_settings(strategy, own)
    size = {"top_k": "auto", **({"unit": "image"} if wanted.get("max_per_class") else {}), **wanted}
    uot = settings if strategy == "uot" else config.strategy_settings("uot", {})
    return Request(strategy, settings, config.select_settings(size), uot, seed)


def select_banks(
    files: BankFiles,
    request: Request,
    extras: Extras = Extras(),  # noqa: B008  it is frozen
) -> tuple[Selection, str]:
    """`select_means` of two files of means."""
    source, target = banks.brought(files.source), banks.brought(files.target)
    return select_means(source, target, files.output, request, extras)


def select_means(
    source: ClassBank, target: ClassBank, output: str, request: Request, extras: Extras
) -> tuple[Selection, str]:
    """Select, and write selection.json if an ``output`` is named, and pictures if a folder is.

    Returns the selection, and a line on the recall of the expected classes ("" if none are).
    """
    chosen = choosing.choose(source, target, request)
    found = choosing.expected(source, [*extras.expect], extras.table)
    content, line = ranking.to_json(chosen), ""
    if len(found):
        recall = ranking.recall(chosen.kept, found)
        content["recall"] = {"expected": len(found), "percent": recall}
        line = f"recall of the {len(found)} expected: {recall:.2f} %"
    if extras.explain:
        for entry, served in zip(content["classes"], ranking.serves(chosen), strict=True):
            entry["serves"] = served
    if output:
        storage.write_json(Path(output), content)
    if extras.pictures:
        folder = Path(extras.pictures)
        write_pictures(folder, chosen, found if len(found) else None)
        if len(found) and request.strategy == "uot":
            from uotft.analysis import figures

            uot, kept = request.settings, len(chosen.kept)
            curve = choosing.recall_curve(source, target, uot, found, kept)
            picture = figures.recall_picture(curve, kept, uot.cost_scale)
            storage.write_bytes(folder / "recall.png", picture)
    return chosen, line


def write_pictures(folder: Path, chosen: Selection, found: NDArray[np.int64] | None = None) -> None:
    """Write similarity.png (figure 2b of the paper) and, if there is a transport plan, plan.png."""
    from uotft.analysis import figures  # imports matplotlib, which takes a second

    scores = chosen.scores
    picture = figures.similarity_picture(
        scores.values, chosen.kept, chosen.names, mass=scores.log_plan is not None, expected=found
    )
    storage.write_bytes(folder / "similarity.png", picture)
    if scores.log_plan is not None:
        names = tuple(chosen.names[row] for row in chosen.kept)
        picture = figures.plan_picture(
            np.exp(scores.log_plan(chosen.kept)), names, chosen.target_names
        )
        storage.write_bytes(folder / "plan.png", picture)
