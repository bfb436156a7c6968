"""Compare objectives, batch norms and head starts on validation data; no test image is read.

    dvc repro units embed overlap && nice python experiments/objectives.py   # about 45 minutes

Every training is a line of objectives.csv, and one that stands there is not repeated: delete the
file to measure anew. Prints the mean validation top-1 and the paired differences from the first two
lines, with 95 % t-intervals. Tuning seeds, as in settings.py. In objectives.csv random heads
started as torch's layers do; since then they start as the paper's, and heads.py compares those.
"""

from __future__ import annotations

from pathlib import Path

from settings import compare

SEEDS = range(100, 108)
RANDOM = "train.target_head=random"
AGAIN = "train.reestimate_norm=true"
BASELINES = ("none", "uot")
DECAY = "train.recipe.weight_decay=0.0"
MAIN = (
    "none",  # plain, from class means
    "uot",  # joint, from class means and the classifier, norms of the target
    f"uot {AGAIN}",
    "uot train.batch_norm=mixed",
    f"uot train.batch_norm=mixed {AGAIN}",
    f"uot {RANDOM}",
    "uot train.source_head=random",
    f"uot {RANDOM} train.source_head=random",
    "uot train.objective=pseudo_label",
    "none train.objective=co_tuning",
    f"none train.objective=l2_sp {DECAY}",
)
MORE = (
    f"none {AGAIN}",
    f"none {RANDOM}",
    "none train.objective=co_tuning objectives.co_tuning.weight=0.1",
    f"none train.objective=l2_sp {DECAY} objectives.l2_sp.alpha=0.01",
    "uot train.head_steps=100",
    "uot train.objective=pseudo_label train.lambda=0.1",
)


if __name__ == "__main__":
    compare(Path(__file__).with_suffix(".csv"), SEEDS, [MAIN, MORE], BASELINES)
