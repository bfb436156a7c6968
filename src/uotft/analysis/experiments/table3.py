"""Table 3 of Liu et al. (2022): a long tail, the largest target class 10 times the smallest."""

from uotft.analysis.experiments import HUNDRED, PLAIN, Experiment, Variation, by_target

TAIL = "subset.longtail=10"
TARGETS = ("cub", "aircraft", "caltech")

EXPERIMENT = Experiment(
    title="Table 3: long-tailed targets",
    claim="UOT helps more than on balanced targets: +4.54 on CUB, +1.22 on Aircraft, +4.24 on "
    "Caltech.",
    variations=(
        Variation("Fine-Tune", "none", (*PLAIN, TAIL)),
        Variation("UOT", "uot", (*HUNDRED, TAIL)),
    ),
    baseline="Fine-Tune",
    targets=TARGETS,
    paper=by_target(TARGETS, {"Fine-Tune": (52.73, 52.74, 73.96), "UOT": (57.27, 53.96, 78.20)}),
)
