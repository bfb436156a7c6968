"""What each output was made from: recorded beside it, and compared with the files of today.

A *fingerprint* is a dict: the settings that decide an output, and the SHA-256 of each input file.
It is used in three ways:

- A folder of unfinished work holds one. ``claim`` sets the folder aside if its fingerprint is not
  the one of the work that starts now.
- A finished model of a variant has one in belongs.json beside it, since DVC does not know variants
  (``write_finished``, ``finished``).
- Each output of the pipeline holds parts of one in its own file: model.json, selection.json, the
  index of features. Every reader checks them (``check_…``), because a stage can be run without DVC,
  which would have run the earlier stage again. A file without a fingerprint passes the check.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np

from uotft.core import config, removal, storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import Cell, ClassBank, ImageSet, SourcePart
from uotft.core.text import some
from uotft.pipeline.workspace import Workspace
from uotft.selection import features
from uotft.training import checkpoints

Fingerprint = dict[str, Any]

logger = logging.getLogger(__name__)

CLASS_MEANS = "class means"  # the origin of a head that pretrain makes, in model.json
NAMED = 4  # differing settings that a message lists
# Beside a finished model of a variant: the fingerprint of its inputs, and the training time in
# seconds. File and key are still called "belongs", because existing projects have them.
FINGERPRINT = "belongs.json"


# ---- fingerprints


def of_files(ws: Workspace, files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path relative to the project."""
    return {os.path.relpath(path, ws.root): storage.fingerprint(path) for path in files}


def of_pretraining(ws: Workspace) -> Fingerprint:
    """The fingerprint of an unfinished pre-training."""
    return {
        "backbone": ws.params.backbone,
        "pretrain": _deciding(ws.params.pretrain.model_dump()),
        "files": {} if ws.by_class else of_files(ws, [ws.data(ws.params.source)]),
    }


def of_features(ws: Workspace, dataset: str) -> Fingerprint:
    """The fingerprint of the feature shards of a data set."""
    network = ws.pretrained() / "model.json"
    facts = storage.read_json(network)
    if dataset == ws.params.source and facts.get("head") == CLASS_MEANS:
        return of_given_features(ws, facts["weights"])
    return _of_shards(ws, [network, ws.data(dataset)])


def of_given_features(ws: Workspace, weights: Any) -> Fingerprint:
    """The fingerprint of the source's feature shards, of which pretrain makes its class means.

    ``weights`` is the origin of the given weights: the network is not written yet.
    """
    own = {"backbone": ws.params.backbone, "weights": weights}
    return own | _of_shards(ws, [ws.data(ws.params.source)])


def _of_shards(ws: Workspace, files: list[Path]) -> Fingerprint:
    batches = {"batch_size": ws.params.embed.batch_size, "shard": features.BATCHES}
    return {**batches, "files": of_files(ws, files)}


def of_units(ws: Workspace) -> Fingerprint:
    """The fingerprint of the units of a variant that has units of its own."""
    unit, origin = ws.params.select.unit, ws.params.source_means
    if origin != "images":
        files = [ws.pretrained() / "model.json"]
        files += [] if ws.by_class else [ws.data(ws.params.source)]
        files += [] if origin == "classifier" else [located(ws.root, origin)]
        return {"source_means": origin, "source_fraction": ws.params.source_fraction,
                "files": of_files(ws, files)}  # fmt: skip
    return {
        "unit": unit,
        "cluster": ws.params.cluster.model_dump() if unit == "cluster" else {},
        "source_fraction": ws.params.source_fraction,
        "files": of_files(ws, [ws.features(ws.params.source) / features.INDEX]),
    }


def of_training(ws: Workspace, cell: Cell) -> Fingerprint:
    """The fingerprint of an unfinished fine-tuning."""
    ws = ws.of(cell.strategy)
    selection = ws.cell("selections", cell) / "selection.json"
    source = [] if ws.by_class else [ws.data(ws.params.source), ws.overlap(cell.target)]
    files = [*source[:1], ws.data(cell.target), selection, *source[1:]]
    files += [ws.embedding(ws.params.source), ws.embedding(cell.target)]
    return {
        **({"kept images": _of_kept_images(ws, cell)} if ws.by_class else {}),
        "backbone": ws.params.backbone,
        "subset": ws.params.subset.given,
        "train": _deciding(ws.params.train.model_dump(by_alias=True)),
        "objective": ws.params.objectives.get(ws.params.train.objective, {}),
        "files": of_files(ws, [*files, ws.pretrained() / "model.json"]),
    }


