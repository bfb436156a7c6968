"""Table 4 of Liu et al. (2022): recall and accuracy by distance and method.

Recall is the share of ImageNet's 59 bird classes among the 100 kept for CUB. It needs class means
alone: `uotft experiment run table4 --source-bank S.npz --target-bank T.npz --expect bird`.
The paper's accuracies are those of its supervised ResNet18.
"""

from uotft.analysis.experiments import HUNDRED, Experiment, Variation

GREEDY = "selectors.greedy_ot.metric"
UOT = "selectors.uot.metric"
SCALE = "selectors.uot.cost_scale"

EXPERIMENT = Experiment(
    title="Table 4: distance and method",
    claim="UOT with the cosine finds most birds; Greedy-OT misses most of them after "
    "self-supervised pre-training, where accuracy on CUB is 78.63, 79.32, 78.48 and 80.98 %.",
    variations=(
        Variation("GOT-l2", "greedy_ot", (*HUNDRED, f"{GREEDY}=l2")),
        Variation("GOT-cos", "greedy_ot", (*HUNDRED, f"{GREEDY}=cosine")),
        Variation("UOT-l2", "uot", (*HUNDRED, f"{UOT}=l2", f"{SCALE}=0.1")),
        Variation("UOT-cos", "uot", (*HUNDRED, f"{UOT}=cosine", f"{SCALE}=0.01")),
    ),
    baseline="GOT-l2",
    targets=("cub",),
    paper={"cub": {"GOT-l2": 76.92, "GOT-cos": 76.67, "UOT-l2": 77.08, "UOT-cos": 77.21}},
    recalls={
        "supervised": {"GOT-l2": 86.44, "GOT-cos": 94.92, "UOT-l2": 94.92, "UOT-cos": 98.31},
        "MoCo-v2": {"GOT-l2": 16.95, "GOT-cos": 38.98, "UOT-l2": 16.95, "UOT-cos": 93.22},
    },
)
