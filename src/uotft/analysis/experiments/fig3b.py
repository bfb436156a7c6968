"""Figure 3b of Liu et al. (2022): 20 to 100 % of the target's training images."""

from uotft.analysis.experiments import HUNDRED, PLAIN, Experiment, Variation

EXPERIMENT = Experiment(
    title="Figure 3b: share of the target's training images",
    claim="The fewer target images there are, the more UOT gains over plain fine-tuning.",
    variations=tuple(
        Variation(
            f"{name}, {100 * share:.0f} %",
            strategy,
            (*overrides, f"subset.fraction={share}"),
            line=name,
            x=100 * share,
            against=f"Fine-Tune, {100 * share:.0f} %" if name != "Fine-Tune" else "",
        )
        for name, strategy, overrides in (
            ("Fine-Tune", "none", PLAIN),
            ("Random", "random", HUNDRED),
            ("UOT", "uot", HUNDRED),
        )
        for share in (0.2, 0.4, 0.6, 0.8, 1.0)
    ),
    baseline="Fine-Tune, 100 %",
    targets=("cub", "caltech"),
    paper={
        "cub": {"Fine-Tune, 100 %": 75.49, "Random, 100 %": 75.54, "UOT, 100 %": 77.21},
        "caltech": {"Fine-Tune, 100 %": 90.11, "Random, 100 %": 90.64, "UOT, 100 %": 91.11},
    },
    axis="training images of the target, %",
)
