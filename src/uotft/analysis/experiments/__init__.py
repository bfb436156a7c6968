"""The registry of experiments: tables and figures of Liu et al. (2022), and more; one file each.

Each file holds one ``EXPERIMENT``. Numbers of classes and clusters refer to the paper's 1,000
source classes, numbers of single images to its 1,281,167. `uotft experiment run` scales them to the
project's source. Settings that a variation does not set come from params.yaml.

    uotft experiment show table1a
    uotft experiment run table1a --on digits --dry-run
"""

from __future__ import annotations

from dataclasses import dataclass, field

CLASSES = 1000  # of the paper's source
IMAGES = 1_281_167
EIGHT = ("dogs", "cars", "cub", "pets", "sun", "aircraft", "dtd", "caltech")
RESNET18 = "supervised ResNet18: backbone: {name: resnet18}"
MOCO = "MoCo-v2 ResNet50: backbone: {name: moco, weights: PATH}"

PLAIN = ("train.objective=plain",)
#: Overrides for joint fine-tuning with K of the source's classes, or with clusters, without labels.
JOINT = ("train.objective=joint", "select.unit=class")
UNLABELLED = ("train.objective=pseudo_label", "select.unit=cluster")
HUNDRED = (*JOINT, "select.top_k=100")
#: For equal compute: a step has as many target images as one of other rows has of both kinds.
BOTH = "train.target_batch=both"


@dataclass(frozen=True)
class Variation:
    """One row of a table, or one point of a figure: a strategy and overrides, SETTING=VALUE each.

    ``line`` and ``x`` place it in a figure; without ``x`` it is a horizontal line. ``against`` is
    the label that it is compared with, or several, by default the experiment's baseline.
    """

    label: str
    strategy: str
    overrides: tuple[str, ...]
    line: str = ""
    x: float | None = None
    against: str | tuple[str, ...] = ""


@dataclass(frozen=True)
class Experiment:
    """A table or a figure. ``paper`` is {target: {label: top-1 %}}, the best of three trials.

    ``claim`` is the paper's finding. ``recalls`` is {model: {label: %}}, the paper's recall of the
    classes that should be found. Without ``targets`` the experiment runs on those of params.yaml.
    ``axis`` is the label of a figure's x axis, which is logarithmic with ``log``. ``seeds`` is the
    number of seeds, or text as after --seeds.

    ``name`` is that of the folder of its results. ``common`` are overrides of all variations, which
    their own replace. With ``scaled``, numbers of classes and images refer to the paper's source.
    With ``tested``, the table has a difference with its p for each comparison. With
    ``on_validation`` it compares accuracies on validation images, and the test part is not read.
    """

    title: str
    claim: str
    variations: tuple[Variation, ...]
    baseline: str
    backbone: str = RESNET18
    targets: tuple[str, ...] = ()
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    recalls: dict[str, dict[str, float]] = field(default_factory=dict)
    axis: str = ""
    log: bool = False
    seeds: int | str = 5
    name: str = ""
    common: tuple[str, ...] = ()
    scaled: bool = True
    tested: bool = False
    on_validation: bool = False

    def against(self, variation: Variation) -> tuple[str, ...]:
        """The labels that a variation is compared with."""
        own = variation.against or self.baseline
        labels = (own,) if isinstance(own, str) else own
        return tuple(label for label in labels if label != variation.label)


def by_target(
    targets: tuple[str, ...], rows: dict[str, tuple[float, ...]]
) -> dict[str, dict[str, float]]:
    """A table of the paper, {label: one number per target}, as {target: {label: number}}."""
    return {t: {label: row[i] for label, row in rows.items()} for i, t in enumerate(targets)}
