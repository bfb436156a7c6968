"""params.yaml -> one frozen pydantic model a section; a bad value stops the run at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from uotft.core import registry
from uotft.core.errors import UserError
from uotft.core.records import Settings

Model = TypeVar("Model", bound=BaseModel)
# what may be changed beside params.yaml: the rest has one place on the disk in a project
CHANGEABLE = (
    "source_fraction", "subset", "select", "cluster", "selectors", "objectives", "train"
)  # fmt: skip


class Subset(Settings):
    """The labelled target images that one seed may train on: all, or what one setting says."""

    shots: int | None = Field(None, ge=1, description="images of each target class")
    fraction: float | None = Field(None, gt=0, le=1, description="of each target class")
    longtail: float | None = Field(
        None, ge=1, description="the largest class over the smallest, Pareto-shaped"
    )

    @model_validator(mode="after")
    def _one_at_most(self) -> Subset:
        if len(self.words) > 1:
            raise ValueError(f"one of {', '.join(self.words)} is needed, or none for all images")
        return self

    @property
    def words(self) -> dict[str, float]:
        """What is set."""
        return self.model_dump(exclude_none=True)


class Embed(Settings):
    """How features of all training images are made, and kept."""

    batch_size: int = Field(512, ge=1, description="images that a process embeds at a time")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the features on disk")


class Select(Settings):
    """What is selected, and how much of it is kept."""

    unit: Literal["class", "cluster", "image"] = Field("class", description="what is scored")
    top_k: int | Literal["auto"] = Field(
        description="K, the number of units kept; auto: by mass_share"
    )
    mass_share: float = Field(
        0.99, gt=0, le=1, description="top_k: auto keeps the fewest units with this much mass"
    )
    max_per_class: int = Field(0, ge=0, description="most images kept of one class; 0: no cap")

    @field_validator("top_k", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError("a whole number of at least 1, or auto, is needed")
        return value

    @field_validator("max_per_class")
    @classmethod
    def _caps_images(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("unit") != "image":
            raise ValueError("a cap for each class needs unit: image")
        return value


class Cluster(Settings):
    """Spherical k-means on the source's images, where unit is cluster."""

    clusters: int = Field(2000, ge=1, description="K, the number of clusters")
    iterations: int = Field(20, ge=1, description="most passes over all points")
    seed: int = Field(0, ge=0, description="draws the first centroids")


class Forecast(Settings):
    """The forecast of each selection before training: delta^2 of equation (4) along K."""

    points: int = Field(12, ge=2, description="values of K along the curve, on a log scale")


class Recipe(Settings):
    """How long and how fast to train; section 4.1 of Liu et al. (2022) unless noted."""

    steps: int = Field(0, ge=0, description="optimiser steps; 0: epochs says how many")
    epochs: int = Field(
        0, ge=0, validate_default=True, description="passes over the target images, if not steps"
    )
    learning_rate: float = Field(gt=0, description="of the backbone, at the start")
    head_lr_factor: float = Field(10.0, gt=0, description="head learning rate over backbone's")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum; 0 is plain SGD")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty")
    schedule: Literal["steps", "cosine"] = Field("steps", description="how the rate falls")
    drops: list[float] = Field(
        [0.6, 0.8], description="with schedule steps, shares of the training where the rate drops"
    )
    warmup: int = Field(
        0, ge=0, description="steps, or epochs with epochs, over which the rate rises from near 0"
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the weights' running mean that is kept; 0: off"
    )
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision")
    channels_last: bool = Field(True, description="memory layout of convolutions")
    compile: bool = Field(False, description="torch.compile: slow to start, faster on a GPU")
    log_every: int = Field(10, ge=1, description="steps between logged points")
    eval_every: int = Field(50, ge=0, description="steps between validations; 0: only at the end")
    checkpoint_every: int = Field(
        100, ge=0, description="steps between checkpoints to resume from; 0: on SIGTERM only"
    )

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, value: int, info: ValidationInfo) -> int:
        if bool(value) == bool(info.data.get("steps", not value)):
            raise ValueError("steps or epochs, one of the two, says how long training takes")
        return value

    @field_validator("warmup")
    @classmethod
    def _ends(cls, value: int, info: ValidationInfo) -> int:
        length = info.data.get("steps") or info.data.get("epochs") or value + 1
        if value and value >= length:
            raise ValueError("the warm-up must be shorter than steps or epochs")
        return value

    def counted(self, images: int, batch_size: int) -> Recipe:
        """The same with its length and warm-up in steps, for so many target images."""
        if not self.epochs:
            return self

        def steps(epochs: int) -> int:
            return round(epochs * images / (batch_size * self.accumulate))

        length = {"steps": max(1, steps(self.epochs)), "warmup": steps(self.warmup), "epochs": 0}
        return self.model_copy(update=length)


