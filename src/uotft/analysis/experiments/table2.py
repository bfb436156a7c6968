"""Table 2 of Liu et al. (2022): 1000 or 2000 clusters of a source without labels.

200 of 2000 clusters are reused, or 100 of 1000, which are twice as large: as many images.
"""

from uotft.analysis.experiments import EIGHT, MOCO, UNLABELLED, Experiment, Variation, by_target

EXPERIMENT = Experiment(
    title="Table 2: number of clusters",
    claim="2000 clusters are better than 1000 on most targets; even more would be noisy.",
    variations=(
        Variation(
            "1000 clusters", "uot", (*UNLABELLED, "cluster.clusters=1000", "select.top_k=100")
        ),
        Variation(
            "2000 clusters", "uot", (*UNLABELLED, "cluster.clusters=2000", "select.top_k=200")
        ),
    ),
    baseline="1000 clusters",
    backbone=MOCO,
    targets=EIGHT,
    paper=by_target(
        EIGHT,
        {
            "1000 clusters": (81.02, 90.86, 78.48, 90.55, 63.65, 89.16, 77.50, 93.09),
            "2000 clusters": (81.47, 90.91, 78.96, 90.39, 63.68, 89.59, 77.07, 93.27),
        },
    ),
)