def _of_kept_images(ws: Workspace, cell: Cell) -> str:
    """The SHA-256 of all images of the kept classes, and of which are test images as well.

    It stays the same while images of other classes are added to the source.
    """
    chosen = storage.read_json(ws.cell("selections", cell) / "selection.json")["classes"]
    images, whole = storage.read_images(ws.data(ws.params.source)), hashlib.sha256()
    kept = np.isin(np.array(images.names)[images.labels], [each["name"] for each in chosen])
    tested = {match["source"] for match in storage.read_json(ws.overlap(cell.target))["matches"]}
    for row in np.flatnonzero(kept).tolist():
        assert images.files is not None
        digest = images.files.sha256[row].tobytes().hex()
        whole.update(f"{images.names[images.labels[row]]} {images.splits[row]} {digest} "
                     f"{row in tested}\n".encode())  # fmt: skip
    return whole.hexdigest()


def of_cell(ws: Workspace, cell: Cell, processes: int) -> Fingerprint:
    """The fingerprint of a finished cell: of its training, and the settings of its selection."""
    wanted = ws.params.select
    strategies = {cell.strategy, "uot"} if wanted.top_k == "auto" else {cell.strategy}
    return {
        **of_training(ws, cell),
        "processes": processes,  # batch norm sees each process's share of the batch alone
        "source_fraction": ws.params.source_fraction,
        "select": wanted.model_dump(),
        "selectors": {
            name: config.selector_settings(ws.params, name).model_dump() for name in strategies
        },
    }


def _deciding(section: dict[str, Any]) -> dict[str, Any]:
    """A section without the settings that cannot change the weights."""
    recipe = {k: v for k, v in section["recipe"].items() if k != "checkpoint_every"}
    return {**section, "recipe": recipe}


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """The dotted names of the entries in which two fingerprints differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            difference
            for key in sorted(one.keys() | other.keys())
            for difference in differences(
                one.get(key), other.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if one == other else [name]


# ---- unfinished work


def claim(folder: Path, fingerprint: Fingerprint) -> str:
    """Rename an unfinished ``folder`` to ``….aside`` unless it has this ``fingerprint``.

    Also renames it if its record is damaged and no checkpoint holds the fingerprint. Returns a line
    that says why, or "" if the folder stays.
    """
    named = [path for path in (folder / checkpoints.RUN, folder / FINGERPRINT) if path.exists()]
    states = [slot / checkpoints.STATE for slot in checkpoints.slots(folder)]
    known = [checkpoints.record(path) for path in (*named, *states)]
    names = [n for facts in known if facts for n in differences(facts["belongs"], fingerprint)]
    if not names and (any(known) or not named):
        return ""
    aside = folder.with_name(f"{folder.name}.aside")
    if aside.exists():
        removal.remove(aside)
    folder.rename(aside)
    differing = [*dict.fromkeys(names)]
    fault = f"other {some(differing, NAMED)}" if names else f"a damaged {named[0].name}"
    return (
        f"the unfinished work in {folder} has {fault}: set aside as {aside.name}, and started anew"
    )


def claim_together(folder: Path, fingerprint: Fingerprint, context: Context) -> None:
    """`claim` on the main process, with a warning; the other processes wait for it."""
    if context.accelerator.is_main_process and (aside := claim(folder, fingerprint)):
        logger.warning(aside)
    context.accelerator.wait_for_everyone()


def begin(folder: Path, fingerprint: Fingerprint) -> None:
    """Write the fingerprint of an unfinished ``folder`` that has no MLflow run to hold it.

    Empties a folder without a fingerprint first: its files may come from other inputs.
    """
    if not (folder / FINGERPRINT).exists():
        shutil.rmtree(folder, ignore_errors=True)
    storage.write_sealed(folder / FINGERPRINT, {"belongs": fingerprint})


# ---- finished work that DVC does not know


def write_finished(ws: Workspace, cell: Cell, fingerprint: Fingerprint, seconds: float) -> None:
    """Write the fingerprint of a variant's finished model, and its training time in seconds."""
    whole = {"belongs": fingerprint, "seconds": round(seconds, 3)}
    storage.write_json(ws.cell("models", cell) / FINGERPRINT, whole)


def finished(ws: Workspace, cell: Cell, processes: int) -> dict[str, Any] | None:
    """The record of a variant's model, with its ``seconds``; None unless made of today's inputs."""
    folder = ws.cell("models", cell)
    try:
        facts: dict[str, Any] = storage.read_json(folder / FINGERPRINT)
        same = facts["belongs"] == of_cell(ws, cell, processes)
        mixed = "processes" in storage.read_json(folder / "model.json")
    except UserError:
        return None
    return facts if same and not mixed else None


