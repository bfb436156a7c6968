"""Beyond Liu et al. (2022): UOT with co-tuning (You et al. 2020) and L2-SP (Li et al. 2018).

It also tries UOT with a second stage on the target alone, with K from the plan, with single images
in place of classes, and with the modes of batch norm. 128,117 images are a tenth of the paper's
source.
"""

from uotft.analysis.experiments import HUNDRED, JOINT, PLAIN, Experiment, Variation

NO_DECAY = "train.recipe.weight_decay=0"  # L2-SP stands in for it

EXPERIMENT = Experiment(
    title="Beyond the paper",
    claim="The paper compares UOT with co-tuning, but never tries the two together.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("Co-Tuning", "none", ("train.objective=co_tuning",)),
        Variation("L2-SP", "none", ("train.objective=l2_sp", NO_DECAY)),
        Variation("UOT", "uot", HUNDRED),
        Variation(
            "UOT + Co-Tuning", "uot", (*HUNDRED[1:], "train.objective=joint_co_tuning"),
            against="UOT",
        ),
        Variation(
            "UOT + L2-SP", "uot", (*HUNDRED[1:], "train.objective=joint_l2_sp", NO_DECAY),
            against="UOT",
        ),
        Variation("UOT, then the head", "uot", (*HUNDRED, "train.head_steps=100"), against="UOT"),
        Variation("UOT, K auto", "uot", (*JOINT, "select.top_k=auto"), against="UOT"),
        Variation(
            "UOT, images", "uot",
            ("train.objective=joint", "select.unit=image", "select.top_k=128117"), against="UOT",
        ),
        Variation("UOT, norm mixed", "uot", (*HUNDRED, "train.batch_norm=mixed"), against="UOT"),
        Variation("UOT, norm target", "uot", (*HUNDRED, "train.batch_norm=target"), against="UOT"),
        Variation("UOT, norm anew", "uot", (*HUNDRED, "train.reestimate_norm=true"), against="UOT"),
    ),
    baseline="Fine-Tune",
)  # fmt: skip
