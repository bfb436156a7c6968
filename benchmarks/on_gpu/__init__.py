"""The parts of `benchmarks/gpu.py`, the most important first."""

from __future__ import annotations

from dataclasses import dataclass

#: Modules that parts need and that take seconds to import; the parent imports them once.
HEAVY = (
    "torch",
    "accelerate",
    "uotft.models.embedding",
    "uotft.models.model_io",
    "uotft.selection.transport",
    "uotft.training.loop",
    "uotft.training.runtime",
    "uotft.training.streams",
)


@dataclass(frozen=True)
class Part:
    """``function`` of ``module`` here, at most ``seconds`` long."""

    name: str
    module: str
    function: str
    seconds: float


PARTS = (
    Part("machine", "machine", "machine", 60),
    Part("solver", "selection", "solver", 90),
    Part("training", "training", "training", 170),
    Part("k-means", "selection", "clusters", 90),
    Part("resume", "checks", "resume", 50),
    Part("fp16", "checks", "half", 40),
    Part("nccl", "checks", "one_rank", 40),
    Part("crops", "training", "crops", 40),
    Part("features", "training", "features", 30),
    Part("tests", "checks", "tests", 90),
)