class Augment(Settings):
    """Random distortions of training images; zeros switch them off."""

    rotation: float = Field(0.15, ge=0, description="radians, standard deviation")
    shear: float = Field(0.15, ge=0, description="standard deviation")
    zoom: float = Field(0.1, ge=0, lt=1, description="largest change of either side's scale")
    shift: float = Field(0.06, ge=0, description="share of the picture, standard deviation")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest change of the contrast")
    cutout: float = Field(0.0, ge=0, le=1, description="side of a blank square, share of picture's")
    crop: float = Field(
        0.0, ge=0, le=1, description="of files, least share of the area a random crop keeps; 0: off"
    )
    flip: bool = Field(False, description="left and right, every second image")
    operations: int = Field(0, ge=0, description="RandAugment's n; 0: off")
    magnitude: int = Field(10, ge=0, le=30, description="RandAugment's m")

    @property
    def moves(self) -> bool:
        """Whether images are warped at all."""
        return bool(self.rotation or self.shear or self.zoom or self.shift)


class Pretrain(Settings):
    """Pre-training of the backbone on all source classes, where it brings no weights."""

    seed: int = Field(0, ge=0, description="initial weights, order and distortions")
    batch_size: int = Field(128, ge=2, description="images a step, over all processes")
    head_scale: float = Field(
        10.0, gt=0, description="sharpness of a classifier made of class means"
    )
    recipe: Recipe
    augment: Augment = Augment()


class Train(Settings):
    """Fine-tuning on the target, jointly with the selected source classes if there are any."""

    objective: str = Field(
        description="a file in objectives/; plain where it needs source images and none are kept"
    )
    source_weight: float = Field(1.0, ge=0, alias="lambda", description="lambda of equation (6)")
    overlap: Literal["exclude", "keep"] = Field(
        "exclude", description="source images that are among the target's test images"
    )
    target_batch: int = Field(ge=2, description="target images a step, over all processes")
    source_batch: int = Field(ge=2, description="source images a step, over all processes")
    batch_norm: Literal["target", "mixed"] = Field(description="whose statistics norm layers keep")
    target_head: Literal["class_means", "random"] = Field(description="how the target head starts")
    source_head: Literal["classifier", "class_means", "random"] = Field(
        description="how the source head starts"
    )
    head_scale: float = Field(10.0, gt=0, description="sharpness of a class_means head")
    recipe: Recipe
    augment: Augment = Augment()
    strong: Augment = Field(
        Augment(rotation=0.3, shear=0.3, zoom=0.2, shift=0.12, contrast=0.5, cutout=0.4),
        description="the strong view of source images, where the objective reads one",
    )
    reestimate_norm: bool = Field(
        False, description="norm statistics anew from the labelled target images, at the end"
    )
    head_steps: int = Field(
        0, ge=0, description="steps of the target head alone, on the target alone, at the end"
    )


Value = bool | int | float | str


class Axis(Settings):
    """What a search tries for one setting: some values, or all between two."""

    choices: list[Value] | None = Field(None, min_length=1, description="the values")
    low: int | float | None = Field(None, description="the least; whole numbers if high is one too")
    high: int | float | None = Field(None, description="the largest")
    log: bool = Field(False, description="as many below the geometric mean as above it")

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        if (self.choices is None) == (self.low is None) or (self.low is None) != (
            self.high is None
        ):
            raise ValueError("choices are needed, or low and high")
        if self.choices is not None and (self.log or len(set(self.choices)) < len(self.choices)):
            raise ValueError("choices differ from each other, and have no log")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    @property
    def ends(self) -> list[Value]:
        """The values that must be good for all of them to be."""
        return self.choices or [v for v in (self.low, self.high) if v is not None]


