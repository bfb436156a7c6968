"""Section 4.4 of Liu et al. (2022), "Subset of Pre-Training Data": half of every source class."""

from uotft.analysis.experiments import HUNDRED, PLAIN, Experiment, Variation

EXPERIMENT = Experiment(
    title="Half of the source",
    claim="Half of ImageNet's images cost UOT 0.18 points on CUB and 0.11 on Caltech.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("UOT", "uot", HUNDRED),
        Variation("UOT, half", "uot", (*HUNDRED, "source_fraction=0.5"), against="UOT"),
    ),
    baseline="Fine-Tune",
    targets=("cub", "caltech"),
    paper={
        "cub": {"Fine-Tune": 75.49, "UOT": 77.21, "UOT, half": 77.03},
        "caltech": {"Fine-Tune": 90.11, "UOT": 91.11, "UOT, half": 91.00},
    },
)
