"""The sections of params.yaml: one frozen pydantic model each, with its defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from uotft.core.records import Settings
from uotft.core.seeds import LAST_SEED


class Subset(Settings):
    """The labelled target images that a seed trains on: all, unless one of these is set."""

    shots: int | None = Field(None, ge=1, description="number of images of each target class")
    fraction: float | None = Field(None, gt=0, le=1, description="share of each target class")
    longtail: float | None = Field(
        None, ge=1, description="imbalance: size of the largest class over that of the smallest"
    )

    @model_validator(mode="after")
    def _one_at_most(self) -> Subset:
        if len(self.given) > 1:
            raise ValueError(f"set only one of {', '.join(self.given)}, or none for all images")
        return self

    @property
    def given(self) -> dict[str, float]:
        """{name: value} of the setting that is given; empty if there is none."""
        return self.model_dump(exclude_none=True)


class Embed(Settings):
    """How the features of all training images are computed and stored."""

    batch_size: int = Field(512, ge=1, description="images per batch and process")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="number format of the features on disk"
    )


class Select(Settings):
    """What is scored, and how much of it is kept."""

    unit: Literal["class", "cluster", "image"] = Field(
        "class", description="what strategies score and keep: the units"
    )
    top_k: int | Literal["auto"] = Field(
        description="K, the number of units kept; auto: by mass_share"
    )
    mass_share: float = Field(
        0.99,
        gt=0,
        le=1,
        description="share of the transported mass; top_k: auto keeps the fewest units that carry "
        "it",
    )
    max_per_class: int = Field(
        0, ge=0, description="most images kept per class, with unit: image; 0: no limit"
    )

    @field_validator("top_k", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError("give a whole number of at least 1, or auto")
        return value

    @field_validator("max_per_class")
    @classmethod
    def _caps_images(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("unit") != "image":
            raise ValueError("a limit per class needs select.unit: image")
        return value


class Cluster(Settings):
    """Spherical k-means on the source's images, for unit: cluster."""

    clusters: int = Field(2000, ge=1, description="number of clusters")
    iterations: int = Field(20, ge=1, description="largest number of passes over all images")
    seed: int = Field(0, ge=0, description="seed of the first centroids")
    memory: float = Field(
        8,
        ge=0,
        description="GiB of features (4 bytes a number) that k-means may hold; more are read from "
        "disk block by block, in every pass",
    )


class Forecast(Settings):
    """The forecast before training: delta^2 of equation (4) against K, for each selection."""

    points: int = Field(12, ge=2, description="values of K on the curve, spaced on a log scale")


class Recipe(Settings):
    """How long and how fast to train; section 4.1 of Liu et al. (2022) unless noted."""

    steps: int = Field(0, ge=0, description="optimiser steps; 0: set epochs instead")
    epochs: int = Field(
        0,
        ge=0,
        validate_default=True,
        description="passes over the target images; 0: set steps instead",
    )
    learning_rate: float = Field(gt=0, description="learning rate of the backbone at the start")
    head_lr_factor: float = Field(
        10.0, gt=0, description="the heads' learning rate over the backbone's"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum; 0 is plain SGD")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty on all weights")
    schedule: Literal["steps", "cosine"] = Field(
        "steps", description="how the learning rate falls: tenfold at each drop, or as a cosine"
    )
    drops: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.6, 0.8],
        description="shares of the training, 0 to 1, at which the rate drops (schedule: steps)",
    )
    warmup: int = Field(
        0,
        ge=0,
        description="length of the rise of the rate from near 0, in steps, or in epochs if epochs "
        "is set",
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients add up to one step")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the running mean of the weights, which then is the model; 0: off",
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="mixed precision; fp16 needs a GPU"
    )
    channels_last: bool = Field(
        True, description="channels-last memory layout, which convolutions are faster with"
    )
    compile: bool = Field(False, description="torch.compile: slow to start, faster on a GPU")
    log_every: int = Field(10, ge=1, description="steps between logged losses")
    eval_every: int = Field(50, ge=0, description="steps between validations; 0: only at the end")
    checkpoint_every: int = Field(
        100,
        ge=0,
        description="steps between checkpoints to resume from; 0: only when asked to stop",
    )

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, value: int, info: ValidationInfo) -> int:
        if bool(value) == bool(info.data.get("steps", not value)):
            raise ValueError("set either steps or epochs: one of the two is the training's length")
        return value

    @field_validator("warmup")
    @classmethod
    def _ends(cls, value: int, info: ValidationInfo) -> int:
        length = info.data.get("steps") or info.data.get("epochs") or value + 1
        if value and value >= length:
            raise ValueError("the warm-up must be shorter than steps or epochs")
        return value

    def counted(self, images: int, batch_size: int) -> Recipe:
        """A copy with length and warm-up in steps, for a number of target ``images``."""
        if not self.epochs:
            return self

        def steps(epochs: int) -> int:
            return round(epochs * images / (batch_size * self.accumulate))

        length = {"steps": max(1, steps(self.epochs)), "warmup": steps(self.warmup), "epochs": 0}
        return self.model_copy(update=length)


