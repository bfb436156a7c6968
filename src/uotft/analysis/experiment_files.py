"""Experiments that people write themselves: a YAML file -> an `Experiment`.

    title: Does reuse help on birds?
    baseline: none
    set: [subset.shots=6]          # for every row; a row's own settings replace them
    rows:
      - {label: none, strategy: none, set: [train.objective=plain]}
      - {label: uot, strategy: uot, set: [train.objective=joint, select.top_k=50], against: none}

uotft experiment run reuse.yaml --on birds
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from uotft.analysis.experiments import Experiment, Variation
from uotft.core import config, registry, storage
from uotft.core.errors import UserError
from uotft.core.records import Settings

ENDINGS = (".yaml", ".yml")


class File(Settings):
    """The whole file."""

    title: str = Field("", description="heading of the tables; without one, the file's name")
    claim: str = Field("", description="a sentence on what is asked, above the tables")
    baseline: str = Field(description="label of the row that the others are compared with")
    set: list[str] = Field([], description="SETTING=VALUE for every row; a row's own replace them")
    targets: list[str] = Field([], description="targets; without any, those of params.yaml")
    seeds: int | str = Field(5, description="seeds, as after --seeds: 8, 4-7 or 0,2,5")
    axis: str = Field("", description="label of a figure's x axis")
    log: bool = Field(False, description="whether the x axis is logarithmic")
    rows: list[dict[str, Any]] = Field(min_length=1, description="the rows of the table")


class FileRow(Settings):
    """One row: how classes are selected, and settings in place of those of params.yaml."""

    label: str = Field(min_length=1, description="name in the table, which no other row has")
    strategy: str = Field(description="how source classes are selected; or none, or a control")
    set: list[str] = Field([], description="SETTING=VALUE, each as after --set")
    against: str | list[str] = Field("", description="labels to compare with; else the baseline")
    line: str = Field("", description="name of its line in a figure")
    x: float | None = Field(None, description="place on the x axis")


def is_file(name: str) -> bool:
    """Whether the name of an experiment is the path of a file."""
    return name.endswith(ENDINGS) or "/" in name


def load(path: Path) -> Experiment:
    """The experiment of a file. `UserError` names the file, the row and the value.

    Settings and strategies are checked with the project's, which may have controls of its own.
    """
    if not path.is_file():
        raise UserError(f"experiment: {path}: no such file")
    if (name := path.stem.replace("_", "-")) in {
        known.replace("_", "-") for known in registry.names("experiments")
    }:
        raise UserError(
            f"experiment: {path}: {name} is a registered experiment, and its results would lie in "
            "the same folder: give the file another name"
        )
    whole = config.section(File, storage.read_yaml(path), str(path))
    _overrides(whole.set, f"{path}: set")
    variations = tuple(_variation(raw, path, place) for place, raw in enumerate(whole.rows, 1))
    _check_labels(whole, variations, path)
    return Experiment(
        title=whole.title or path.stem,
        claim=whole.claim,
        variations=variations,
        baseline=whole.baseline,
        backbone="",
        targets=tuple(whole.targets),
        axis=whole.axis,
        log=whole.log,
        seeds=whole.seeds,
        name=path.stem,
        common=tuple(whole.set),
        scaled=False,
        tested=True,
    )


def _variation(raw: dict[str, Any], path: Path, place: int) -> Variation:
    """One row, checked; messages name it by its label, or by its place if it has none."""
    where = f"{path}: row {raw['label']!r}" if raw.get("label") else f"{path}: row {place}"
    row = config.section(FileRow, raw, where)
    if bool(row.line) != (row.x is not None):
        raise UserError(f"{where}: line and x go together: give both, or none")
    against = row.against if isinstance(row.against, str) else tuple(row.against)
    overrides = _overrides(row.set, f"{where}: set")
    return Variation(row.label, row.strategy, overrides, row.line, row.x, against)


def _overrides(given: list[str], where: str) -> tuple[str, ...]:
    """The overrides as given, once they read as SETTING=VALUE."""
    try:
        config.parsed(given)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('--set').lstrip(': ')}") from error
    return tuple(given)


def _check_labels(whole: File, variations: tuple[Variation, ...], path: Path) -> None:
    """Raise `UserError` for a label that is given twice, and for comparisons with no row."""
    labels = [variation.label for variation in variations]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{path}: rows: the label {label!r} is given twice")
    if whole.baseline not in labels:
        raise UserError(
            f"{path}: baseline: got {whole.baseline!r}; the rows are {', '.join(labels)}"
        )
    for variation in variations:
        against = variation.against
        others = [label for label in labels if label != variation.label]
        for label in (against,) if isinstance(against, str) else against:
            if label and label not in others:
                raise UserError(
                    f"{path}: row {variation.label!r}: against: got {label!r}; the other rows are "
                    f"{', '.join(others)}"
                )
        if variation.x is not None and not whole.axis:
            raise UserError(f"{path}: row {variation.label!r}: x: name the axis with `axis:`")
