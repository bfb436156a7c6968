"""Controls: what people try first, and what else may explain a gain of reuse.

A probe is a logistic regression on the frozen features; LP-FT trains on from it (Kumar et al.
2022). Plain fine-tuning with equal compute sees as many images in as many steps as reuse. With
frozen norms, batch norm keeps its pre-trained statistics, which source images may stand in for.
"""

from uotft.analysis.experiments import BOTH, HUNDRED, PLAIN, Experiment, Variation

#: Nothing changes the network after the last step, of which there is none.
FROZEN = ("train.objective=frozen", "train.head_steps=0", "train.reestimate_norm=false")
NORMS = ("train.batch_norm=frozen", "train.reestimate_norm=false")
EQUAL = "None, equal compute"
STILL = "None, frozen norms"
REUSE = ("None", EQUAL)  # what rows with reuse are compared with

EXPERIMENT = Experiment(
    title="Controls: how much of a gain is reuse",
    claim="It compares reuse with plain fine-tuning that sees half as many images, and with no "
    "frozen network.",
    variations=(
        Variation("Probe", "none", (*FROZEN, "train.target_head=probe")),
        Variation("Class means", "none", (*FROZEN, "train.target_head=class_means")),
        Variation("None", "none", PLAIN),
        Variation("LP-FT", "none", (*PLAIN, "train.target_head=probe")),
        Variation(EQUAL, "none", (*PLAIN, BOTH)),
        Variation(STILL, "none", (*PLAIN, *NORMS)),
        Variation("Random", "random", HUNDRED, against=REUSE),
        Variation("Nearest", "nearest", HUNDRED, against=REUSE),
        Variation("Greedy-OT", "greedy_ot", HUNDRED, against=REUSE),
        Variation("UOT", "uot", HUNDRED, against=REUSE),
        Variation("Random, frozen norms", "random", (*HUNDRED, *NORMS), against=(*REUSE, STILL)),
        Variation("UOT, frozen norms", "uot", (*HUNDRED, *NORMS), against=(*REUSE, STILL)),
    ),
    baseline="None",
    tested=True,
    seeds=8,
)