class Augment(Settings):
    """Random distortions of training images; 0 switches one off."""

    rotation: float = Field(0.15, ge=0, description="standard deviation of the angle, in radians")
    shear: float = Field(0.15, ge=0, description="standard deviation of the shear")
    zoom: float = Field(0.1, ge=0, lt=1, description="largest change of height and width")
    shift: float = Field(
        0.06, ge=0, description="standard deviation of the shift, as a share of the picture"
    )
    contrast: float = Field(0.0, ge=0, lt=1, description="largest change of the contrast")
    cutout: float = Field(
        0.0, ge=0, le=1, description="side of a blank square, as a share of the picture's"
    )
    crop: float = Field(
        0.0,
        ge=0,
        le=1,
        description="smallest share of the area that a random crop keeps, for image files; 0: off",
    )
    flip: bool = Field(False, description="mirror every second image")
    operations: int = Field(0, ge=0, description="RandAugment's n, operations per image; 0: off")
    magnitude: int = Field(10, ge=0, le=30, description="RandAugment's m, the strength")

    @property
    def moves(self) -> bool:
        """Whether images are warped."""
        return bool(self.rotation or self.shear or self.zoom or self.shift)


class Pretrain(Settings):
    """Pre-training of the backbone on all source classes, if it comes without weights."""

    seed: int = Field(0, ge=0, description="seed of initial weights, order and distortions")
    batch_size: int = Field(128, ge=2, description="images per step, over all processes")
    head_scale: float = Field(
        10.0, gt=0, description="sharpness of a classifier computed from class means"
    )
    recipe: Recipe = Field(description="how long and how fast to train")
    augment: Augment = Field(Augment(), description="distortions of training images")


