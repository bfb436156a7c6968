"""Figure 4b of Liu et al. (2022): the source in ten parts by UOT score, one reused at a time."""

from uotft.analysis.experiments import JOINT, PLAIN, Experiment, Variation

EXPERIMENT = Experiment(
    title="Figure 4b: ten parts of the source, by similarity",
    claim="The farther the part is from CUB, the lower the accuracy; the farthest are below plain "
    "fine-tuning.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        *(
            Variation(
                f"part {number + 1}",
                "score_quantile",
                (
                    *JOINT,
                    "selectors.score_quantile.quantiles=10",
                    f"selectors.score_quantile.quantile={number}",
                ),
                line="UOT",
                x=number + 1,
            )
            for number in range(10)
        ),
    ),
    baseline="Fine-Tune",
    targets=("cub",),
    paper={"cub": {"Fine-Tune": 75.49}},
    axis="part of the source, 1 is nearest",
)