def of_finished(ws: Workspace, cell: Cell, processes: int) -> Fingerprint:
    """The fingerprint in model.json; the SHA-256 of selection.json stands for the selection."""
    code = of_code(ws.of(cell.strategy), "train")
    # the number of processes counts: batch norm sees each process's share of the batch alone
    return {**of_training(ws, cell), "processes": processes, **({"code": code} if code else {})}


def of_code(ws: Workspace, stage: str) -> str:
    """The SHA-256 of all code that a stage of dvc.yaml depends on.

    "" if the stage depends on no code, as outside a clone. A process computes it once, so later
    edits of a file do not change it.
    """
    found = ws.root / "dvc.yaml"
    text = found.read_text("utf-8") if found.is_file() else ""
    deps = [dep for dep in _deps(text).get(stage, []) if dep.startswith("src/")]
    files = sorted(re.sub(r"\$\{([\w.]+)\}", lambda name: _setting(ws, name[1]), d) for d in deps)
    return _code(ws.root, tuple(files)) if files else ""


@cache
def _deps(text: str) -> dict[str, list[str]]:
    """The dependencies of each stage of a dvc.yaml."""
    stages = (storage.from_yaml(text) or {}).get("stages", {})
    return {name: stage.get("do", stage).get("deps", []) for name, stage in stages.items()}


@cache
def _code(root: Path, files: tuple[str, ...]) -> str:
    whole = hashlib.sha256()
    for name in files:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            whole.update(f"{file.relative_to(root)} {storage.fingerprint(file)}\n".encode())
    return whole.hexdigest()


def _setting(ws: Workspace, name: str) -> str:
    """The value of a dotted setting of params.yaml."""
    return str(reduce(lambda found, key: found[key], name.split("."), ws.params.model_dump()))


def trained(ws: Workspace, cell: Cell, processes: int) -> dict[str, Any] | None:
    """What model.json holds; None unless the model is whole and of today's inputs and code."""
    folder = ws.cell("models", cell)
    if ws.unfinished(folder).exists():  # not finished, if only its MLflow run is still open
        return None
    try:
        facts: dict[str, Any] = storage.read_json(folder / "model.json")
        whole = facts["sha256"] == storage.fingerprint(folder / "model.safetensors")
        same = facts.get("made_of") == of_finished(ws, cell, processes)
    except (UserError, OSError):
        return None
    return facts if whole and same and "processes" not in facts else None


def has_units(ws: Workspace) -> bool:
    """Whether a variant has units of its own that were made from today's inputs."""
    made, record = ws.embedding(ws.params.source), units_record(ws)
    return made.is_file() and record.is_file() and storage.read_json(record) == of_units(ws)


def units_record(ws: Workspace) -> Path:
    """The file with the fingerprint of a variant's own units."""
    return ws.embedding(ws.params.source).with_suffix(".json")


# ---- the pipeline's outputs, where they are read


def check_prepared(ws: Workspace, dataset: str) -> None:
    """Raise UserError if data/DATASET.npz was made with other settings than params.yaml has."""
    summary = ws.data(dataset).with_suffix(".json")
    then = storage.read_json(summary).get("settings") if summary.is_file() else None
    now = ws.prepared_as(dataset)
    if then and then != now:
        names = [key for key in now if then.get(key) != now[key]]
        raise UserError(
            f"{ws.data(dataset)} was prepared with other settings than datasets.{dataset} of "
            f"params.yaml has ({', '.join(names)}): run dvc repro"
        )


def check_features(ws: Workspace, dataset: str, made: Path, data: str, backbone: str) -> None:
    """Raise UserError if features or class means are not of today's images and weights.

    ``made`` is their path. ``data`` and ``backbone`` are the fingerprints of the images and weights
    that they were made from, "" if unknown.
    """
    if not (ws.by_class and dataset == ws.params.source):  # its images come after the selection
        check_prepared(ws, dataset)
    path, network = ws.data(dataset), ws.pretrained() / "model.json"
    if data and path.is_file() and data != storage.fingerprint(path):
        raise UserError(f"{made} was made from another {path}: run dvc repro")
    if not network.is_file():
        return
    facts = storage.read_json(network)
    _check_network(
        ws,
        {
            "the section backbone of params.yaml": facts["backbone"] != ws.params.backbone,
            str(made): bool(backbone) and backbone != facts["sha256"],
        },
    )


def check_bank(ws: Workspace, bank: ClassBank) -> None:
    """Raise UserError if the units are of another kind, or of other images, weights or features."""
    path, unit = ws.embedding(ws.params.source), ws.params.select.unit
    if bank.unit != unit:
        raise UserError(f"{path} holds units {bank.unit!r}, select.unit is {unit!r}: run dvc repro")
    check_features(ws, ws.params.source, path, bank.data, bank.backbone)
    index = ws.features(ws.params.source) / features.INDEX
    if bank.features and index.is_file():
        features.read_index(index.parent)
        if bank.features != storage.fingerprint(index):
            raise UserError(
                f"{path} was made from other features than {index.parent}: run dvc repro"
            )