class Params(Settings):
    """The whole of params.yaml."""

    source: str
    source_fraction: float = Field(
        1.0, gt=0, le=1, description="of each source class, what is selected from and reused"
    )
    targets: list[str] = Field(min_length=1)
    strategies: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    cpu_threads: int = Field(0, ge=0, description="threads a process on the CPU; 0: torch decides")
    datasets: dict[str, dict[str, Any]]
    backbone: dict[str, Any]
    pretrain: Pretrain
    embed: Embed = Embed()
    subset: Subset
    select: Select
    cluster: Cluster = Cluster()
    forecast: Forecast = Forecast()
    selectors: dict[str, dict[str, Any]]
    objectives: dict[str, dict[str, Any]] = {}
    train: Train

    @field_validator("targets", "strategies", "seeds")
    @classmethod
    def _no_twins(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("an entry stands there twice")
        return values


def load(root: Path) -> Params:
    """Read and check ``root``/params.yaml, shelf sections included."""
    path = root / "params.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; run uotft inside a project: a clone, or a folder of `uotft init`"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    params = _check(Params, raw, str(path))
    for name in params.datasets:  # it becomes the name of files, and a word of commands in dvc.yaml
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise UserError(
                f"{path}: datasets: the name {name!r} has not letters, digits, - and _ alone"
            )
    for name in (params.source, *params.targets):
        dataset_settings(params, name)
    for name in params.strategies:
        selector_settings(params, name)
    # by name only: a file on these two shelves imports torch, which most commands do without
    registry.check("backbones", params.backbone.get("name"), f"{path}: backbone.name")
    registry.check("objectives", params.train.objective, f"{path}: train.objective")
    for name in params.objectives:
        registry.check("objectives", name, f"{path}: objectives")
    return params


def changed(params: Params, words: Sequence[str]) -> tuple[Params, tuple[str, ...]]:
    """Other settings, SETTING=VALUE each; also the words in one spelling, sorted.

    A setting of ``subset`` replaces the others, since they exclude each other.
    """
    values, raw = parsed(words), params.model_dump(by_alias=True)
    if any(name.startswith("subset.") for name in values):
        raw["subset"] = {}
    for name, value in values.items():
        _put(raw, name, value)
    where = f"--set {' '.join(words)}"
    made = _check(Params, raw, where)
    for section, kind in (("selectors", "strategies"), ("objectives", "objectives")):
        for name in {n.split(".")[1] for n in values if n.startswith(f"{section}.")}:
            module = registry.load(kind, name, f"{where}: {section}")
            _check(module.Settings, raw[section][name], f"{where}: {section}.{name}")
    registry.check("objectives", made.train.objective, f"{where}: train.objective")
    return made, tuple(sorted(f"{name}={_spelled(value)}" for name, value in values.items()))


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """["tau_target=10"] -> {"tau_target": 10}; values are YAML."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UserError(f"--set: got {word!r}; NAME=VALUE is needed")
        if name in values:
            raise UserError(f"--set {word}: {name} stands there twice")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {name}: got {value!r}, which is not YAML") from error
    return values


def _put(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set one setting, by its dotted name, in the sections of params.yaml."""
    *parents, last = name.split(".")
    first = (*parents, last)[0]
    if first not in CHANGEABLE:
        raise UserError(
            f"--set {name}: only settings of {', '.join(CHANGEABLE)} can be changed here; for "
            "others change params.yaml, in a project of its own"
        )
    section: Any = raw
    for parent in parents:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict) or isinstance(section.get(last), dict):
        raise UserError(f"--set {name}: the name of one setting is needed, SECTION.SETTING=VALUE")
    section[last] = value


