"""Checks, before a stage and by the settings alone, that source and targets fit together.

One batch holds images of both, so both need the same size if source images are trained on. Grey and
colour need not match: every set is converted to the one or three channels of the backbone. Class
means, heads and the temperature of co-tuning need a source, a bank or weights that can give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from uotft.core import config
from uotft.core.errors import UserError
from uotft.core.paths import located
from uotft.core.records import ImageSet
from uotft.data import files
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks
from uotft.training import objectives

#: Backbones whose norm layers are known to take ``train.batch_norm: target``, or have none.
SEPARABLE = {"efficientnet_lite0", "moco", "resnet18", "resnet50", "small_resnet"}


def check(ws: Workspace, targets: Sequence[str], strategies: Sequence[str]) -> None:
    """Refuse targets whose images have another size than the source's, where both make a batch.

    `check_images` compares data sets without a setting ``size``, once they are read.
    """
    trained = [ws.of(name).params.train for name in strategies]
    for settings in trained:
        objectives.check(settings)
    if bare := [name for name in targets if not _has_labels(ws, name)]:
        raise UserError(
            f"datasets.{bare[0]}.labels: false, but {bare[0]} is a target, whose images need "
            "labels: put them into a folder for each class, or list them"
        )
    if any(settings.batch_norm == "target" for settings in trained):
        _check_norms(ws)
    check_starts(ws, strategies)
    keeping = any(config.keeps(ws.params, name) for name in strategies)
    source = ws.params.source
    size = _size(ws, source)
    others = [t for t in targets if size and _size(ws, t) not in (0, size)]
    if others and keeping and _reads_source(ws):
        raise UserError(_misfit(ws, others[0], size, _size(ws, others[0])))


def _check_norms(ws: Workspace) -> None:
    """Refuse a backbone with norm layers that cannot separate two domains."""
    section = ws.params.backbone
    if section.get("architecture", section).get("name") in SEPARABLE:
        return  # without the seconds that torch takes to import
    from uotft.models import model_io
    from uotft.models.network import separate_norms

    separate_norms(model_io.build(ws.params.backbone, 1).backbone)


def check_starts(
    ws: Workspace, strategies: Sequence[str], *, classifier: bool | None = None
) -> None:
    """Refuse what class means, heads or a temperature cannot be made of.

    ``classifier`` says whether the pre-trained network has one of the source's classes, where that
    network is here; without, the settings of the backbone say it.
    """
    origin, unit = ws.params.source_means, ws.params.select.unit
    if origin != "images" and unit != "class":
        other = "" if ws.by_class else ", or source_means: images"
        raise UserError(
            f"select.unit: got {unit}, but source_means: {origin} stands for whole classes: set "
            f"select.unit: class{other}"
        )
    if not _has_labels(ws, ws.params.source):
        _check_unlabelled(ws, strategies)
    if keeping := [name for name in strategies if config.keeps(ws.params, name)]:
        _check_means(ws, keeping)
    if not ws.by_class:
        return
    for name in strategies:
        _check_temperature(ws, name)
        if not (_has_classifier(ws) if classifier is None else classifier):
            _check_heads(ws, name)


def _check_means(ws: Workspace, strategies: Sequence[str]) -> None:
    """Refuse class means that cannot be had, or that a strategy cannot compare."""
    origin, source = ws.params.source_means, ws.params.source
    if ws.by_class and origin == "images":
        raise UserError(
            f"{source} is fetched by class, so no image of it is here before the selection: set "
            "source_means: classifier, or to the path of a bank, and select.unit: class"
        )
    if ws.by_class and origin == "classifier" and not _has_classifier(ws):
        raise UserError(
            f"backbone {ws.params.backbone['name']} has no classifier of ImageNet's classes: set "
            "source_means to the path of a bank of class means (`uotft bank make` or `uotft bank "
            "fetch` brings one), take another backbone, or train with --strategy none"
        )
    if origin == "classifier":
        _check_rows(ws, strategies)
    elif origin != "images" and located(ws.root, origin).is_file():  # else `units` says so
        _check_bank(ws, strategies)


def _check_unlabelled(ws: Workspace, strategies: Sequence[str]) -> None:
    """Refuse what a source without labels cannot give."""
    unit, source = ws.params.select.unit, ws.params.source
    why = f"{source} has no labels (datasets.{source}.labels: false)"
    if not brings_weights(ws.params.backbone):
        raise UserError(
            f"{why} to train the backbone {ws.params.backbone['name']} on: take one with weights"
        )
    for name in strategies:
        module, train = _objective(ws.of(name))[0], ws.of(name).params.train
        keeps = config.keeps(ws.params, name)
        if keeps and unit == "class":
            raise UserError(f"{why}, so {name} has no classes to select: set select.unit: cluster")
        has_head = "source" in objectives.heads(module)
        if "classifier" in module.ROUTES or (has_head and keeps and unit == "image"):
            raise UserError(
                f"{why}, and train.objective: {train.objective} learns them: set it to pseudo_label"
            )


def _check_rows(ws: Workspace, strategies: Sequence[str]) -> None:
    """Refuse what rows of a classifier are no means for."""
    for name in strategies:
        if getattr(config.selector_settings(ws.params, name), "metric", "") == "l2":
            raise UserError(
                f"selectors.{name}.metric: got l2, but the rows of a classifier have no lengths "
                "that compare with those of features: set it to cosine"
            )
    if ws.params.train.source_head == "class_means":
        raise UserError(
            f"train.source_head: got class_means, but source_means: {ws.params.source_means} holds "
            "rows of a classifier, which are no means: set it to classifier or random"
        )


def _check_bank(ws: Workspace, strategies: Sequence[str]) -> None:
    """Refuse a bank that the source head cannot start from, or of rows of a classifier."""
    origin = ws.params.source_means
    bank = banks.brought(str(located(ws.root, origin)))
    if bank.classifier:
        _check_rows(ws, strategies)
    if ws.params.train.source_head != "class_means":
        return
    if "source" not in objectives.heads(_objective(ws)[0]):
        return
    from uotft.models import model_io

    here, there = bank.head_means().shape[1], model_io.build(ws.params.backbone, 1).backbone
    if here != there.features:
        raise UserError(
            f"train.source_head: got class_means, but source_means: {origin} has {here} numbers a "
            f"class, and the backbone {ws.params.backbone['name']} has {there.features} features: "
            "set it to random, or make a bank that has them with `uotft bank make`"
        )


def _check_temperature(ws: Workspace, name: str) -> None:
    """Refuse to fit a temperature for rows that keep no class of a source by class."""
    own = ws.of(name)
    # by name: to load an objective imports torch, which takes seconds
    if own.params.train.objective != "co_tuning" or config.keeps(ws.params, name):
        return
    if _objective(own)[1].calibrate:
        raise UserError(
            f"train.objective: co_tuning fits a temperature on images of {ws.params.source}, and "
            f"with --strategy {name} none is fetched: set objectives.co_tuning.calibrate: false"
        )


def _check_heads(ws: Workspace, name: str) -> None:
    """Refuse a head that starts from a classifier, where the weights have none."""
    module, train = _objective(ws.of(name))[0], ws.of(name).params.train
    reads = "source" in objectives.parts(module)
    if "source" not in objectives.heads(module) or (reads and not config.keeps(ws.params, name)):
        return
    if "classifier" in module.ROUTES or not reads:
        got, instead = f"train.objective: got {train.objective}", "take another objective"
    elif train.source_head == "classifier":
        got = "train.source_head: got classifier"
        instead = "set it to random, or to class_means if source_means is a bank of means"
    else:
        return
    raise UserError(
        f"{got}, but backbone {ws.params.backbone['name']} has no classifier of the classes of "
        f"{ws.params.source}: {instead}"
    )


def _objective(ws: Workspace) -> tuple[ModuleType, Any]:
    return config.objective(ws.params, ws.params.train.objective)


def _has_classifier(ws: Workspace) -> bool:
    """Whether the backbone brings weights with a classifier, by its settings alone."""
    module, settings = config.backbone(ws.params.backbone)
    named = getattr(settings, "classifier", None) != ""  # state_dict: the key in the file
    brings = brings_weights(ws.params.backbone)
    return brings and named and getattr(module, "CLASSIFIER", True)


def brings_weights(backbone: dict[str, Any]) -> bool:
    """Whether a backbone, by its section, is given weights and not trained on the source first."""
    module, settings = config.backbone(backbone)
    return hasattr(module, "pretrained") and getattr(settings, "weights", "") != "none"


def check_images(ws: Workspace, target: str, source: ImageSet, images: ImageSet) -> None:
    """The same check for the images themselves."""
    here, there = (_side(each) for each in (source, images))
    if here != there:
        raise UserError(_misfit(ws, target, here, there))


def notes(ws: Workspace) -> list[str]:
    """Notes on what works but may not be intended: colours that the backbone does not see."""
    _, backbone = config.backbone(ws.params.backbone)
    coloured = [n for n in (ws.params.source, *ws.params.targets) if _is_of_files(ws, n)]
    if getattr(backbone, "channels", 3) == 3 or not coloured:
        return []
    return [
        f"the backbone sees grey alone and ignores the colours in {' and '.join(coloured)}; "
        "backbone.channels: 3 in params.yaml lets it see them"
    ]


def _settings(ws: Workspace, name: str) -> Any:
    return config.dataset_settings(ws.params, name)


def _size(ws: Workspace, name: str) -> int:
    """Pixels a side that the network sees of a data set; 0 if its settings do not say."""
    return int(getattr(_settings(ws, name), "size", 0))


def _side(images: ImageSet) -> int:
    return images.files.size if images.files else int(images.images.shape[1])


def _is_of_files(ws: Workspace, name: str) -> bool:
    """Whether the pictures are read from files, and so in colour."""
    return isinstance(_settings(ws, name), files.View)


def _has_labels(ws: Workspace, name: str) -> bool:
    return bool(getattr(_settings(ws, name), "labels", True))


def _reads_source(ws: Workspace) -> bool:
    return "source" in objectives.parts(_objective(ws)[0])


def _misfit(ws: Workspace, target: str, here: int, there: int) -> str:
    source, both = ws.params.source, []
    for role, name, size in (("source", source, here), ("target", target, there)):
        colours = " in colour" if _is_of_files(ws, name) else ""
        both.append(f"the {role} {name} has images of {size} x {size} pixels{colours}")
    return (
        f"{', '.join(both)}: train.objective: {ws.params.train.objective} trains on both in one "
        f"batch, which has one size. Set datasets.{source}.size and datasets.{target}.size in "
        "params.yaml to the same number (and stored, of pictures from files, to at least that), "
        "or train.objective: plain"
    )