def check_source(ws: Workspace, images: ImageSet, bank: ClassBank) -> None:
    """Raise UserError if the units are of another share of the source.

    Comparing the number of images is enough: a smaller share is always part of a larger one.
    """
    here, there = len(images.rows("train")), len(bank.members)
    if here != there and there:  # a bank that was made without images has no members
        raise UserError(
            f"{ws.embedding(ws.params.source)} was made from {there} images, but source_fraction: "
            f"{ws.params.source_fraction:g} gives {here}: run dvc repro"
        )


def check_overlap(ws: Workspace, target: str, found: dict[str, Any]) -> None:
    """Raise UserError if the overlap was computed on other images than today's."""
    path = ws.overlap(target)
    for side, dataset in (("source", ws.params.source), ("target", target)):
        if found[side]["sha256"] != storage.fingerprint(ws.data(dataset)):
            raise UserError(f"{path} was made from another {ws.data(dataset)}: run dvc repro")


def check_selection(ws: Workspace, cell: Cell, chosen: dict[str, Any]) -> None:
    """Raise UserError if the embeddings, images or settings of a selection.json are not today's.

    Also if its two lists differ: it has every kept class twice, so damage of one shows.
    """
    path = ws.cell("selections", cell) / "selection.json"
    scores = chosen["scores"]
    names = [*scores]
    for kept in chosen["classes"]:
        name, row = kept["name"], kept["row"]
        if names[row : row + 1] != [name] or scores[name] not in (kept["score"], None):
            raise UserError(
                f"{path} is damaged: it has {name!r} in two versions; uotft data verify looks for "
                "more"
            )
    for side, dataset in (("source", ws.params.source), ("target", cell.target)):
        if chosen["fingerprints"][side] != storage.fingerprint(ws.embedding(dataset)):
            raise UserError(f"{path} was made from another {ws.embedding(dataset)}: run dvc repro")
    now = {
        **ws.params.select.model_dump(),
        **config.selector_settings(ws.params, cell.strategy).model_dump(),
        "subset": ws.params.subset.given,
    }
    then = chosen["settings"]
    by_plan = now["top_k"] == "auto" and "top_k_rule" in then
    if by_plan or then["top_k"] is None:  # the strategy does not read it
        del now["top_k"]
    if names := [name for name, value in now.items() if then.get(name, value) != value]:
        raise UserError(f"{path} was made with other settings ({', '.join(names)}): run dvc repro")
    index = features.read_index(ws.features(cell.target))
    made_of = str(index.get("data", "")), str(index["backbone"])
    check_features(ws, cell.target, ws.features(cell.target), *made_of)


def check_pretrained(ws: Workspace, pretrained: dict[str, Any], part: SourcePart) -> None:
    """Raise UserError if the pre-trained network has another backbone or source than today's.

    Also if the source's embeddings come from another network.
    """
    classes = tuple(pretrained["classes"])
    _check_network(
        ws,
        {
            "the section backbone of params.yaml": pretrained["backbone"] != ws.params.backbone,
            f"the classes of {ws.data(ws.params.source)}": not _same_classes(
                classes, part.data.names, ws.by_class
            ),
            f"{ws.embedding(ws.params.source)}": part.backbone != pretrained["sha256"],
        },
    )


def _same_classes(known: tuple[str, ...], here: tuple[str, ...], by_class: bool) -> bool:
    """Whether the classes of the source ``here`` are those that the network knows, or some."""
    return {*here} <= {*known} if by_class else here == known


def check_model(ws: Workspace, cell: Cell, facts: dict[str, Any]) -> None:
    """Raise UserError if a model's ``facts`` name another network or selection than today's."""
    selection = ws.cell("selections", cell) / "selection.json"
    network = ws.pretrained() / "model.json"
    now = {
        "pretrained": (network, network.is_file() and storage.read_json(network)["sha256"]),
        "selection": (selection, selection.is_file() and storage.fingerprint(selection)),
        "backbone": ("section backbone of params.yaml", ws.params.backbone),
    }
    for name, (what, found) in now.items():
        if found and facts.get(name, found) != found:
            model = ws.cell("models", cell)
            raise UserError(f"{model} was trained with another {what}: run dvc repro")


def _check_network(ws: Workspace, stale: dict[str, bool]) -> None:
    """Raise UserError if any entry is ``stale``; it names what the network does not match."""
    if names := [name for name, bad in stale.items() if bad]:
        raise UserError(f"{ws.pretrained()} does not match {', '.join(names)}: run dvc repro")
