"""The sections of params.yaml: one frozen pydantic model each, with its defaults."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from uotft.core.records import Settings


class Subset(Settings):
    """The labelled target images that one seed may train on: all, or what one setting says."""

    shots: int | None = Field(None, ge=1, description="images of each target class")
    fraction: float | None = Field(None, gt=0, le=1, description="of each target class")
    longtail: float | None = Field(
        None, ge=1, description="the largest class over the smallest, Pareto-shaped"
    )

    @model_validator(mode="after")
    def _one_at_most(self) -> Subset:
        if len(self.given) > 1:
            raise ValueError(f"one of {', '.join(self.given)} is needed, or none for all images")
        return self

    @property
    def given(self) -> dict[str, float]:
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
    recipe: Recipe = Field(description="how long and how fast to train")
    augment: Augment = Field(Augment(), description="distortions of training images")


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
    recipe: Recipe = Field(description="how long and how fast to train")
    augment: Augment = Field(Augment(), description="distortions of training images")
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

    source: str = Field(description="the old images to reuse: a section of datasets")
    source_fraction: float = Field(
        1.0, gt=0, le=1, description="of each source class, what is selected from and reused"
    )
    targets: list[str] = Field(
        min_length=1, description="the sets to fine-tune on: sections of datasets"
    )
    strategies: list[str] = Field(min_length=1, description="the ways to select source classes")
    seeds: list[int] = Field(
        min_length=1, description="each draws labelled images and trains one model a strategy"
    )
    cpu_threads: int = Field(0, ge=0, description="threads a process on the CPU; 0: torch decides")
    datasets: dict[str, dict[str, Any]] = Field(
        description="name of a data set: its kind, and the settings of that kind"
    )
    backbone: dict[str, Any] = Field(description="name of the backbone, and its settings")
    pretrain: Pretrain = Field(description="training of the backbone on the source")
    embed: Embed = Field(Embed(), description="features of the training images")
    subset: Subset = Field(description="the labelled target images of a seed; {}: all")
    select: Select = Field(description="what is selected, and how much of it")
    cluster: Cluster = Field(Cluster(), description="k-means, where select.unit is cluster")
    forecast: Forecast = Field(Forecast(), description="the forecast before training")
    selectors: dict[str, dict[str, Any]] = Field(
        description="name of a strategy: its settings; without an entry, its defaults"
    )
    objectives: dict[str, dict[str, Any]] = Field(
        {}, description="name of an objective: its settings; without an entry, its defaults"
    )
    train: Train = Field(description="fine-tuning")

    @field_validator("targets", "strategies", "seeds")
    @classmethod
    def _no_twins(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("an entry stands there twice")
        return values
