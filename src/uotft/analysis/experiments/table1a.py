"""Table 1a of Liu et al. (2022): strategies on eight targets, from supervised pre-training."""

from uotft.analysis.experiments import EIGHT, HUNDRED, PLAIN, Experiment, Variation, by_target

EXPERIMENT = Experiment(
    title="Table 1a: selection strategies, supervised pre-training",
    claim="Every kind of reuse beats plain fine-tuning on average, UOT most: 80.15 to 78.98 %.",
    variations=(
        Variation("Fine-Tune", "none", PLAIN),
        Variation("Co-Tuning", "none", ("train.objective=co_tuning",)),
        Variation("Random", "random", HUNDRED),
        Variation("Greedy-OT", "greedy_ot", HUNDRED),
        Variation("UOT", "uot", HUNDRED),
    ),
    baseline="Fine-Tune",
    targets=EIGHT,
    paper=by_target(
        EIGHT,
        {
            "Fine-Tune": (82.65, 85.87, 75.49, 91.40, 58.03, 77.62, 70.64, 90.11),
            "Co-Tuning": (80.90, 86.48, 76.83, 89.92, 58.73, 79.07, 69.69, 93.08),
            "Random": (83.29, 86.52, 75.54, 91.58, 58.18, 78.10, 70.69, 90.64),
            "Greedy-OT": (84.63, 86.79, 76.92, 91.66, 58.70, 78.43, 70.90, 90.67),
            "UOT": (84.67, 87.03, 77.21, 91.98, 59.06, 78.94, 71.17, 91.11),
        },
    ),
)
