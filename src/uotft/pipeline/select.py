"""The stage select: source units + target class means -> the units kept, with the reason.

`select` works on a workspace, `select_banks` on any two files of means; both choose alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.analysis import figures
from uotft.core import config, registry, storage
from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Floats, ImageSet, Selection, SourcePart
from uotft.core.settings import Select
from uotft.data import subset
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, features as pools, ranking


def select(ws: Workspace, target: str, strategy: str, seed: int) -> Selection:
    """Score the source units against one seed's target images, keep K, write the selection."""
    source, bank = source_bank(ws), target_bank(ws, target, seed)
    chosen = choose(
        source,
        bank,
        strategy,
        config.selector_settings(ws.params, strategy),
        ws.params.select,
        config.selector_settings(ws.params, "uot"),
        seed,
    )
    chosen = replace(chosen, settings={**chosen.settings, "subset": ws.params.subset.words})
    folder = ws.cell("selections", target, strategy, seed)
    if ws.words:
        ws.note_words()
    if chosen.scores.log_plan is not None:
        plan_KT = np.exp(chosen.scores.log_plan(chosen.kept)).astype(np.float32)
        storage.write_arrays(folder / "plan.npz", plan=plan_KT, kept=chosen.kept)
        draw(folder, chosen)
    storage.write_json(folder / "selection.json", ranking.to_json(chosen))
    return chosen


def select_banks(
    source_path: str,
    target_path: str,
    output: str,
    strategy: str,
    own: dict[str, Any],
    wanted: dict[str, Any],
    *,
    seed: int,
    explain: bool,
    expect: list[str],
    table: str,
    pictures: str,
) -> tuple[Selection, str]:
    """Select from two files of means and write ``output``, with pictures if a folder is named.

    Returns the selection and a line on the recall of the classes that ``expect`` names (patterns,
    matched as by the strategy label), if any.
    """
    source, target = banks.brought(source_path), banks.brought(target_path)
    settings = config.strategy_settings(strategy, own)
    size = {"top_k": "auto", **({"unit": "image"} if wanted.get("max_per_class") else {}), **wanted}
    uot = settings if strategy == "uot" else config.strategy_settings("uot", {})
    chosen = choose(source, target, strategy, settings, config.select_settings(size), uot, seed)
    found = expected(source, expect, table)
    said = ranking.to_json(chosen)
    line = ""
    if len(found):
        recall = ranking.recall(chosen.kept, found)
        said["recall"] = {"expected": len(found), "percent": recall}
        line = f"recall of the {len(found)} expected: {recall:.2f} %"
    if explain:
        for entry, served in zip(said["classes"], ranking.serves(chosen), strict=True):
            entry["serves"] = served
    if pictures:
        draw(Path(pictures), chosen, found if len(found) else None)
        if len(found) and strategy == "uot":
            curves = recall_curve(source, target, settings, found, len(chosen.kept))
            picture = figures.recall_picture(curves, len(chosen.kept), settings.cost_scale)
            storage.write_bytes(Path(pictures) / "recall.png", picture)
    storage.write_json(Path(output), said)
    return chosen, line


def expected(source: ClassBank, patterns: list[str], table: str) -> NDArray[np.int64]:
    """Rows of the source classes that ``patterns`` name."""
    if not patterns:
        return np.empty(0, np.int64)
    label = registry.load("strategies", "label", "strategy")
    settings = label.Settings(classes=patterns, table=table)
    try:
        scores = label.score(source, source, settings, 0)
    except UserError as error:
        raise UserError(f"--expect: {error}") from error
    return np.flatnonzero(scores.values > -np.inf)


def recall_curve(
    source: ClassBank, target: ClassBank, uot: Any, found: NDArray[np.int64], top_k: int
) -> dict[float, float]:
    """{cost scale: percent of ``found`` among the best K}: figure 4a of the paper."""
    module = registry.load("strategies", "uot", "strategy")
    scales = np.geomspace(1e-4, 10, 16)
    curve = {}
    for scale in scales.tolist():
        scores = module.score(source, target, uot.model_copy(update={"cost_scale": scale}), 0)
        curve[scale] = ranking.recall(ranking.keep(scores, source.names, top_k), found)
    return curve


def choose(
    source: ClassBank,
    target: ClassBank,
    strategy: str,
    settings: Any,
    wanted: Select,
    uot: Any,
    seed: int,
) -> Selection:
    """Score and keep. With ``top_k: auto`` every strategy keeps as many as UOT's plan says."""
    banks.same_backbone(source, target)
    scores = registry.load("strategies", strategy, "strategy").score(source, target, settings, seed)
    top_k, rule = wanted.top_k, {}
    if top_k == "auto" and not scores.exact:
        plan = scores
        if strategy != "uot":
            plan = registry.load("strategies", "uot", "strategy").score(source, target, uot, seed)
        top_k = ranking.carriers(plan, source.names, wanted.mass_share)
        rule = {"top_k_rule": f"carries {wanted.mass_share:g} of the transported mass"}
    groups = source.labels if wanted.max_per_class else ()
    if wanted.max_per_class and len(groups) != len(source.names):
        raise UserError(
            f"select.max_per_class: got {wanted.max_per_class}, but {source.file or 'the source'} "
            "has no array 'labels' that names the class of each row"
        )
    kept = ranking.keep(
        scores,
        source.names,
        len(source.names) if scores.exact else int(top_k),
        groups,
        wanted.max_per_class,
    )
    if not len(kept) and strategy != "none":
        raise UserError(f"the strategy {strategy!r} keeps no class at all")
    return Selection(
        strategy=strategy,
        kept=kept,
        names=source.names,
        target_names=target.names,
        scores=scores,
        settings={
            **wanted.model_dump(),
            "top_k": None if scores.exact else int(top_k),
            **rule,
            "seed": seed,
            **settings.model_dump(),
        },
        fingerprints={
            "source": storage.fingerprint(Path(source.file)),
            "target": storage.fingerprint(Path(target.file)),
        },
        labels=source.labels,
    )


