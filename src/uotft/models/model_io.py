"""Weights and their readable facts <-> a folder: ``model.safetensors`` beside ``model.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from uotft.core import config, paths, storage
from uotft.core.errors import UserError
from uotft.models.network import Network
from uotft.models.weights import Pretrained

FILES = ("model.safetensors", "model.json")  # of a model's folder


def write(folder: Path, network: torch.nn.Module, facts: dict[str, Any]) -> None:
    """Write the weights, then the facts; the facts carry the weights' fingerprint."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    weights = folder / "model.safetensors"
    storage.write_bytes(weights, save(tensors))
    storage.write_json(folder / "model.json", {**facts, "sha256": storage.fingerprint(weights)})


def read(folder: Path) -> tuple[Network, dict[str, Any]]:
    """The network that ``write`` saved, in evaluation mode, and its facts."""
    facts = storage.read_json(folder / "model.json")
    needed = {"sha256", "backbone", "classes", "source_classes"}
    if not isinstance(facts, dict) or not needed <= facts.keys():
        raise UserError(f"{folder / 'model.json'}: not the model.json of a model of uotft")
    weights = folder / "model.safetensors"
    if storage.fingerprint(weights) != facts["sha256"]:
        raise UserError(f"{weights} is not the file that model.json describes: run dvc repro")
    network = build(facts["backbone"], len(facts["classes"]), len(facts["source_classes"]))
    try:
        network.load_state_dict(load(weights.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{weights} does not fit its model.json: {error}") from error
    return network.eval(), facts


def pretrained(backbone: dict[str, Any], root: Path = Path()) -> Pretrained | None:
    """The backbone with weights of its own, or None where the stage pretrain is to train it.

    A relative path of weights starts at ``root``, the project.
    """
    module, settings = config.backbone(backbone)
    bring = getattr(module, "pretrained", lambda settings: None)
    found: Pretrained | None = bring(paths.with_files(settings, root))
    return found


@dataclass(frozen=True)
class Published:
    """A file of weights that would be downloaded: its address, its bytes (0: unknown), its path."""

    address: str
    bytes: int
    path: Path


def published(backbone: dict[str, Any]) -> Published | None:
    """The file that the ``backbone`` section of params.yaml downloads, or None."""
    module, settings = config.backbone(backbone)
    find = getattr(module, "published", lambda settings: None)
    found: tuple[str, int, Path] | None = find(settings)
    return Published(*found) if found else None


def build(backbone: dict[str, Any], target: int, source: int = 0) -> Network:
    """A network with random weights from the ``backbone`` section of params.yaml."""
    module, settings = config.backbone(backbone)
    network = Network(module.build(settings), target=target, source=source)
    return network.to(memory_format=torch.channels_last)