def _spelled(value: Any) -> str:
    """One spelling of a value, which YAML reads back: 10.0 is 10, for a setting that takes it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n...\n").removesuffix("\n")


def dataset_settings(params: Params, name: str) -> Any:
    """The settings of one data set."""
    return dataset(params, name)[1]


def dataset(params: Params, name: str) -> tuple[ModuleType, Any]:
    """The module and the settings of a data set: of its ``kind``, which by default is its name."""
    if name not in params.datasets:
        raise UserError(
            f"data set {name!r} has no section under datasets: in params.yaml; "
            f"there are {', '.join(sorted(params.datasets))}"
        )
    return dataset_section({"kind": name, **params.datasets[name]}, f"datasets.{name}")


def known_dataset(params: Params, name: str) -> tuple[ModuleType, Any]:
    """As ``dataset``, but a set of the shelf needs no section: its defaults hold then."""
    if name in params.datasets or name not in registry.names("datasets"):
        return dataset(params, name)
    return dataset_section({"kind": name}, f"datasets.{name}")


def dataset_section(section: dict[str, Any], where: str) -> tuple[ModuleType, Any]:
    """The module and the settings that a section with its ``kind`` means."""
    settings = dict(section)
    module = registry.load("datasets", settings.pop("kind"), f"params.yaml: {where}.kind")
    return module, _check(module.Settings, settings, f"params.yaml: {where}")


def selector_settings(params: Params, name: str) -> Any:
    """The settings of one strategy; without a section, its defaults."""
    return strategy_settings(name, params.selectors.get(name, {}), f"params.yaml: selectors.{name}")


def strategy_settings(name: str, raw: dict[str, Any], where: str = "") -> Any:
    """The settings of a strategy from their words; ``where`` they stand opens the error."""
    module = registry.load("strategies", name, "strategy")
    return _check(module.Settings, raw, where or f"strategy {name}")


def objective(params: Params, name: str) -> tuple[ModuleType, Any]:
    """The module and the settings of an objective; without a section, its defaults."""
    module = registry.load("objectives", name, "train.objective")
    raw = params.objectives.get(name, {})
    return module, _check(module.Settings, raw, f"params.yaml: objectives.{name}")


def subset_settings(text: str) -> Subset:
    """A subset from one of its settings: NAME=VALUE."""
    name, _, value = text.partition("=")
    wrong = f"--subset: got {text!r}; shots=N, fraction=SHARE or longtail=IMBALANCE is needed"
    try:
        wanted = _check(Subset, {name: yaml.safe_load(value)}, "subset")
    except (UserError, yaml.YAMLError) as error:
        raise UserError(f"{wrong}\n{error}") from error
    if not wanted.words:
        raise UserError(wrong)
    return wanted


def cluster_settings(raw: dict[str, Any]) -> Cluster:
    """A cluster section from its words."""
    return _check(Cluster, raw, "cluster")


def select_settings(raw: dict[str, Any]) -> Select:
    """A select section from its words."""
    return _check(Select, raw, "select")


def space(raw: Any, where: str) -> dict[str, Axis]:
    """{setting: what a search tries}, from the words of the file ``where``."""
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f"{where}: got {raw!r}; lines like `train.lambda: {{choices: [0.3, 1.0]}}` are needed"
        )
    return {str(name): _check(Axis, axis, f"{where}: {name}") for name, axis in raw.items()}


def backbone(section: dict[str, Any]) -> tuple[ModuleType, Any]:
    """The module and the settings that a ``backbone`` section names."""
    settings = dict(section)
    module = registry.load("backbones", settings.pop("name"), "backbone.name")
    return module, _check(module.Settings, settings, "backbone")


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, as MLflow's compare page wants parameters."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return found


def _check(model: type[Model], raw: Any, where: str) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(e), model) for e in error.errors()]
        raise UserError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _explain(error: dict[str, Any], model: type[BaseModel]) -> str:
    """One line: the setting, the value it got, what was expected, and what is known."""
    setting = ".".join(map(str, error["loc"])) or "(the whole section)"
    if error["type"] == "extra_forbidden":
        return f"{setting}: no such setting; known are {', '.join(_known(model, error['loc']))}"
    if error["type"] == "missing":
        return f"{setting}: missing"
    line = f"{setting}: got {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"
    if isinstance(error["input"], str) and "number" in error["msg"]:
        line += " (YAML reads 1e-4 as text: write 1.0e-4)"
    return line


def _known(model: Any, location: tuple[Any, ...]) -> list[str]:
    """The settings that a section of ``model`` has."""
    for part in location[:-1]:
        fields = {f.alias or name: f for name, f in model.model_fields.items()}
        model = fields[part].annotation
    return sorted(f.alias or name for name, f in model.model_fields.items())
