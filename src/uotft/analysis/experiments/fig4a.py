"""Figure 4a of Liu et al. (2022): recall against the cost scale eps_c; here accuracy too.

As for table4, recall needs class means alone, no training.
"""

from uotft.analysis.experiments import HUNDRED, PLAIN, Experiment, Variation

EXPERIMENT = Experiment(
    title="Figure 4a: the cost scale eps_c",
    claim="After supervised pre-training recall does not depend on eps_c; after self-supervised "
    "pre-training eps_c must be small. Greedy-OT has no eps_c and finds fewer.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("Greedy-OT", "greedy_ot", HUNDRED),
        *(
            Variation(
                f"UOT, eps_c = {scale:g}",
                "uot",
                (*HUNDRED, f"selectors.uot.cost_scale={scale}"),
                line="UOT",
                x=scale,
            )
            for scale in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
        ),
    ),
    baseline="Fine-Tune",
    targets=("cub",),
    paper={"cub": {"Fine-Tune": 75.49, "Greedy-OT": 76.92, "UOT, eps_c = 0.01": 77.21}},
    recalls={
        "supervised": {"Greedy-OT": 86.44, "UOT, eps_c = 0.01": 98.31},
        "MoCo-v2": {"Greedy-OT": 16.95, "UOT, eps_c = 0.01": 93.22},
    },
    axis="eps_c",
    log=True,
)
