"""Banks and the weights that made them: a classifier's rows, and a bank for a project's network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from uotft.core import config
from uotft.core.errors import UserError
from uotft.core.records import ClassBank
from uotft.data import wordnet
from uotft.models import model_io, weights
from uotft.models.weights import Pretrained
from uotft.selection import banks
from uotft.selection.classifier import classifier_bank

logger = logging.getLogger(__name__)


def pretrained(backbone: str) -> Pretrained:
    """The network of a --backbone, with its weights."""
    found = model_io.pretrained(config.backbone_section(backbone))
    if found is None:
        raise UserError(f"--backbone: {backbone} has no weights of its own; name one that has, "
                        "such as resnet18")  # fmt: skip
    return found


def for_network(path: Path, folder: Path) -> ClassBank:
    """The bank in a file, for the network of ``folder`` (pretrained/SOURCE of a project).

    Refused if other weights made it; a bank that names none is taken with a warning. In the
    result, ``backbone`` is the network's fingerprint, as in all banks of that project.
    """
    network, facts = model_io.read(folder)
    bank = banks.brought(str(path))
    made_with(bank, weights.fingerprint(network.backbone), f"the network in {folder}")
    return replace(bank, backbone=facts["sha256"])


def made_with(bank: ClassBank, fingerprint: str, network: str) -> None:
    """Refuse a bank that other weights made; warn of one that names none."""
    if not banks.made_with(bank, fingerprint, network):
        logger.warning("%s does not name the weights that made it: nothing shows that %s did",
                       bank.file, network)  # fmt: skip


def classifier_rows(
    classifier: tuple[Tensor, Tensor] | None, fingerprint: str, backbone: str
) -> ClassBank:
    """The rows of a classifier of ImageNet's 1,000 classes, named `n01440764 tench`.

    ``classifier`` is weight (1000, D) and bias (1000,); that of no or of other classes is a
    `UserError`, which names the ``backbone``. ``fingerprint`` is that of the backbone's weights.
    """
    if classifier is None:
        raise UserError(
            f"backbone {backbone}: it has no classifier, so no rows can stand for class means; "
            "make a bank from images with `uotft bank make --images`, or fetch one that somebody "
            "published with `uotft bank fetch`"
        )
    weight = classifier[0].detach().cpu().float().numpy()
    names = tuple(map(wordnet.named, wordnet.imagenet()))
    if len(weight) != len(names):
        raise UserError(
            f"backbone {backbone}: its classifier has {len(weight):,} classes, and names are known "
            f"only of ImageNet's {len(names):,}; make a bank from images with `uotft bank make "
            "--images`"
        )
    return classifier_bank(weight, names, fingerprint)
