"""Compare objectives, batch norms and head starts on validation data; no test image is read.

    dvc repro units embed overlap && nice python experiments/objectives.py   # about 45 minutes

Every training is a line of objectives.csv, and one that stands there is not repeated: delete the
file to measure anew. Prints the mean validation top-1 and the paired differences from the first two
lines, with 95 % t-intervals. Tuning seeds, as in settings.py.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from settings import run

from uotft import stages, store
from uotft.statistics import interval, paired

FILE = Path(__file__).with_suffix(".csv")
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


def main() -> None:
    """Train what is missing, then print one line a variation."""
    root = stages.Workspace.find().root
    rows = store.read_csv(FILE) if FILE.exists() else []
    there = {(row["seed"], row["variation"]) for row in rows}
    for variations in (MAIN, MORE):
        for seed, variation in product(SEEDS, variations):
            if (str(seed), variation) not in there:
                top1 = str(run(root, variation, seed))
                rows.append({"seed": str(seed), "variation": variation, "top1": top1})
                store.write_csv(FILE, rows)
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        values.setdefault(row["variation"], {})[int(row["seed"])] = float(row["top1"])
    print("| variation | seeds | validation top-1 % | Δ none | Δ uot |\n" + "| --- " * 5 + "|")
    for variation in (*MAIN, *MORE):
        seeds = values[variation]
        cells = [str(len(seeds)), str(interval(list(seeds.values())))]
        cells += [paired(seeds, values[b]).signed() if variation != b else "" for b in BASELINES]
        print(f"| {variation} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
