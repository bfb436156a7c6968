"""Table 1b of Liu et al. (2022), upper half: self-supervised pre-training, source with labels."""

from uotft.analysis.experiments import EIGHT, HUNDRED, MOCO, PLAIN, Experiment, Variation, by_target

EXPERIMENT = Experiment(
    title="Table 1b, with labels: selection strategies, self-supervised pre-training",
    claim="UOT is 2.93 points above plain fine-tuning on average; on cars no reuse helps.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("Random", "random", HUNDRED),
        Variation("Greedy-OT", "greedy_ot", HUNDRED),
        Variation("UOT", "uot", HUNDRED),
    ),
    baseline="Fine-Tune",
    backbone=MOCO,
    targets=EIGHT,
    paper=by_target(
        EIGHT,
        {
            "Fine-Tune": (78.64, 91.05, 77.44, 90.44, 61.12, 87.25, 75.80, 92.82),
            "Random": (79.87, 90.85, 78.82, 91.48, 62.42, 88.60, 77.34, 93.26),
            "Greedy-OT": (79.43, 90.89, 78.63, 91.27, 62.27, 89.40, 76.81, 93.36),
            "UOT": (88.14, 90.89, 80.98, 93.05, 64.76, 89.28, 77.45, 93.45),
        },
    ),
)
