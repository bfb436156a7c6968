"""What settings the rows of an experiment have, once the command line has had the last word.

    experiment, notes = settled(experiment, params, (450, 9000), ["train.recipe.steps=50"], 20)

From the first to the last, the later replaces the earlier: params.yaml, the experiment's settings
for all rows, a row's own (scaled to this source, if it is the paper's), the command line's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from uotft.analysis.experiments import BOTH, CLASSES, IMAGES, Experiment, Variation
from uotft.core import config
from uotft.core.errors import UserError
from uotft.core.seeds import LAST_SEED
from uotft.core.settings import Params, Train

SCALED = ("select.top_k=", "cluster.clusters=")  # numbers that refer to the paper's source


def seeds(text: str) -> tuple[int, ...]:
    """ "8" -> 0 to 7, "4-7" -> 4 to 7, "0,2,5" -> these three."""
    found: list[int] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not bounds:
            raise UserError(f"--seeds: got {text!r}; write 8 for 0 to 7, 4-7, or 0,2,5")
        low, high = int(bounds[1]), int(bounds[2] or bounds[1])
        if high > LAST_SEED:
            raise UserError(f"--seeds: got {text!r}; a seed is at most {LAST_SEED}")
        found += range(low, high + 1) if bounds[2] or "," in text else range(low)
    if not found or len({*found}) < len(found):
        raise UserError(f"--seeds: got {text!r}, which names no seed, or one twice")
    return tuple(found)


def layered(*layers: Sequence[str]) -> tuple[str, ...]:
    """Overrides of which the later replace the earlier; so do settings of subset as a whole."""
    merged: dict[str, str] = {}
    for layer in layers:
        if any(override.startswith("subset.") for override in layer):
            merged = {n: o for n, o in merged.items() if not n.startswith("subset.")}
        merged |= {override.partition("=")[0]: override for override in layer}
    return tuple(merged.values())


def scaled(overrides: tuple[str, ...], classes: int, images: int) -> tuple[str, ...]:
    """Overrides whose numbers of classes, clusters and images are scaled to another source.

    They become the same share of its ``classes``, or of its training ``images``, as in the paper.
    """
    share = images / IMAGES if "select.unit=image" in overrides else classes / CLASSES

    def scale(override: str) -> str:
        name, _, value = override.partition("=")
        if not (override.startswith(SCALED) and value.isdecimal()):
            return override
        return f"{name}={max(1, round(int(value) * share))}"

    return tuple(map(scale, overrides))


def given(settings: Sequence[str], top_k: int | None) -> tuple[str, ...]:
    """The settings of the command line: those of --set, and K of --top-k."""
    return layered(settings, [] if top_k is None else [f"select.top_k={top_k}"])


def settled(
    experiment: Experiment,
    params: Params,
    whole: tuple[int, int],
    settings: Sequence[str] = (),
    top_k: int | None = None,
) -> tuple[Experiment, list[str]]:
    """The experiment with all settings of each row, and a line for each setting that was replaced.

    ``whole`` is the number of classes and of training images of the source, ``settings`` are those
    of --set and ``top_k`` is that of --top-k, for the rows that select.
    """
    config.parsed(settings)
    try:
        others = config.changed(params, layered(experiment.common, settings))[0]
    except UserError as error:
        raise UserError(f"experiment {experiment.name}: settings of all rows: {error}") from error
    replaced: dict[str, list[str]] = {}
    variations, batches = [], _batches(experiment, params, settings)
    most = max(batches.values(), default=config.images_a_step(others))
    for variation in experiment.variations:
        own = variation.overrides
        if experiment.scaled:
            own = scaled(own, *whole)
        last = given(settings, top_k if config.keeps(params, variation.strategy) else None)
        if BOTH in own:
            last = tuple(o for o in last if not o.startswith("train.target_batch="))
        for line in _replaced(own, last):
            replaced.setdefault(line, []).append(variation.label)
        made = layered(experiment.common, own, last)
        if BOTH in made:
            made = _equal_compute(made, others.train, most)
        # a cell without settings of its own would be one of params.yaml, which are DVC's
        made = made or (f"train.objective={params.train.objective}",)
        variations.append(replace(variation, overrides=made))
    notes = [f"{line} of {', '.join(labels)}" for line, labels in replaced.items()]
    notes += _unequal(experiment, params, settings, batches)
    return replace(experiment, variations=tuple(variations), common=()), notes


def _batches(experiment: Experiment, params: Params, settings: Sequence[str]) -> dict[str, int]:
    """{row: images in a batch} of the rows that reuse source images."""
    return {
        row.label: _images_a_step(experiment, params, row, settings)
        for row in experiment.variations
        if config.keeps(params, row.strategy)
    }


def _images_a_step(
    experiment: Experiment, params: Params, row: Variation, settings: Sequence[str]
) -> int:
    own = layered(experiment.common, row.overrides, settings)
    try:
        changed = config.of_strategy(config.changed(params, own)[0], row.strategy)
    except UserError as error:
        where = f"experiment {experiment.name}: row {row.label!r}"
        raise UserError(f"{where}: {error}") from error
    return config.images_a_step(changed, keeps=config.keeps(params, row.strategy))


def _unequal(
    experiment: Experiment, params: Params, settings: Sequence[str], batches: dict[str, int]
) -> list[str]:
    """A line if rows with reuse differ in images a step, of which equal compute has the most.

    A control of params.yaml that has its images from there, not from the rows, is a `UserError`.
    """
    most, named = max(batches.values(), default=0), False
    for row in experiment.variations:
        named |= BOTH in row.overrides
        if params.controls.get(row.strategy, {}).get("target_batch") == config.BOTH:
            named = True
            own = _images_a_step(experiment, params, row, settings)
            if batches and own != most:
                raise UserError(
                    f"experiment {experiment.name}: row {row.label!r} sees {own} images a step, "
                    f"rows with reuse {most}: write it as strategy: none, set: "
                    f"[train.objective=plain, {BOTH}]"
                )
    fewer = [f"{label} {images}" for label, images in batches.items() if images < most]
    if not (named and fewer):
        return []
    return [f"equal compute sees {most} images a step; with reuse fewer: {', '.join(fewer)}"]


def _equal_compute(overrides: tuple[str, ...], others: Train, images: int) -> tuple[str, ...]:
    """A row's settings with ``images`` in place of both: as many images in as many steps.

    ``others`` are the settings of rows with reuse. Epochs are longer, so there are more of them.
    """
    values = config.parsed(overrides)
    names = {f"train.recipe.{name}": name for name in ("epochs", "warmup")}
    lengths = {names[name]: value for name, value in values.items() if name in names}
    if all(isinstance(value, int) for value in lengths.values()):  # others are refused later
        lengths = config.longer(others.recipe, lengths, images / others.target_batch)
    length = [f"train.recipe.{name}={value}" for name, value in lengths.items()]
    return layered(overrides, length, [f"train.target_batch={images}"])


def _replaced(own: Sequence[str], given: Sequence[str]) -> list[str]:
    """A line for each setting of a row that one of the command line replaces."""
    kept, lines = layered(own, given), []
    for override in own:
        if override not in kept:
            name = override.partition("=")[0]
            same = [new for new in given if new.partition("=")[0] == name]
            new = same or [new for new in given if new.startswith("subset.")]
            lines.append(f"{' '.join(new)} of the command line replaces {override}")
    return lines


def matching(experiment: Experiment, patterns: Sequence[str]) -> set[str]:
    """The labels that --rows chooses: names, or shell patterns; all without any."""
    from fnmatch import fnmatchcase

    labels = [variation.label for variation in experiment.variations]
    chosen = set() if patterns else {*labels}
    for pattern in patterns:
        found = {pattern} & {*labels} or {n for n in labels if fnmatchcase(n, pattern)}
        if not found:
            raise UserError(f"--rows: got {pattern!r}; the rows are {', '.join(labels)}")
        chosen |= found
    return chosen


def alike(experiment: Experiment) -> list[str]:
    """A line for rows that are the same trainings: same strategy, same settings."""
    groups: dict[tuple[str, frozenset[str]], list[str]] = {}
    for variation in experiment.variations:
        groups.setdefault(_what(variation), []).append(variation.label)
    return [
        f"{' and '.join(labels)} are the same trainings now"
        for labels in groups.values()
        if len(labels) > 1
    ]


def _what(variation: Variation) -> tuple[str, frozenset[str]]:
    return variation.strategy, frozenset(variation.overrides)
