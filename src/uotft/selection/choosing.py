"""Selection: scores the source units, chooses K, keeps the best, and records why.

Units are classes, clusters or single images (``select.unit``).

uotft select --source-bank S.npz --target-bank T.npz --output selection.json
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import paths, registry
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Selection
from uotft.core.settings import Select
from uotft.selection import banks, ranking
from uotft.selection.transport.iteration import NotConverged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A request for a selection: ``strategy`` with its ``settings``; ``select`` says how many.

    With ``top_k: auto`` K comes from the plan of the strategy uot, with the settings ``uot``.
    Relative paths in the settings start at ``folder``.
    """

    strategy: str
    settings: Any
    select: Select
    uot: Any
    seed: int
    folder: Path = Path()


def choose(source: ClassBank, target: ClassBank, request: Request) -> Selection:
    """Score the units of ``source`` and keep the best.

    A ``UserError`` if the banks are of different backbones, if ``max_per_class`` has no labels to
    count by, or if no unit is kept.
    """
    banks.same_backbone(source, target)
    strategy, wanted = request.strategy, request.select
    module = registry.load("strategies", strategy, "strategy")
    scores = module.score(
        source, target, paths.with_files(request.settings, request.folder), request.seed
    )
    top_k, rule = wanted.top_k, {}
    decides = ignores_k(strategy)
    if top_k == "auto" and not decides:
        plan = scores
        if strategy != "uot":  # other strategies have no plan, so they take K from uot's
            uot = registry.load("strategies", "uot", "strategy")
            plan = uot.score(source, target, request.uot, request.seed)
        top_k = ranking.carriers(plan, source.names, wanted.mass_share)
        rule = {"top_k_rule": f"carries {wanted.mass_share:g} of the transported mass"}
    groups = source.labels if wanted.max_per_class else ()
    if wanted.max_per_class and len(groups) != len(source.names):
        raise UserError(
            f"select.max_per_class: got {wanted.max_per_class}, but {source.file or 'the source'} "
            "has no array 'labels' with the class of each row: add it, or drop max_per_class"
        )
    most = len(source.names) if decides else int(top_k)
    kept = ranking.keep(scores, source.names, most, groups, wanted.max_per_class)
    if not len(kept) and strategy != "none":
        raise UserError(
            f"the strategy {strategy!r} keeps no class: check its settings under selectors: in "
            "params.yaml"
        )
    return Selection(
        strategy=strategy,
        kept=kept,
        names=source.names,
        target_names=target.names,
        scores=scores,
        settings={
            **wanted.model_dump(),
            "top_k": None if decides else int(top_k),
            **rule,
            "seed": request.seed,
            **request.settings.model_dump(),
        },
        fingerprints={
            "source": banks.fingerprint(source),
            "target": banks.fingerprint(target),
        },
        labels=source.labels,
    )


def ignores_k(strategy: str) -> bool:
    """Whether a strategy itself decides how many units it keeps."""
    module = registry.load("strategies", strategy, "strategy")
    return bool(getattr(module.Settings, "IGNORES_K", False))


def expected(source: ClassBank, patterns: list[str], table: str) -> NDArray[np.int64]:
    """Rows of the source classes that match ``patterns``, by the rules of the strategy label."""
    if not patterns:
        return np.empty(0, np.int64)
    label = registry.load("strategies", "label", "strategy")
    settings = label.Settings(classes=patterns, table=table)
    try:
        scores = label.score(source, source, settings, 0)
    except UserError as error:
        raise UserError(f"--expect: {error}") from error
    return np.flatnonzero(scores.values > -np.inf)


def kept_by_name(strategy: str, settings: Any, names: tuple[str, ...], folder: Path) -> int:
    """The number of source classes that a strategy keeps which ignores K.

    Names and their number decide it, so no features are needed yet.
    """
    alike = ClassBank(np.eye(len(names)), names, np.ones(len(names), np.int64))
    module = registry.load("strategies", strategy, "strategy")
    scores = module.score(alike, alike, paths.with_files(settings, folder), 0)
    return int((scores.values > -np.inf).sum())


def recall_curve(
    source: ClassBank, target: ClassBank, uot: Any, found: NDArray[np.int64], top_k: int
) -> dict[float, float]:
    """{cost scale: percent of ``found`` among the best K}: figure 4a of Liu et al. (2022).

    A scale at which the user's solver does not converge is left out, with a warning.
    """
    module = registry.load("strategies", "uot", "strategy")
    curve = {}
    for scale in np.geomspace(1e-4, 10, 16).tolist():
        try:
            scores = module.score(source, target, uot.model_copy(update={"cost_scale": scale}), 0)
        except NotConverged as error:
            logger.warning("recall.png leaves out the cost scale %.2g: %s", scale, error)
            continue
        curve[scale] = ranking.recall(ranking.keep(scores, source.names, top_k), found)
    return curve
