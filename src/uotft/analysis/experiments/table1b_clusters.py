"""Table 1b of Liu et al. (2022), lower half: self-supervised pre-training, source without labels.

Clusters replace classes (200 of 2000 are kept), and equation (7) replaces equation (6).
"""

from uotft.analysis.experiments import (
    EIGHT,
    MOCO,
    PLAIN,
    UNLABELLED,
    Experiment,
    Variation,
    by_target,
)

CLUSTERS = (*UNLABELLED, "cluster.clusters=2000", "select.top_k=200")

EXPERIMENT = Experiment(
    title="Table 1b, without labels: clusters of the source, self-supervised pre-training",
    claim="Reuse helps on most targets without any label; UOT and Greedy-OT are close.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("Random", "random", CLUSTERS),
        Variation("Greedy-OT", "greedy_ot", CLUSTERS),
        Variation("UOT", "uot", CLUSTERS),
    ),
    baseline="Fine-Tune",
    backbone=MOCO,
    targets=EIGHT,
    paper=by_target(
        EIGHT,
        {
            "Fine-Tune": (78.64, 91.05, 77.44, 90.44, 61.12, 87.25, 75.80, 92.82),
            "Random": (79.77, 90.93, 77.96, 90.70, 62.26, 89.17, 76.97, 92.72),
            "Greedy-OT": (81.16, 90.87, 78.63, 91.21, 63.41, 89.29, 77.29, 93.39),
            "UOT": (81.47, 90.91, 78.96, 90.39, 63.68, 89.59, 77.07, 93.27),
        },
    ),
)
