"""Figure 3a of Liu et al. (2022): 50 to 300 kept classes.

The paper's horizontal line, all classes that match by label, needs their names: `--expect`.
"""

from uotft.analysis.experiments import JOINT, PLAIN, Experiment, Variation

EXPERIMENT = Experiment(
    title="Figure 3a: number of kept classes",
    claim="More classes do not help on CUB, but do on Caltech; UOT is above random at every K. "
    "On CUB, UOT with 100 classes (77.21 %) is level with the 59 birds by label (76.89 %).",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("Label", "label", JOINT),
        *(
            Variation(f"{name}, K = {k}", strategy, (*JOINT, f"select.top_k={k}"), line=name, x=k)
            for name, strategy in (("Random", "random"), ("UOT", "uot"))
            for k in (50, 100, 150, 200, 250, 300)
        ),
    ),
    baseline="Fine-Tune",
    targets=("cub", "caltech"),
    paper={
        "cub": {
            "Fine-Tune": 75.49,
            "Label": 76.89,
            "Random, K = 100": 75.54,
            "UOT, K = 100": 77.21,
        },
        "caltech": {"Fine-Tune": 90.11, "Random, K = 100": 90.64, "UOT, K = 100": 91.11},
    },
    axis="classes kept, of 1000",
)