def draw(folder: Path, chosen: Selection, found: NDArray[np.int64] | None = None) -> None:
    """similarity.png (figure 2b of the paper) and, where there is a plan, plan.png."""
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


def source_bank(ws: Workspace) -> ClassBank:
    """The units that strategies score, refused when params.yaml asks for others."""
    path, unit = ws.embedding(ws.params.source), ws.params.select.unit
    bank = banks.read(path)
    if bank.unit != unit:
        raise UserError(f"{path} holds units {bank.unit!r}, select.unit is {unit!r}: run dvc repro")
    ws.must_be_of(ws.params.source, path, bank.data, bank.backbone)
    index = ws.features(ws.params.source) / pools.INDEX
    if bank.features and index.is_file():
        pools.read_index(index.parent)
        if bank.features != storage.fingerprint(index):
            raise UserError(f"{path} is of other features than {index.parent}: run dvc repro")
    return bank


def source_images(ws: Workspace, bank: ClassBank) -> ImageSet:
    """The source whose training images are the bank's, refused when params.yaml means others."""
    images = ws.source()
    here, there = len(images.rows("train")), len(bank.members)
    if here != there:  # the draw is nested, so as many are the same
        raise UserError(
            f"{ws.embedding(ws.params.source)} is of {there} images, source_fraction: "
            f"{ws.params.source_fraction:g} means {here}: run dvc repro"
        )
    return images


def source_part(ws: Workspace, kept: NDArray[np.int64]) -> SourcePart:
    """The training images of the units kept: a label is a class, but for clusters a cluster.

    Kept classes and clusters are numbered by rank, the classes of kept images in their own order.
    """
    bank = source_bank(ws)
    images = source_images(ws, bank)
    number = np.full(len(bank.names), -1)
    number[kept] = np.arange(len(kept))
    labels = number[bank.members]
    rows, labels = images.rows("train")[labels >= 0], labels[labels >= 0]
    names, classes = tuple(bank.names[row] for row in kept), kept
    means = bank.head_means()[kept]
    if bank.unit == "image":
        classes, labels = np.unique(images.labels[rows], return_inverse=True)
        names = tuple(images.names[c] for c in classes)
        points = bank.head_means()[np.sort(kept)]  # a row an image, in the order of ``rows``
        means = np.array([points[labels == c].mean(0) for c in range(len(classes))])
    elif bank.unit == "cluster":
        classes = kept[:0]
    return SourcePart(images, rows, labels, names, classes, means, bank.backbone)


def target_bank(ws: Workspace, target: str, seed: int) -> ClassBank:
    """Class means of the target images that this seed may train on, and of no others."""
    pool = ws.pool(target)
    drawn = subset.draw(pool["labels"], ws.params.subset, seed)
    labels, names = pool["labels"][drawn], tuple(pool["names"].tolist())
    counts = np.bincount(labels, minlength=len(names))

    def means(pool: NDArray[Any]) -> Floats:
        features = pool[drawn].astype(np.float32)
        parts = [features[labels == c].mean(0) for c in range(len(names))]
        return np.stack(parts).astype(np.float64)

    return ClassBank(
        means(pool["features"]),
        names,
        counts,
        str(pool["backbone"]),
        file=str(ws.embedding(target)),
        trunk=means(pool["trunk"]) if "trunk" in pool else np.empty((0, 0)),
    )


def read_selection(ws: Workspace, target: str, strategy: str, seed: int) -> dict[str, Any]:
    """A selection.json, refused when its embeddings, images or settings are not today's."""
    path = ws.cell("selections", target, strategy, seed) / "selection.json"
    chosen: dict[str, Any] = storage.read_json(path)
    for side, dataset in (("source", ws.params.source), ("target", target)):
        if chosen["fingerprints"][side] != storage.fingerprint(ws.embedding(dataset)):
            raise UserError(f"{path} belongs to another {ws.embedding(dataset)}: run dvc repro")
    now = {
        **ws.params.select.model_dump(),
        **config.selector_settings(ws.params, strategy).model_dump(),
        "subset": ws.params.subset.words,
    }
    then = chosen["settings"]
    if now["top_k"] == "auto" or then["top_k"] is None:  # K was found, or does not apply
        del now["top_k"]
    if names := [name for name, value in now.items() if then.get(name, value) != value]:
        raise UserError(f"{path} was made with other settings ({', '.join(names)}): run dvc repro")
    index = pools.read_index(ws.features(target))
    made_of = str(index.get("data", "")), str(index["backbone"])
    ws.must_be_of(target, ws.features(target), *made_of)
    return chosen


def must_be_of_today(
    ws: Workspace, target: str, strategy: str, seed: int, facts: dict[str, Any]
) -> None:
    """Refuse a model of another network or selection than today's, by its ``facts``.

    Where these are not there, nothing can be told.
    """
    selection = ws.cell("selections", target, strategy, seed) / "selection.json"
    network = ws.pretrained() / "model.json"
    now = {
        "pretrained": (network, network.is_file() and storage.read_json(network)["sha256"]),
        "selection": (selection, selection.is_file() and storage.fingerprint(selection)),
        "backbone": ("section backbone of params.yaml", ws.params.backbone),
    }
    for name, (what, found) in now.items():
        if found and facts.get(name, found) != found:
            model = ws.cell("models", target, strategy, seed)
            raise UserError(f"{model} was trained with another {what}: run dvc repro")