class Train(Settings):
    """Fine-tuning on the target, and on the selected source classes if there are any."""

    objective: str = Field(
        description="a file in objectives/; if it needs source images and none are kept: plain"
    )
    source_weight: float = Field(
        1.0, ge=0, alias="lambda", description="lambda of equation (6): weight of the source's loss"
    )
    overlap: Literal["exclude", "keep"] = Field(
        "exclude",
        description="whether to train on source images that are also test images of the target",
    )
    target_batch: int = Field(ge=2, description="target images per step, over all processes")
    source_batch: int = Field(ge=2, description="source images per step, over all processes")
    batch_norm: Literal["target", "mixed", "frozen"] = Field(
        description="batch-norm statistics: of target images alone, of both, or as pre-trained"
    )
    target_head: Literal["class_means", "probe", "random"] = Field(
        description="starting weights of the target head; probe: logistic regression on the "
        "features of the labelled images"
    )
    source_head: Literal["classifier", "class_means", "random"] = Field(
        description="starting weights of the source head; classifier: the pre-trained one's"
    )
    head_scale: float = Field(
        10.0, gt=0, description="sharpness of a head that starts from class means"
    )
    recipe: Recipe = Field(description="how long and how fast to train")
    augment: Augment = Field(Augment(), description="distortions of training images")
    strong: Augment = Field(
        Augment(rotation=0.3, shear=0.3, zoom=0.2, shift=0.12, contrast=0.5, cutout=0.4),
        description="distortions of the strong view of source images (objective pseudo_label)",
    )
    reestimate_norm: bool = Field(
        False,
        description="at the end, recompute batch-norm statistics from the labelled target images",
    )
    head_steps: int = Field(
        0, ge=0, description="extra steps at the end, of the target head on target images alone"
    )

    @field_validator("reestimate_norm")
    @classmethod
    def _may_move(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("batch_norm") == "frozen":
            raise ValueError(
                "batch_norm: frozen keeps the statistics that this would recompute: set it to "
                "false, or batch_norm to target or mixed"
            )
        return value


UNCHANGED = {"reestimate_norm": False, "head_steps": 0}  # no work after the last step either
#: {name: what it changes in the section train} of the controls that every project knows. Each takes
#: no source images, and asks what else would have given the gain that reuse shows: a probe is a
#: linear classifier on frozen features, from which LP-FT trains all weights (Kumar et al. 2022);
#: equal compute sees as many images a step as rows with reuse.
CONTROLS: dict[str, dict[str, Any]] = {
    "probe": {"objective": "frozen", "target_head": "probe", **UNCHANGED},
    "class_means": {"objective": "frozen", "target_head": "class_means", **UNCHANGED},
    "lp_ft": {"objective": "plain", "target_head": "probe"},
    "equal_compute": {"objective": "plain", "target_batch": "both"},
    "frozen_norm": {"objective": "plain", "batch_norm": "frozen", "reestimate_norm": False},
}

Value = bool | int | float | str


class Axis(Settings):
    """The values that a search tries for one setting: a list, or all between two."""

    choices: list[Value] | None = Field(None, min_length=1, description="list of the values to try")
    low: int | float | None = Field(
        None, description="smallest value; only whole numbers are tried if low and high are whole"
    )
    high: int | float | None = Field(None, description="largest value")
    log: bool = Field(False, description="sample between low and high on a log scale")

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        if (self.choices is None) == (self.low is None) or (self.low is None) != (
            self.high is None
        ):
            raise ValueError("give either choices, or low and high")
        if self.choices is not None and (self.log or len(set(self.choices)) < len(self.choices)):
            raise ValueError("choices must differ from each other, and log needs low and high")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    @property
    def ends(self) -> list[Value]:
        """The values to check: if these are valid, so are all between them."""
        return self.choices or [v for v in (self.low, self.high) if v is not None]


class Params(Settings):
    """The whole of params.yaml."""

    source: str = Field(description="the old images to reuse: a section of datasets")
    source_fraction: float = Field(
        1.0, gt=0, le=1, description="share of each source class that may be selected and reused"
    )
    source_means: str = Field(
        "images",
        description="what represents a source class: images, the mean of their features; or "
        "classifier, its row in the pre-trained classifier; or the path of a bank of class means",
    )
    targets: list[str] = Field(
        min_length=1, description="the sets to fine-tune on: sections of datasets"
    )
    strategies: list[str] = Field(min_length=1, description="the ways to select source classes")
    seeds: list[Annotated[int, Field(ge=0, le=LAST_SEED)]] = Field(
        min_length=1, description="each samples labelled images and trains one model per strategy"
    )
    cpu_threads: int = Field(0, ge=0, description="CPU threads per process; 0: torch decides")
    jobs: int = Field(
        0, ge=0, description="trainings at a time; 0: one per GPU, or one per cpu_threads cores"
    )
    tracking: str = Field(
        ".",
        description="folder with mlflow.db, mlruns/ and unsent/, relative to the project; projects "
        "beside each other can share one",
    )
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
    controls: dict[str, dict[str, Any]] = Field(
        CONTROLS,
        description="name of a control, which strategies may list: what it changes in train, on no "
        "source images; target_batch: both is target_batch and source_batch together. The controls "
        "of the default are always known",
    )

    @field_validator("controls")
    @classmethod
    def _with_the_usual(cls, own: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return CONTROLS | own

    @field_validator("targets", "strategies", "seeds")
    @classmethod
    def _no_twins(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("an entry is listed twice")
        return values
