"""Compare head starts and batch norms on validation data; no test image is read.

    dvc repro units embed overlap && nice python experiments/heads.py   # 96 trainings

Every training is a line of heads.csv, and one that stands there is not repeated: delete the file to
measure anew. Prints the mean validation top-1 and the paired differences from the first two lines,
with 95 % t-intervals. Twelve tuning seeds, those of settings.py.
"""

from __future__ import annotations

from pathlib import Path

from settings import SEEDS, compare

BASELINES = ("none", "uot")
RANDOM, MEANS = "train.source_head=random", "train.source_head=class_means"
TARGET, MIXED = "train.target_head=random", "train.batch_norm=mixed"
VARIATIONS = (
    "none",  # plain, from class means
    "uot",  # joint; target from class means, source from the classifier; norms of the target
    f"uot {MEANS}",
    f"uot {RANDOM}",
    f"uot {TARGET}",
    f"uot {TARGET} {RANDOM}",  # the paper's heads
    f"uot {MIXED}",
    f"uot {MIXED} {TARGET} {RANDOM}",  # the paper's heads and norms
)


if __name__ == "__main__":
    compare(Path(__file__).with_suffix(".csv"), SEEDS, [VARIATIONS], BASELINES)
